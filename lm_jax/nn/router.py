"""Which experts each token goes to, and what keeps their load even."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum, part, vary, varying
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Aux, Mean
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.place import Place

ROW = ("sequence", "residual")
TOKENS = ("batch", *ROW)  # what splits the tokens of the residual stream


@dataclasses.dataclass(kw_only=True)
class RouterConfig(Config):
    """Token-choice routing (Shazeer et al. 2017, arXiv:1701.06538): each token goes to its `top_k` experts of highest score.

    | field | what | source |
    |---|---|---|
    | scores | "softmax" over the experts, or "sigmoid" of each | Mixtral, arXiv:2401.04088; DeepSeek-V3, arXiv:2412.19437 |
    | renormalize | the gates of a token sum to 1: with "softmax" one over the chosen experts only | Mixtral, gpt-oss |
    | scale | multiplies the gates | DeepSeek-V3: 2.5 |
    | bias | on the scores, before all else | gpt-oss, arXiv:2508.10925 |
    | groups, top_groups | the choice is among the experts of the `top_groups` best of as many equal groups; that of a group is | |
    |  | the sum of its two best scores | DeepSeek-V3, 2.1.2 |
    | load_balance | weight of E sum_e f_e P_e: f the share of choices, P the mean score; 1 where even | arXiv:2101.03961, eq. 4 |
    | balance_over | f and P of the "batch": all tokens of a micro-batch, on all devices; or of each "row" | DeepSeek-V3, eq. 17 |
    | z_loss | weight of the mean of logsumexp(logits)^2 | ST-MoE, arXiv:2202.08906, eq. 5 |
    | balance_bias | a bias for the choice only, moved against the load by `optimizer.balance_rate` | arXiv:2408.15664 |

    Scores are float32. Padding is not counted. With balance_over="batch" the loss depends on which rows make a micro-batch, of
    `step.accumulate` or of a pipeline; by "row" it is the same on any mesh.
    """

    top_k: int = 2
    scores: str = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    load_balance: float = 0.01
    balance_over: str = "batch"
    z_loss: float = 0.001
    balance_bias: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown score or a number out of range."""
        check_choice("scores", self.scores, ("softmax", "sigmoid"))
        check_choice("balance_over", self.balance_over, ("batch", "row"))
        check_positive(self, "top_k", "scale", "groups", "top_groups")
        if self.top_groups > self.groups:
            raise ConfigError(f"top_groups={self.top_groups} is above groups={self.groups}")
        if self.load_balance < 0 or self.z_loss < 0:
            raise ConfigError(f"load_balance={self.load_balance} and z_loss={self.z_loss} must not be negative")

    def build(self, rngs: nnx.Rngs, width: int, num_experts: int, init: Init) -> "Router":
        """The router among `num_experts`."""
        return Router(self, rngs, width, num_experts, init)


class Routing(NamedTuple):
    """Where the tokens of this device go."""

    experts: Array  # int32 [B, T, top_k], best first
    gates: Array  # float32 [B, T, top_k]; 0 at padding
    real: Array  # bool [B, T]: not padding


class Router(nnx.Module):
    """See `RouterConfig`."""

    def __init__(self, config: RouterConfig, rngs: nnx.Rngs, width: int, num_experts: int, init: Init):
        self.config = config
        self.matrix = param(rngs, init.linear(width), (width, num_experts), ("embed", "router"))
        self.bias = param(rngs, zeros, (num_experts,), ("router",)) if config.bias else None
        self.balance = param(rngs, zeros, (num_experts,), ("balance",)) if config.balance_bias else None

    def __call__(self, x_BTD: Array, place: Place) -> tuple[Routing, Aux]:
        """The routing of tokens [B, T, D] of the residual stream, and its losses.

        Metrics: "load_balance" and "router_z", the losses without weights; "load_max", that of the busiest expert over the mean.
        """
        config = self.config
        logits_BTE = project("BTD,DE->BTE", x_BTD.astype(jnp.float32), self.matrix)
        if self.bias is not None:
            logits_BTE = logits_BTE + weight(self.bias, logits_BTE)[None, None, :]
        scores_BTE = jax.nn.softmax(logits_BTE) if config.scores == "softmax" else jax.nn.sigmoid(logits_BTE)
        ranking = scores_BTE
        if self.balance is not None:
            bias = weight(self.balance, logits_BTE)
            ranking = ranking + bias[None, None, :]
        _, experts = jax.lax.top_k(self._among_groups(jax.lax.stop_gradient(ranking)), config.top_k)
        real = jnp.ones(experts.shape[:2], bool)
        if place.segments_BT is not None:
            real = jnp.broadcast_to(part(place.segments_BT, "residual", 1) > 0, real.shape)
        if place.rows_B is not None:
            real = real & (place.rows_B >= 0)[:, None]
        real = vary(real, varying(experts))
        gates = jnp.take_along_axis(scores_BTE, experts, axis=-1)
        if config.renormalize:
            gates = gates / jnp.maximum(jnp.sum(gates, axis=-1, keepdims=True), 1e-20)
        gates = jnp.where(real[:, :, None], config.scale * gates, 0.0)
        chosen_BE = _count(experts, real, logits_BTE.shape[-1])
        if self.balance is not None:
            gates = _with_load(gates, bias, jnp.sum(chosen_BE, axis=0))
        return Routing(experts, gates, real), self._aux(logits_BTE, scores_BTE, chosen_BE, real)

    def _among_groups(self, ranking_BTE: Array) -> Array:
        """The ranking, with none for the experts of groups that are not chosen."""
        if self.config.groups == self.config.top_groups:
            return ranking_BTE
        by_group = ranking_BTE.reshape(*ranking_BTE.shape[:2], self.config.groups, -1)
        best = jax.lax.top_k(by_group, min(2, by_group.shape[-1]))[0].sum(axis=-1)
        _, chosen = jax.lax.top_k(best, self.config.top_groups)
        kept = jnp.any(jnp.arange(self.config.groups)[None, None, :, None] == chosen[:, :, None, :], axis=-1)
        return jnp.where(kept[..., None], by_group, -jnp.inf).reshape(ranking_BTE.shape)

    def _aux(self, logits_BTE: Array, scores_BTE: Array, chosen_BE: Array, real: Array) -> Aux:
        config, num_experts = self.config, logits_BTE.shape[-1]
        shares = scores_BTE / jnp.sum(scores_BTE, axis=-1, keepdims=True)
        z = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
        sums = (chosen_BE, jnp.sum(jnp.where(real[:, :, None], shares, 0.0), axis=1), jnp.sum(jnp.where(real, z, 0.0), axis=1))
        sums = all_sum((*sums, jnp.sum(real, axis=1, dtype=jnp.float32)), *ROW)
        rows, whole = sums, all_sum(jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums), "batch")

        def balance(chosen_GE: Array, shares_GE: Array, _: Array, count_G: Array) -> Array:
            """The sum over the tokens of each group."""
            load_GE = chosen_GE * num_experts / jnp.maximum(jnp.sum(chosen_GE, axis=1, keepdims=True), 1.0)
            return jnp.sum(load_GE * shares_GE)

        by_row = config.balance_over == "row"
        balance_sum = all_sum(balance(*rows), "batch") if by_row else balance(*whole)
        chosen_E, _, z_sum, count = (x[0] for x in whole)
        load_max = jnp.max(chosen_E) * num_experts / jnp.maximum(jnp.sum(chosen_E), 1.0)
        metrics = {"load_balance": balance_sum, "router_z": z_sum, "load_max": load_max * count}
        loss = config.load_balance * balance_sum + config.z_loss * z_sum
        return Aux(loss, {name: Mean(value, count) for name, value in metrics.items()})


def _count(experts: Array, real: Array, num_experts: int) -> Array:
    """float32 [B, E]: how often each expert is chosen by the tokens of a row that are `real`."""
    times = jnp.broadcast_to(real[:, :, None], experts.shape).astype(jnp.float32)
    none = vary(jnp.zeros((len(experts), num_experts), jnp.float32), varying(experts))
    return none.at[jnp.arange(len(experts))[:, None, None], experts].add(times)


@jax.custom_vjp
def _with_load(gates: Array, bias_E: Array, chosen_E: Array) -> Array:
    """`gates`. The gradient of the bias is how far each expert's load is above the mean, whose sign the optimizer goes against:
    so the load of all micro-batches, devices and stages is summed as every gradient is."""
    return gates


def _with_load_forward(gates, bias_E, chosen_E):
    return gates, chosen_E


def _with_load_backward(chosen_E, g):
    return g, chosen_E - jnp.mean(chosen_E), jnp.zeros_like(chosen_E)


_with_load.defvjp(_with_load_forward, _with_load_backward)
