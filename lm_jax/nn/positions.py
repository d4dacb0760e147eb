"""How a model knows where a token stands: rotary embeddings, learned and sinusoidal tables."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import Init
from lm_jax.nn.rope_scaling import RopeScaling, unscaled


@dataclasses.dataclass(kw_only=True)
class RotaryConfig(Config):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    `fraction` of each head turns (the first part of it); the rest is left as it is (GPT-NeoX). Pairs are elements i and i + r/2
    of the r that turn (Llama), or with `interleaved` 2 i and 2 i + 1 (GPT-J, DeepSeek).
    """

    base: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a base of at most 1 or a fraction outside (0, 1]."""
        if self.base <= 1 or not 0 < self.fraction <= 1:
            raise ConfigError(f"base={self.base} must be above 1 and fraction={self.fraction} in (0, 1]")

    def rotate(self, x_BTNH: Array, positions_BT: Array, length: int) -> Array:
        """Turns pair i by `position * base ** (-2 i / r)`, or as `scaling` has it; same shape and dtype.

        `positions_BT` is int32 [B, T] or [1, T], `length` the number of tokens in a whole row, or of slots in the cache. Angles
        are taken in float32.
        """
        turned = int(x_BTNH.shape[-1] * self.fraction) // 2 * 2
        frequency = unscaled(self.base, turned) if self.scaling is None else self.scaling.frequencies(self.base, turned, length)
        frequency = jnp.asarray(frequency, jnp.float32)
        angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if self.scaling is not None and self.scaling.amplitude != 1.0:
            cos, sin = cos * self.scaling.amplitude, sin * self.scaling.amplitude
        x = x_BTNH[..., :turned].astype(jnp.float32)
        first, second = (x[..., 0::2], x[..., 1::2]) if self.interleaved else jnp.split(x, 2, axis=-1)
        parts = [first * cos - second * sin, second * cos + first * sin]
        y = jnp.stack(parts, axis=-1).reshape(x.shape) if self.interleaved else jnp.concatenate(parts, axis=-1)
        y = y.astype(x_BTNH.dtype)
        return jnp.concatenate([y, x_BTNH[..., turned:]], axis=-1) if turned < x_BTNH.shape[-1] else y


@dataclasses.dataclass(kw_only=True)
class PositionTableConfig(Config):
    """A table of position vectors that is added to the token embeddings.

    "learned" (GPT-2), or "sinusoidal" (Vaswani et al. 2017, arXiv:1706.03762, section 3.5): fixed, sines in the even and
    cosines in the odd columns. `offset` is the row of position 0 (2 in RoBERTa: the rows before it stand for padding).
    """

    kind: str = "learned"
    length: int = 1024
    offset: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown kind or an empty table."""
        check_choice("kind", self.kind, ("learned", "sinusoidal"))
        check_positive(self, "length")
        if not 0 <= self.offset < self.length:
            raise ConfigError(f"offset={self.offset} must be from 0 to below length={self.length}")

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "PositionTable":
        """The table of `length` positions of `width`."""
        return PositionTable(self, rngs, width, init)


class PositionTable(nnx.Module):
    """See `PositionTableConfig`."""

    def __init__(self, config: PositionTableConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        self.width = width
        shape, axes = (config.length, width), ("positions", "embed")
        self.table = param(rngs, init.embedding(), shape, axes) if config.kind == "learned" else None

    def __call__(self, positions_BT: Array, like: Array) -> Array:
        """Position vectors [B, T, D], to be added to `like`, for int32 positions [B, T] or [1, T]."""
        if self.table is None:
            table = jnp.asarray(sinusoids(self.config.length, self.width), like.dtype)
        else:
            table = weight(self.table, like)
        return table.at[positions_BT + self.config.offset if self.config.offset else positions_BT].get(mode="clip")


def sinusoids(length: int, width: int) -> np.ndarray:
    """float32 [length, width]: sin(p / 10000^(2i/width)) in column 2i, the cosine in column 2i + 1."""
    angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)[None, :]
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :width].astype(np.float32)
