"""Normalisation layers. Statistics are taken in float32 whatever the dtype of the input."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import ones, zeros


@dataclasses.dataclass(kw_only=True)
class NormConfig(Config):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) or LayerNorm (Ba et al. 2016, arXiv:1607.06450)."""

    kind: str = "rms"  # "rms" or "layer"
    epsilon: float = 1e-6
    scale: bool = True
    bias: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown kind or a non-positive epsilon."""
        check_choice("kind", self.kind, ("rms", "layer"))
        check_positive(self, "epsilon")

    def build(self, rngs: nnx.Rngs, size: int, axis: str = "embed") -> "Norm":
        """The layer, over a last dimension of `size` elements named `axis`."""
        return Norm(self, rngs, size, axis)


class Norm(nnx.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over the last axis; RMSNorm leaves the mean out."""

    def __init__(self, config: NormConfig, rngs: nnx.Rngs, size: int, axis: str):
        self.config = config
        self.scale = param(rngs, ones, (size,), (axis,)) if config.scale else None
        self.bias = param(rngs, zeros, (size,), (axis,)) if config.bias else None

    def __call__(self, x: Array) -> Array:
        """Same shape and dtype as `x`, any number of leading axes."""
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.config.epsilon)
        if self.scale is not None:
            y = y * _expand(self.scale, y)
        if self.bias is not None:
            y = y + _expand(self.bias, y)
        return y.astype(x.dtype)


def _expand(parameter: nnx.Param, y: Array) -> Array:
    value = weight(parameter, y)
    return value.reshape((1,) * (y.ndim - 1) + value.shape)
