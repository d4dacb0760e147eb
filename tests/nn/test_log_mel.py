"""The spectrogram against Whisper's feature extractor and against loops in float64."""

import math

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.nn.log_mel import LogMelConfig, log_mel, mel_filters

SMALL = {"rate": 8000, "window": 50, "hop": 20, "fft": 64, "mels": 12}


def sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A rising tone, some noise, and silence."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    x = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.02 * rng.normal(size=len(t))
    x[len(t) // 2 : len(t) // 2 + rate // 8] = 0
    return x.astype(np.float32)


def reference(x: np.ndarray, config: LogMelConfig, mels_of) -> np.ndarray:
    """float64 [T, M], a frame and a filter at a time. `mels_of` are functions: Hz to mel and back."""
    to_mel, to_hertz = mels_of
    x, half = x.astype(np.float64), config.fft // 2
    padded = np.pad(x, half, mode="reflect" if config.pad == "reflect" else "constant")
    first = (config.fft - config.window) // 2
    low, top = to_mel(config.low), to_mel(config.high or config.rate / 2)
    edges = [to_hertz(low + (top - low) * m / (config.mels + 1)) for m in range(config.mels + 2)]
    n = np.arange(config.fft)
    out = np.zeros((len(x) // config.hop, config.mels))
    for t in range(len(out)):
        frame = padded[t * config.hop : t * config.hop + config.fft].copy()
        for i in range(config.fft):
            inside = first <= i < first + config.window
            frame[i] *= 0.5 - 0.5 * math.cos(2 * math.pi * (i - first) / config.window) if inside else 0
        power = [abs(np.sum(frame * np.exp(-2j * np.pi * k * n / config.fft))) ** 2 for k in range(half + 1)]
        for m in range(config.mels):
            left, centre, right = edges[m : m + 3]
            total = 0.0
            for k, value in enumerate(power):
                f = k * config.rate / config.fft
                if left < f < right:
                    total += value * ((f - left) / (centre - left) if f <= centre else (right - f) / (right - centre))
            out[t, m] = math.log10(max(total * (2 / (right - left) if config.area else 1), config.floor))
    if config.normalise == "range":
        return (np.maximum(out, out.max() - 8) + 4) / 4
    if config.normalise == "bins":
        return (out - out.mean(axis=0)) / (out.std(axis=0) + 1e-3)
    return out


HTK = (lambda f: 2595 * math.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1))
SLANEY = (
    lambda f: f / (200 / 3) if f < 1000 else 15 + 27 * math.log(f / 1000, 6.4),
    lambda m: m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27),
)


@pytest.mark.parametrize(
    ("more", "mels_of"),
    [
        ({"scale": "slaney", "normalise": "none"}, SLANEY),
        ({"scale": "htk", "area": False, "pad": "zeros", "normalise": "range", "low": 60.0, "high": 3500.0}, HTK),
        ({"scale": "htk", "pad": "zeros", "normalise": "bins", "hop": 24}, HTK),
    ],
)
def test_it_is_that_of_the_definition(more, mels_of):
    config = LogMelConfig(**(SMALL | more))
    validate_tree(config)
    x = sound(0.2, 8000)
    np.testing.assert_allclose(log_mel(x[None], config)[0], reference(x, config, mels_of), atol=1e-4)


def test_it_is_that_of_whisper():
    transformers = pytest.importorskip("transformers")
    x = sound(4.0, 16000)
    theirs = transformers.WhisperFeatureExtractor()(x, sampling_rate=16000, return_tensors="np")["input_features"][0]
    ours = log_mel(np.pad(x, (0, 30 * 16000 - len(x)))[None], LogMelConfig())[0]
    assert ours.shape == (3000, 80)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-4)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_filters_are_those_of_transformers(scale):
    audio_utils = pytest.importorskip("transformers.audio_utils")
    config = LogMelConfig(scale=scale, low=20.0, high=7600.0, fft=512, mels=64)
    theirs = audio_utils.mel_filter_bank(257, 64, 20.0, 7600.0, 16000, norm="slaney", mel_scale=scale)
    np.testing.assert_allclose(mel_filters(config), theirs, atol=1e-12)


@pytest.mark.parametrize("normalise", ["none", "range", "bins"])
def test_padding_changes_nothing_and_is_0(normalise):
    config = LogMelConfig(**SMALL, pad="zeros", normalise=normalise)
    sounds = [sound(seconds, 8000, seed) for seed, seconds in enumerate((0.1, 0.2))]
    waves = np.stack([np.pad(x, (0, 2000 - len(x))) for x in sounds])
    run = jax.jit(lambda x, n: log_mel(x, config, n))
    together = np.asarray(run(waves, np.array([len(x) for x in sounds], np.int32)))
    for row, x in enumerate(sounds):
        frames = len(x) // config.hop
        np.testing.assert_allclose(together[row, :frames], log_mel(x[None], config)[0], atol=2e-5)
        assert not together[row, frames:].any()


@pytest.mark.parametrize("normalise", ["none", "range", "bins"])
def test_silence_is_finite(normalise):
    config = LogMelConfig(**SMALL, normalise=normalise)
    waves, samples = np.zeros((2, 400), np.float32), np.array([400, 0], np.int32)
    found = np.asarray(jax.jit(lambda x, n: log_mel(x, config, n))(waves, samples))
    assert np.isfinite(found).all()
    assert np.unique(found[0]).tolist() == [{"none": -10.0, "range": -1.5, "bins": 0.0}[normalise]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"window": 65}, "window=65 does not fit into fft=64"),
        ({"scale": "bark"}, "scale='bark'"),
        ({"high": 4001.0}, "half of rate=8000"),
        ({"mels": 60}, r"mels=60: \d+ filters, .* take fewer mels or a larger fft"),
    ],
)
def test_bad_values_are_named(more, message):
    with pytest.raises(ConfigError, match=message):
        validate_tree(LogMelConfig(**(SMALL | more)))
