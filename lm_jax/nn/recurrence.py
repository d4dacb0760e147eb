"""What recurrent mixers share: where a document begins, and a short convolution before the recurrence."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.local import whole_row
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.place import Place


def starts(place: Place) -> Array:
    """bool [B, T] (or [1, T]) for whole rows: where a document begins, and nothing is remembered of what was before.

    Every token of padding at the left of a prompt begins one.
    """
    begins = whole_row(place.positions_BT) == 0
    if place.segments_BT is None:
        return begins
    segments_BT = whole_row(place.segments_BT)
    return begins | jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))


@dataclasses.dataclass(kw_only=True)
class ConvolutionConfig(Config):
    """y_t = sum over j below `kernel` of weight_j x_{t-j}, for each channel, within a document."""

    kernel: int = 4
    bias: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for an empty kernel."""
        check_positive(self, "kernel")

    def build(self, rngs: nnx.Rngs, num_heads: int, size: int, heads: str, init: Init) -> "Convolution":
        """The layer for `num_heads` heads of `size` channels, whose logical axis is `heads`."""
        return Convolution(self, rngs, num_heads, size, heads, init)


class Convolution(nnx.Module):
    """See `ConvolutionConfig`. Its cache is the last `kernel` - 1 inputs of the document, 0 where it has fewer."""

    def __init__(self, config: ConvolutionConfig, rngs: nnx.Rngs, num_heads: int, size: int, heads: str, init: Init):
        self.config = config
        shape, axes = (num_heads, size), (heads, "head_dim")
        self.matrix = param(rngs, init.linear(config.kernel), (config.kernel, *shape), ("kernel", *axes))
        self.bias = param(rngs, zeros, shape, axes) if config.bias else None

    def __call__(self, x_BTNH: Array, starts_BT: Array, past: Array | None) -> tuple[Array, Array]:
        """[B, T, N, H] in its dtype, and the new cache [B, kernel - 1, N, H]; `past` None is that of a row's start."""
        (B, T, N, H), K = x_BTNH.shape, self.config.kernel
        if past is None:
            past = jnp.zeros((B, K - 1, N, H), x_BTNH.dtype)
        matrix = weight(self.matrix, x_BTNH)[::-1]
        inputs = jnp.concatenate([past.astype(x_BTNH.dtype), x_BTNH], axis=1)
        number = jnp.cumsum(jnp.pad(starts_BT, ((0, 0), (K - 1, 0))), axis=1)  # of the document, 0 in the cache
        y_BTNH = jnp.zeros_like(x_BTNH)
        for j in range(K):
            same = (number[:, j : j + T] == number[:, K - 1 :])[:, :, None, None]
            y_BTNH += jnp.where(same, inputs[:, j : j + T], 0) * matrix[j][None, None]
        if self.bias is not None:
            y_BTNH = y_BTNH + weight(self.bias, y_BTNH)[None, None]
        last = (number[:, T:] == number[:, -1:])[:, :, None, None]
        return y_BTNH, jnp.where(last, inputs[:, T:], 0)
