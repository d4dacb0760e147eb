"""Adafactor."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm_jax.core.config import check_positive
from lm_jax.core.types import Array
from lm_jax.optim.base import OptimizerConfig, Params, check_decay_rates
from lm_jax.optim.groups import Axes, map_axes, matrix_dims, num_batch


class AdafactorState(NamedTuple):
    """`moments`: for each parameter {"full": v} or {"rows": .., "columns": ..}, plus "momentum" where it is used."""

    count: Array  # int32 []
    moments: Params


@dataclasses.dataclass(kw_only=True)
class Adafactor(OptimizerConfig):
    """Adam's second moment kept as one vector per row and one per column (Shazeer and Stern 2018, arXiv:1804.04235).

    With R, C the means over columns and rows of g^2 + `eps`, averaged in time with decay 1 - t^-`decay_exponent`:
    u = g / sqrt(R C / mean(R)), divided by max(1, rms(u) / `clip_threshold`), times max(`min_scale`, rms(p)) where
    `scale_by_parameter`: the learning rate is then relative to the size of the parameter. `momentum` averages u.

    A matrix is factored where both its sides are at least `min_factored`; other parameters keep the full second moment.
    """

    learning_rate: float = 1e-2
    decay_exponent: float = 0.8
    clip_threshold: float = 1.0
    scale_by_parameter: bool = True
    min_scale: float = 1e-3
    momentum: float | None = None
    min_factored: int = 128
    eps: float = 1e-30

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range."""
        super().validate()
        check_positive(self, "decay_exponent", "clip_threshold", "min_scale", "min_factored", "eps")
        if self.momentum is not None:
            check_decay_rates(self, "momentum")

    # optax.adafactor sees shapes, not axes: in a stack of layers it would factor the two largest dimensions of an
    # (embed, heads, head_dim) matrix, perhaps layers among them, and share one rms over all layers.
    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""

        def init(params: Params) -> AdafactorState:
            moments = map_axes(lambda names, p: self._zeros(p, names), axes, params)
            return AdafactorState(jnp.zeros((), jnp.int32), moments)

        def update(grads: Params, state: AdafactorState, params: Params | None = None) -> tuple[Params, AdafactorState]:
            assert params is not None
            count = state.count + 1
            decay = 1 - count.astype(jnp.float32) ** -self.decay_exponent
            results = map_axes(lambda names, *leaves: self._direction(*leaves, names, decay), axes, grads, state.moments, params)
            directions, moments = (map_axes(lambda _, r, i=i: r[i], axes, results) for i in (0, 1))
            return directions, AdafactorState(count, moments)

        return optax.GradientTransformation(init, update)

    def _zeros(self, p: Array, axes: Axes) -> dict[str, Array]:
        moments = {name: jnp.zeros_like(v) for name, v in self._second_moments(p, axes).items()}
        return moments if self.momentum is None else moments | {"momentum": jnp.zeros_like(p)}

    def _second_moments(self, g: Array, axes: Axes) -> dict[str, Array]:
        """g^2 as it is kept: whole, or as means over columns and rows with these dimensions kept as 1."""
        square, dims = jnp.square(g) + self.eps, matrix_dims(axes)
        if dims is None:
            return {"full": square}
        rows, columns = tuple(range(dims.batch, dims.split)), tuple(range(dims.split, g.ndim))
        if min(math.prod(g.shape[i] for i in side) for side in (rows, columns)) < self.min_factored:
            return {"full": square}
        return {
            "rows": jnp.mean(square, columns, keepdims=True),
            "columns": jnp.mean(square, rows, keepdims=True),
        }

    def _direction(self, g: Array, moments: dict[str, Array], p: Array, axes: Axes, decay: Array) -> tuple[Array, dict[str, Array]]:
        fresh = self._second_moments(g, axes)
        new = {name: decay * moments[name] + (1 - decay) * v for name, v in fresh.items()}
        within = tuple(range(num_batch(axes), g.ndim))  # every layer has statistics of its own
        if "full" in new:
            u = g * jax.lax.rsqrt(new["full"])
        else:
            mean = jnp.mean(new["rows"], within, keepdims=True)
            u = g * jax.lax.rsqrt(new["rows"] / mean) * jax.lax.rsqrt(new["columns"])
        u = u / jnp.maximum(1.0, _rms(u, within) / self.clip_threshold)
        if self.scale_by_parameter:
            u = u * jnp.maximum(_rms(p, within), self.min_scale)
        if self.momentum is not None:
            u = new["momentum"] = self.momentum * moments["momentum"] + (1 - self.momentum) * u
        return u, new


def _rms(x: Array, dims: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), dims, keepdims=True))
