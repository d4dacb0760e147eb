"""What all optimizers share: the update rule around an optax transformation, clipping, averaged parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array
from lm_jax.optim.groups import below, is_decayed, kind, map_axes, merge, select
from lm_jax.optim.schedules import Schedule, ScheduleFn

Params = dict[str, Any]  # nested dicts of arrays


class Optimizer(NamedTuple):
    """`init(params) -> state`; `update(grads, state, params, step) -> (new params, new state)`; step -> learning rate.

    `step` (int32 []) is the trainer's: the schedule has no counter of its own, so the learning rate that is logged is
    the one that was used, also after a skipped update. The state is a pytree of arrays, sharded as the parameters are.
    `frozen` is True for the parameters that are not trained, which have no state: their gradients need not be computed.
    """

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params, Array], tuple[Params, Any]]
    learning_rate: ScheduleFn
    frozen: Any = None  # a tree of bools; None: there are none


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig(Config):
    """Base of the optimizers: at step t every parameter p becomes

        p - lr(t) (direction + weight_decay p)

    where `direction` is what the optimizer makes of the gradient. Weight decay is decoupled (Loshchilov and Hutter
    2019, arXiv:1711.05101) and multiplied by the learning rate, as in PyTorch's AdamW. It applies to matrices and the
    output head, with `decay_embeddings` to the token embedding too, never to biases, norms and position tables. The balance bias
    of a router moves by `balance_rate` against the sign of its gradient instead (Wang et al. 2024, arXiv:2408.15664). All
    arithmetic is float32. Clipping is the train step's, which has the global norm anyway: `clip_by_norm`.

    `frozen` parts of the model ("embedding", "stack", "head", or paths further down) stay as they are, bit by bit.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    balance_rate: float = 1e-3
    frozen: tuple[str, ...] = ()

    def validate(self) -> None:
        """Raises `ConfigError` for a rate out of range."""
        check_positive(self, "learning_rate")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay={self.weight_decay} must not be negative")

    def transform(self, axes: Any) -> optax.GradientTransformation:
        """Float32 gradients to the directions above, given the parameters' logical axes. Every optimizer defines it."""
        raise NotImplementedError(f"{type(self).__name__} is no optimizer; use AdamW, Adafactor, Adagrad, Lion, Muon or SGD")

    def peaks(self, axes: Any) -> Any:
        """The tree of peak learning rates, one float per parameter."""
        return map_axes(lambda _: self.learning_rate, axes)

    def build(self, axes: Any, num_steps: int) -> Optimizer:
        """The optimizer of a run of `num_steps` for parameters with these logical `axes`.

        Raises `ConfigError` when the schedule does not fit `num_steps`, or for frozen parts that do not exist or are all.
        """
        if not self.frozen:
            return self._build(axes, num_steps)
        frozen = below(axes, self.frozen)
        trained = select(axes, frozen, False)
        if not trained:
            raise ConfigError(f"frozen={self.frozen} leaves nothing to train")
        inner = self._build(trained, num_steps)

        def update(grads: Params, state: Any, params: Params, step: Array) -> tuple[Params, Any]:
            new, state = inner.update(select(grads, frozen, False), state, select(params, frozen, False), step)
            return merge(new, select(params, frozen)), state

        return Optimizer(lambda params: inner.init(select(params, frozen, False)), update, inner.learning_rate, frozen)

    def _build(self, axes: Any, num_steps: int) -> Optimizer:
        factor = self.schedule.build(1.0, num_steps)
        transform, peaks = self.transform(axes), self.peaks(axes)
        decays = map_axes(lambda names: self.weight_decay if is_decayed(names, self.decay_embeddings) else 0.0, axes)
        balances = map_axes(lambda names: kind(names) == "balance", axes)

        def init(params: Params) -> Any:
            return transform.init(_float32(params))

        def update(grads: Params, state: Any, params: Params, step: Array) -> tuple[Params, Any]:
            directions, state = transform.update(_float32(grads), state, _float32(params))
            now = factor(step)

            def descend(p: Array, g: Array, direction: Array, peak: float, decay: float, balance: bool) -> Array:
                value = p.astype(jnp.float32)
                if balance:
                    return (value - self.balance_rate * jnp.sign(g.astype(jnp.float32))).astype(p.dtype)
                change = direction + decay * value if decay else direction
                return (value - peak * now * change).astype(p.dtype)

            return jax.tree.map(descend, params, grads, directions, peaks, decays, balances), state

        return Optimizer(init, update, self.schedule.build(self.learning_rate, num_steps))


def check_decay_rates(config: Config, *names: str) -> None:
    """Raises `ConfigError` for the first of the fields `names` that is not in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{name}={value} must be in [0, 1)")


def from_optax(transform: optax.GradientTransformation, momentum_dtype: str = "float32") -> optax.GradientTransformation:
    """optax's `transform` under strict dtype rules, the momentum `mu` of its state stored as `momentum_dtype`.

    optax promotes implicitly (b1 ** count, and with its own `mu_dtype` b1 * mu is rounded to that dtype).
    """

    def store(state: Any) -> Any:
        return state._replace(mu=optax.tree.cast(state.mu, jnp.dtype(momentum_dtype)))

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        with jax.numpy_dtype_promotion("standard"):
            directions, state = transform.update(grads, state._replace(mu=_float32(state.mu)), params)
        return directions, store(state)

    return optax.GradientTransformation(lambda params: store(transform.init(params)), update)


def clip_by_norm(grads: Params, norm: Array, limit: float) -> Params:
    """Gradients of global norm `norm` (float32 []) scaled down to `limit` where they exceed it.

    Pascanu et al. 2013, arXiv:1211.5063. The norm is an argument because the train step logs it: one pass less.
    """
    scale = limit / jnp.maximum(norm, limit)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def update_ema(ema: Params, params: Params, decay: float, step: Array, *, start: int = 0) -> Params:
    """The exponential moving average of the parameters after the update of `step` (int32 [], from 0).

    The decay grows as min(decay, (1 + t) / (10 + t)) with t = step - start, so that an average over few steps does not
    hang on to the initial parameters (as TensorFlow's ExponentialMovingAverage with `num_updates`); before `start` the
    average is a copy of the parameters.
    """
    t = jnp.asarray(step, jnp.float32) - start
    rate = 1 - jnp.where(t < 0, 0.0, jnp.minimum(decay, (1 + t) / (10 + t)))
    return jax.tree.map(lambda e, p: e + rate.astype(e.dtype) * (p.astype(e.dtype) - e), ema, params)


def _float32(tree: Params) -> Params:
    return optax.tree.cast(tree, jnp.float32)
