"""Normalisation layers. Statistics are taken in float32 whatever the dtype of the input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.local import all_sum, mesh_axes, ways
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import ones, zeros


@dataclasses.dataclass(kw_only=True)
class NormConfig(Config):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) or LayerNorm (Ba et al. 2016, arXiv:1607.06450).

    With `zero_centered` the parameter is what the scale has above 1 (Gemma), so that weight decay pulls the scale to 1.
    """

    kind: str = "rms"  # "rms" or "layer"
    epsilon: float = 1e-6
    scale: bool = True
    bias: bool = False
    zero_centered: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown kind or a non-positive epsilon."""
        check_choice("kind", self.kind, ("rms", "layer"))
        check_positive(self, "epsilon")

    def build(self, rngs: nnx.Rngs, *shape: int, axes: tuple[str, ...] = ("embed",)) -> "Norm":
        """The layer, over the last dimensions, of this `shape` and with these logical axes."""
        return Norm(self, rngs, shape, axes)


class Norm(nnx.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over the last dimensions; RMSNorm leaves the mean out."""

    def __init__(self, config: NormConfig, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...]):
        self.config = config
        self.axes = axes
        self.scale = param(rngs, zeros if config.zero_centered else ones, shape, axes) if config.scale else None
        self.bias = param(rngs, zeros, shape, axes) if config.bias else None

    def __call__(self, x: Array) -> Array:
        """Same shape and dtype as `x`, any number of leading axes."""
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - self._mean(y)
        y = y * jax.lax.rsqrt(self._mean(jnp.square(y)) + self.config.epsilon)
        if self.scale is not None:
            scale = _expand(self.scale, y)
            y = y * (1.0 + scale if self.config.zero_centered else scale)
        if self.bias is not None:
            y = y + _expand(self.bias, y)
        return y.astype(x.dtype)

    def _mean(self, y: Array) -> Array:
        mean = jnp.mean(y, axis=tuple(range(-len(self.axes), 0)), keepdims=True)
        split = [name for name in self.axes if name != "embed" and mesh_axes(name)]  # "embed": whole in activations
        return all_sum(mean, *split) / math.prod(map(ways, split)) if split else mean


def _expand(parameter: nnx.Param, y: Array) -> Array:
    value = weight(parameter, y)
    return value.reshape((1,) * (y.ndim - value.ndim) + value.shape)
