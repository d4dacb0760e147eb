"""The log-mel spectrogram of a waveform."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array


@dataclasses.dataclass(kw_only=True)
class LogMelConfig(Config):
    """log10 of the power that `mels` triangular filters let through, at every `hop` samples. The defaults are Whisper's.

    | field | what |
    |---|---|
    | rate | samples a second |
    | window, hop, fft | samples: of the (periodic) Hann window, between two frames, of the Fourier transform |
    | scale | of the filters' centres, equally spaced: "slaney" (linear below 1 kHz) or "htk" (2595 log10(1 + f / 700)) |
    | area | each filter is divided by half its width in Hz (Slaney 1998), so that all let the same part of white noise through |
    | low, high | Hz; high None: half the rate |
    | pad | what stands around a row, in which frame t is centred at sample t x hop: its reflection ("reflect"), or "zeros" |
    | floor | power below it counts as it: silence is log10(floor), never -inf |
    | normalise | "none"; "range": of Whisper (arXiv:2212.04356), x = (max(x, top - 8) + 4) / 4, with the utterance's top; "bins": |
    |  | each bin to mean 0 and deviation 1 over the frames of its utterance, which takes loudness and microphone out |

    What is computed of an utterance does not depend on the padding of its row, with pad="zeros".
    """

    rate: int = 16000
    window: int = 400
    hop: int = 160
    fft: int = 400
    mels: int = 80
    scale: str = "slaney"
    area: bool = True
    low: float = 0.0
    high: float | None = None
    pad: str = "reflect"
    floor: float = 1e-10
    normalise: str = "range"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown choice, sizes out of range, or a filter between two frequencies of the transform."""
        check_positive(self, "rate", "window", "hop", "fft", "mels", "floor")
        check_choice("scale", self.scale, ("slaney", "htk"))
        check_choice("pad", self.pad, ("reflect", "zeros"))
        check_choice("normalise", self.normalise, ("none", "range", "bins"))
        if self.window > self.fft:
            raise ConfigError(f"window={self.window} does not fit into fft={self.fft}")
        if not 0 <= self.low < self.top <= self.rate / 2:
            raise ConfigError(f"low={self.low} and high={self.high} must be in order, from 0 to half of rate={self.rate}")
        empty = np.flatnonzero(mel_filters(self).max(axis=0) == 0)
        if len(empty):
            raise ConfigError(
                f"mels={self.mels}: {len(empty)} filters, such as number {empty[0]}, hold no frequency of fft={self.fft}; "
                "take fewer mels or a larger fft"
            )

    @property
    def top(self) -> float:
        """The highest frequency, Hz."""
        return self.rate / 2 if self.high is None else self.high


def mel_filters(config: LogMelConfig) -> np.ndarray:
    """float64 [fft // 2 + 1, M]: the weight of each frequency of the transform in each bin."""
    edges = _hertz(np.linspace(*_mel(np.array([config.low, config.top]), config.scale), config.mels + 2), config.scale)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.arange(config.fft // 2 + 1)[:, None] * config.rate / config.fft
    filters = np.maximum(0, np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)))
    return filters * 2 / (high - low) if config.area else filters


_STEP = math.log(6.4) / 27  # of Slaney's scale above 1 kHz, which is 15 mel


def _mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) / _STEP)


def _hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * _STEP))


def hann(config: LogMelConfig) -> np.ndarray:
    """float64 [fft]: the window, in the middle of the transform."""
    left = (config.fft - config.window) // 2
    window = np.sin(np.pi * np.arange(config.window) / config.window) ** 2
    return np.pad(window, (left, config.fft - config.window - left))


def num_frames(samples: Array, config: LogMelConfig) -> Array:
    """How many frames are centred within as many samples: every `hop` one, from the first on."""
    return -(-samples // config.hop)


def log_mel(waves_BN: Array, config: LogMelConfig, samples_B: Array | None = None) -> Array:
    """float32 [B, N // hop, M] of waveforms [B, N] with values from -1 to 1, of which the first `samples_B` are no padding (None:
    all). Frames of padding are 0, and count in no normalisation."""
    waves_BN = jnp.asarray(waves_BN, jnp.float32)
    T = waves_BN.shape[1] // config.hop
    frames_BTF = _frames(waves_BN, config, T) * jnp.asarray(hann(config), jnp.float32)[None, None, :]
    spectrum = jnp.fft.rfft(frames_BTF, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mels_BTM = jnp.einsum("BTF,FM->BTM", power, jnp.asarray(mel_filters(config), jnp.float32), precision="highest")
    x_BTM = jnp.log10(jnp.maximum(mels_BTM, config.floor))
    if samples_B is None:
        heard_BT1 = jnp.ones((*x_BTM.shape[:2], 1), bool)
    else:
        heard_BT1 = (jnp.arange(T)[None, :] < num_frames(jnp.asarray(samples_B), config)[:, None])[:, :, None]
    return jnp.where(heard_BT1, _normalised(x_BTM, heard_BT1, config.normalise), 0.0)


def _frames(waves_BN: Array, config: LogMelConfig, T: int) -> Array:
    """[B, T, fft], frame t centred at sample t x hop."""
    half, hop, pieces = config.fft // 2, config.hop, -(-config.fft // config.hop)
    padded = jnp.pad(waves_BN, ((0, 0), (half, half)), mode="reflect" if config.pad == "reflect" else "constant")
    size = (T + pieces) * hop
    padded = jnp.pad(padded, ((0, 0), (0, max(size - padded.shape[1], 0))))[:, :size]
    blocks = padded.reshape(len(waves_BN), T + pieces, hop)
    return jnp.concatenate([blocks[:, i : i + T] for i in range(pieces)], axis=2)[:, :, : config.fft]


def _normalised(x_BTM: Array, heard_BT1: Array, how: str) -> Array:
    if how == "range":
        top_B11 = jnp.max(jnp.where(heard_BT1, x_BTM, -jnp.inf), axis=(1, 2), keepdims=True)
        return (jnp.maximum(x_BTM, top_B11 - 8.0) + 4.0) / 4.0
    if how == "bins":
        count_B11 = jnp.maximum(jnp.sum(heard_BT1, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
        mean_B1M = jnp.sum(jnp.where(heard_BT1, x_BTM, 0.0), axis=1, keepdims=True) / count_B11
        centred = x_BTM - mean_B1M
        variance = jnp.sum(jnp.where(heard_BT1, jnp.square(centred), 0.0), axis=1, keepdims=True) / count_B11
        return centred / (jnp.sqrt(variance) + 1e-3)  # a bin that never changes stays 0
    return x_BTM
