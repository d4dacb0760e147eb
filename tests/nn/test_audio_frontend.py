"""The convolutions over sound: which frames a vector hears, and rows with padding against the same sound alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.log_mel import LogMelConfig
from lm_jax.nn.spec_augment import SpecAugmentConfig
from tests.models_for_tests import LOUD

SPECTROGRAM = LogMelConfig(rate=8000, window=50, hop=20, fft=64, mels=12, pad="zeros", normalise="bins")
F32 = jnp.dtype("float32")


def layer(**more):
    return AudioConfig(**({"mels": 12, "length": 50, "log_mel": SPECTROGRAM} | more)).build(nnx.Rngs(params=0), 8, LOUD)


def hear(audio, batch, key=None):
    """`Audio.hear`, compiled."""
    return jax.jit(lambda batch, key: audio.hear(batch, F32, key))(batch, key)


def test_a_vector_hears_five_frames():
    audio = layer(log_mel=None)
    x = np.random.default_rng(0).normal(size=(1, 20, 12)).astype(np.float32)
    run = jax.jit(lambda x: audio.hear({"mels": x}, F32)[0])
    before = np.asarray(run(x))
    for t in (0, 7, 12):
        x[0, t] += 1
        after = np.asarray(run(x))
        changed = np.flatnonzero((after != before).any(axis=2)[0])
        assert changed.tolist() == [s for s in range(10) if 2 * s - 2 <= t <= 2 * s + 2]
        before = after


def test_padding_changes_nothing():
    audio, rng = layer(), np.random.default_rng(0)
    sizes = np.array([280, 300, 1000, 0], np.int32)  # 14, 15 (an odd number) and 50 frames
    waves = rng.normal(size=(4, 1000)).astype(np.float32) * (np.arange(1000)[None] < sizes[:, None])
    together, segments = hear(audio, {"waves": waves, "samples": sizes})
    assert np.asarray(segments).sum(axis=1).tolist() == [7, 8, 25, 0]
    for row, size in enumerate(sizes[:3]):
        alone, heard = hear(audio, {"waves": waves[row : row + 1, :size], "samples": sizes[row : row + 1]})
        assert heard.all() and alone.shape[1] == -(-size // 40)
        np.testing.assert_allclose(together[row, : alone.shape[1]], alone[0], atol=1e-4)
    mels, frames, _ = jax.jit(audio.spectrogram)({"waves": waves, "samples": sizes})
    as_mels = layer(log_mel=None)
    padded = np.array(segments).repeat(2, axis=1)[:, :, None] == 0
    again, _ = hear(as_mels, {"mels": np.where(padded, 7, mels), "memory_segments": segments})
    np.testing.assert_allclose(again, together, atol=1e-5)
    assert frames.tolist() == [14, 15, 50, 0]


def test_parts_are_hidden_in_training_only():
    waves = np.random.default_rng(0).normal(size=(2, 800)).astype(np.float32)
    batch = {"waves": waves, "samples": np.array([800, 500], np.int32)}
    audio, plain = layer(augment=SpecAugmentConfig(frequency_width=6, time_width=10)), layer()
    clear = np.asarray(hear(plain, batch)[0])
    np.testing.assert_array_equal(hear(audio, batch)[0], clear)
    np.testing.assert_array_equal(hear(plain, batch, jax.random.key(0))[0], clear)
    assert np.abs(np.asarray(hear(audio, batch, jax.random.key(0))[0]) - clear).max() > 0.1


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"mels=80 differs from log_mel.mels=12"):
        validate_tree(AudioConfig(log_mel=SPECTROGRAM))
    with pytest.raises(ConfigError, match=r"\(102, 12\) .* an even number of frames up to 100 of 12 bins"):
        batch = {"waves": jnp.zeros((1, 2040)), "samples": jnp.full(1, 2040)}
        jax.eval_shape(lambda batch: layer().hear(batch, F32), batch)
