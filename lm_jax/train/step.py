"""The train step: fixed for every model and objective."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view, vary, varying
from lm_jax.core.param import Params, logical_axes, param_specs
from lm_jax.core.sharding import batch_specs
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.objectives.base import Objective
from lm_jax.optim.base import Optimizer, clip_by_norm, update_ema
from lm_jax.optim.groups import kind, map_axes


class TrainState(NamedTuple):
    """Everything that a step changes. A checkpoint is exactly this."""

    step: Array  # int32 []: steps taken, skipped ones included
    params: Params
    opt: Any
    ema: Params | None


@dataclasses.dataclass(kw_only=True)
class StepConfig(Config):
    """What a step does with a batch.

    `accumulate` micro-batches are run one after another and their gradients added: the same update as the whole batch, in
    less memory. `clip_norm` bounds the global gradient norm (Pascanu et al. 2013, arXiv:1211.5063). `ema_decay` keeps an
    exponential moving average of the parameters, used by evaluations and generation.
    """

    accumulate: int = 1
    clip_norm: float | None = 1.0
    ema_decay: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for values out of range."""
        if self.accumulate < 1:
            raise ConfigError(f"accumulate={self.accumulate} must be at least 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm={self.clip_norm} must be above 0; None turns clipping off")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must be in [0, 1); None turns the average off")


def init_state(params: Params, optimizer: Optimizer, config: StepConfig) -> TrainState:
    """The state before the first step."""
    ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    config: StepConfig,
) -> tuple[TrainState, dict[str, Array], Params]:
    """One update.

    Returns the new state, float32 scalars (every term of the objective as a mean over the whole batch, "grad_norm",
    "learning_rate", "finite"), and the gradient norm of every parameter (by layer where parameters are stacked).

    Dropout keys are `fold_in(key, step)`, so a step is a pure function of (state, batch, key). Where loss or gradient is not
    finite, "finite" is 0 and parameters, optimizer state and average stay as they were, bit by bit.
    """
    key = jax.random.fold_in(key, state.step)
    differentiate = functools.partial(gradients, graph=graph, objective=objective, accumulate=config.accumulate)
    grads, terms = differentiate(state.params, batch, key, frozen=optimizer.frozen)
    axes = logical_axes(nnx.merge(graph, state.params))
    squares = jax.tree.map(_square_sum, grads, axes)
    counted = map_axes(lambda names, square: 0.0 if kind(names) == "balance" else jnp.sum(square), axes, squares)
    grad_norm = jnp.sqrt(sum(jax.tree.leaves(counted)))
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(terms["loss"].value)
    if config.clip_norm is not None:
        grads = clip_by_norm(grads, grad_norm, config.clip_norm)
    params, opt = optimizer.update(grads, state.opt, state.params, state.step)
    ema = state.ema
    if ema is not None and config.ema_decay is not None:
        ema = update_ema(ema, params, config.ema_decay, state.step)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, opt, ema), (state.params, state.opt, state.ema))
    metrics = {name: term.value for name, term in terms.items()} | {
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
        "finite": finite.astype(jnp.float32),
    }
    return TrainState(state.step + 1, *new), metrics, jax.tree.map(jnp.sqrt, squares)


def gradients(
    params: Params,
    batch: Batch,
    key: Array,
    *,
    graph: nnx.GraphDef,
    objective: Objective,
    accumulate: int = 1,
    frozen: Any = None,
) -> tuple[Params, dict[str, Mean]]:
    """The gradient of the mean "loss" over the whole batch, sharded as the parameters are, and every term of the objective.

    Each device works on its rows in a local view; `accumulate` micro-batches are run one after another. The gradient is 0, and is
    not computed, where the tree of bools `frozen` says so.
    """
    local = functools.partial(_local_gradients, graph=graph, objective=objective, accumulate=accumulate, frozen=frozen)
    shards, whole = param_specs(graph, params), PartitionSpec()
    return local_view(local, (shards, batch_specs(batch), whole), (shards, whole))(params, batch, key)


def _local_gradients(
    params: Params, batch: Batch, key: Array, *, graph: nnx.GraphDef, objective: Objective, accumulate: int, frozen: Any
) -> tuple[Params, dict[str, Mean]]:
    """`gradients` of this device's parts.

    Sums are differentiated and divided by the total count at the end, so micro-batches of unequal weight count right.
    """

    def total(params: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Mean]]:
        if frozen is not None:
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
        terms = objective(nnx.merge(graph, params), batch, key=key)
        return terms["loss"].sum, terms

    grad = jax.grad(total, has_aux=True)
    if accumulate == 1:
        grads, terms = grad(params, batch, key)
    else:

        def body(carry, xs):
            return jax.tree.map(jnp.add, carry, grad(params, *xs)), None

        xs = (jax.tree.map(lambda x: _micro_batches(x, accumulate), batch), jax.random.split(key, accumulate))
        terms = jax.eval_shape(grad, params, *jax.tree.map(lambda x: x[0], xs))[1]
        no_grads = jax.tree.map(lambda p: vary(jnp.zeros_like(p), varying(p)), params)
        no_terms = jax.tree.map(lambda term: jnp.zeros(term.shape, term.dtype), terms)
        (grads, terms), _ = jax.lax.scan(body, (no_grads, no_terms), xs)
    scale = 1 / jnp.maximum(terms["loss"].count, 1e-30)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), terms


def _micro_batches(x: Array, parts: int) -> Array:
    """[B, ...] to [parts, B / parts, ...]; on any mesh micro-batch i has the same rows of the global batch."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _square_sum(g: Array, axes: tuple[str, ...]) -> Array:
    """float32 sum of squares: [L] (or [rounds, L]) for a parameter stacked over layers, else a scalar."""
    leading = sum(name in ("rounds", "layers") for name in axes)
    return jnp.sum(jnp.square(g.astype(jnp.float32)), axis=tuple(range(leading, g.ndim)))
