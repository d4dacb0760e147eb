"""SpecAugment: hiding parts of a spectrogram in training."""

import dataclasses

import jax
import jax.numpy as jnp

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import index
from lm_jax.core.types import Array


@dataclasses.dataclass(kw_only=True)
class SpecAugmentConfig(Config):
    """Stretches of time and bands of frequency set to the mean of the utterance (Park et al. 2019, arXiv:1904.08779, section 2).

    Of each utterance `frequency_masks` bands of 0 to `frequency_width` bins and `time_masks` stretches of 0 to `time_width` frames,
    but no stretch longer than `time_share` of the utterance; widths and places are drawn uniformly, and may overlap. Time is not
    warped, which the paper finds to matter least.
    """

    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 2
    time_width: int = 100
    time_share: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` for a negative number or a share outside [0, 1]."""
        for name in ("frequency_masks", "frequency_width", "time_masks", "time_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.time_share <= 1:
            raise ConfigError(f"time_share={self.time_share} must be in [0, 1]")


def spec_augment(x_BTM: Array, frames_B: Array, config: SpecAugmentConfig, key: Array) -> Array:
    """[B, T, M] of spectrograms of which the first `frames_B` frames are no padding, which stays as it is.

    The masks of a row follow from `key` and the row's number in the batch, on any mesh.
    """
    x_BTM, frames_B = jnp.asarray(x_BTM), jnp.asarray(frames_B)
    B, T, M = x_BTM.shape
    rows_B = index("batch") * B + jnp.arange(B)

    def masks(row: Array, frames: Array) -> tuple[Array, Array]:
        frequency, time = jax.random.split(jax.random.fold_in(key, row))
        most = jnp.minimum(config.time_width, (config.time_share * frames.astype(jnp.float32)).astype(jnp.int32))
        bands = _masks(frequency, config.frequency_masks, jnp.int32(config.frequency_width), jnp.int32(M), M)
        return _masks(time, config.time_masks, most, frames, T), bands

    time_BT, bands_BM = jax.vmap(masks)(rows_B, frames_B)
    heard_BT1 = (jnp.arange(T)[None, :] < frames_B[:, None])[:, :, None]
    total_B = jnp.sum(jnp.where(heard_BT1, x_BTM, 0), axis=(1, 2))
    mean_B = total_B / jnp.maximum(frames_B * M, 1).astype(x_BTM.dtype)
    hidden_BTM = heard_BT1 & (time_BT[:, :, None] | bands_BM[:, None, :])
    return jnp.where(hidden_BTM, mean_B[:, None, None], x_BTM)


def _masks(key: Array, number: int, width: Array, length: Array, size: int) -> Array:
    """bool [size]: the union of `number` masks of 0 to `width` places within the first `length`."""
    for_width, for_place = jax.random.split(key)
    widths = jax.random.randint(for_width, (number,), 0, jnp.minimum(width, length) + 1)
    first = jax.random.randint(for_place, (number,), 0, length - widths + 1)
    places = jnp.arange(size)[None, :]
    return jnp.any((places >= first[:, None]) & (places < (first + widths)[:, None]), axis=0)
