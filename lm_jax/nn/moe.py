"""The mixture of experts: a feed-forward layer of which every token uses a few parts."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum, exchange, gather_for, index, overlap, settle, sum_into, vary, varying, ways
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Aux, Mean
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.kernels.grouped import GROUPED
from lm_jax.nn.linear import project, project_groups
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.place import Place
from lm_jax.nn.router import TOKENS, RouterConfig, Routing


@dataclasses.dataclass(kw_only=True)
class MoEConfig(Config):
    """`num_experts` layers of the form `expert`, of which each token uses those that `router` chooses (arXiv:1701.06538).

    | field | what | source |
    |---|---|---|
    | capacity_factor | None: every choice is computed ("dropless", MegaBlocks, arXiv:2211.15841) | |
    |  | else each expert takes this many times its even share of a row's choices, earlier tokens and first choices first; | |
    |  | the rest is dropped. A row that is split over devices counts as several | GShard, arXiv:2006.16668, 3.2 |
    | room | dropless: a device takes this many times the even share from each other; what later tokens want above is dropped. | |
    |  | None: all | |
    | shared | a feed-forward layer that every token uses too | DeepSeekMoE, arXiv:2401.06066 |
    | shared_gate | times the sigmoid of a projection of the token | Qwen2-MoE, arXiv:2407.10671 |
    | implementation | of the dropless products: "auto", "ragged" or "blocks" (`nn/kernels/grouped.py`) | |

    Where experts are split over devices that hold different tokens, with a capacity or room the tokens travel to their experts
    and back (all-to-all); dropless without a bound, each device gathers the tokens of all and adds up what its experts make of
    them: right for few devices.
    """

    num_experts: int = 8
    expert: MLPConfig = dataclasses.field(default_factory=MLPConfig)
    router: RouterConfig = dataclasses.field(default_factory=RouterConfig)
    capacity_factor: float | None = None
    room: float | None = None
    shared: MLPConfig | None = None
    shared_gate: bool = False
    implementation: str = "auto"

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or choices that exclude each other."""
        check_positive(self, "num_experts")
        check_choice("implementation", self.implementation, ("auto", *GROUPED))
        for name in ("capacity_factor", "room"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        router = self.router
        if self.num_experts % router.groups:
            raise ConfigError(f"num_experts={self.num_experts} is not divisible by router.groups={router.groups}")
        if router.top_k > (num := self.num_experts // router.groups * router.top_groups):
            raise ConfigError(f"router.top_k={router.top_k} is above the {num} experts to choose from")
        if self.shared_gate and self.shared is None:
            raise ConfigError("shared_gate=True is for a shared layer, and there is none")
        if self.capacity_factor is not None and self.room is not None:
            raise ConfigError("room is for dropless experts: give it or capacity_factor, not both")

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "MoE":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return MoE(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int) -> int:
        """Matrix-product FLOPs of one forward pass over one token: of the experts that it uses, the router and what is shared."""
        shared = 0 if self.shared is None else self.shared.flops_per_token(width) + (2 * width if self.shared_gate else 0)
        return self.router.top_k * self.expert.flops_per_token(width) + 2 * width * self.num_experts + shared

    def capacity(self, length: int) -> int:
        """How many tokens of a row (or of the part of it on a device) of `length` an expert takes."""
        assert self.capacity_factor is not None
        return min(length, math.ceil(self.capacity_factor * length * self.router.top_k / self.num_experts))


class MoE(nnx.Module):
    """See `MoEConfig`."""

    def __init__(self, config: MoEConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, F, E = width, config.expert.hidden, config.num_experts
        into, out = ("experts", "expert_embed", "expert_mlp"), ("experts", "expert_mlp", "expert_embed")
        self.router = config.router.build(rngs, width, E, init)
        self.up = param(rngs, init.linear(D), (E, D, F), into)
        self.gate = param(rngs, init.linear(D), (E, D, F), into) if config.expert.gated else None
        self.down = param(rngs, init.output(F, num_layers), (E, F, D), out)
        biases, gated = config.expert.bias, config.expert.bias and config.expert.gated
        self.up_bias = param(rngs, zeros, (E, F), ("experts", "expert_mlp")) if biases else None
        self.gate_bias = param(rngs, zeros, (E, F), ("experts", "expert_mlp")) if gated else None
        self.down_bias = param(rngs, zeros, (E, D), ("experts", "expert_embed")) if biases else None
        self.shared = None if config.shared is None else config.shared.build(rngs, width, init, num_layers)
        self.shared_gate = param(rngs, init.linear(D), (D, 1), ("embed", "router")) if config.shared_gate else None

    def __call__(self, x_BTD: Array, place: Place) -> tuple[Array, Aux]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; the router's `Aux` with "dropped", the share of choices not computed."""
        routing, aux = self.router(x_BTD, place)
        compute = self._dropless if self.config.capacity_factor is None else self._with_capacity
        y_BTD, dropped = compute(x_BTD, routing)
        wanted = all_sum(jnp.sum(routing.real, dtype=jnp.float32), *TOKENS) * self.config.router.top_k
        aux = aux + Aux(jnp.zeros((), jnp.float32), {"dropped": Mean(dropped, wanted)})
        if self.shared is not None:
            shared, more = self.shared(x_BTD, place)
            if self.shared_gate is not None:
                shared = shared * jax.nn.sigmoid(project("BTD,DE->BTE", x_BTD, self.shared_gate))
            y_BTD, aux = y_BTD + shared, aux + more
        return y_BTD, aux

    def _with_capacity(self, x_BTD: Array, routing: Routing) -> tuple[Array, Array]:
        """(what the experts make of the choices that fit, how many did not)."""
        (B, T, D), E, k = x_BTD.shape, self.config.num_experts, self.config.router.top_k
        C, own = self.config.capacity(T), E // ways("experts")
        travel = overlap("experts", *TOKENS) > 1
        # The choices of a row in order of precedence: the first ones of all tokens, then the second ones.
        choices_BA = jnp.where(routing.real[:, :, None], routing.experts, E).swapaxes(1, 2).reshape(B, k * T)
        queue_BA = jax.vmap(functools.partial(_places_in_queues, num_queues=E))(choices_BA)
        queue_nk = queue_BA.reshape(B, k, T).swapaxes(1, 2).reshape(B * T, k)
        real_n1, row_n1 = routing.real.reshape(B * T, 1), jnp.arange(B * T, dtype=jnp.int32)[:, None] // T
        fits_nk = (queue_nk < C) & real_n1
        slots_nk = (routing.experts.reshape(B * T, k) * B + row_n1) * C + queue_nk
        slots_nk = jnp.where(fits_nk, slots_nk, E * B * C)
        x_ECD = _to_slots(x_BTD.reshape(B * T, D), slots_nk, E * B * C).reshape(E, B * C, D)
        if travel:
            x_ECD = exchange(x_ECD, "experts", 0, 1)
        else:
            first = index("experts") * own
            x_ECD = jax.lax.dynamic_slice_in_dim(x_ECD, first, own, 0)
            slots_nk = _within(slots_nk - first * B * C, own * B * C)
        x_ECD = gather_for(x_ECD, "expert_mlp", 1, *TOKENS)

        def product(x: Array, matrix: nnx.Param, bias: nnx.Param | None, axes: str) -> Array:
            y = project(f"EC{axes[0]},E{axes}->EC{axes[1]}", x, matrix)
            return y if bias is None else y + self._bias(bias, y)[:, None, :]

        y_ECD = self._experts(product, x_ECD)
        y_ECD = sum_into(y_ECD, "expert_mlp", 1, *TOKENS)
        y_ECD = exchange(y_ECD, "experts", 1, 0) if travel else y_ECD
        y_nD = _from_slots(y_ECD.reshape(-1, D), slots_nk, routing.gates.reshape(B * T, k))
        y_nD = y_nD if travel else all_sum(y_nD, "experts")
        return y_nD.reshape(B, T, D), all_sum(jnp.sum(real_n1 & ~fits_nk, dtype=jnp.float32), *TOKENS)

    def _dropless(self, x_BTD: Array, routing: Routing) -> tuple[Array, Array]:
        """(what the experts make of all choices, how many found no room)."""
        (B, T, D), E, k = x_BTD.shape, self.config.num_experts, self.config.router.top_k
        own, room = E // ways("experts"), self.config.room
        travel = room is not None and overlap("experts", *TOKENS) > 1
        experts_nk = jnp.where(routing.real[:, :, None], routing.experts, E).reshape(B * T, k)
        x_nD, gates_nk = x_BTD.reshape(B * T, D), routing.gates.reshape(B * T, k)
        if not travel:
            x_nD, gates_nk, experts_nk = (gather_for(x, "experts", 0, *TOKENS) for x in (x_nD, gates_nk, experts_nk))
            experts_nk = _within(experts_nk - index("experts") * own, own)
        hosts_nk, num_hosts = experts_nk // own, ways("experts") if travel else 1  # host `num_hosts`: nobody here
        wanted_nk, num_rows = hosts_nk < num_hosts, len(x_nD) * min(k, own)
        fits_nk = wanted_nk
        if room is not None:
            num_rows = min(num_rows, math.ceil(room * len(x_nD) * k / ways("experts")))
            queue_nk = _places_in_queues(hosts_nk.reshape(-1), num_hosts).reshape(-1, k)
            fits_nk = wanted_nk & (queue_nk < num_rows)
        if travel:
            slots_nk = jnp.where(fits_nk, hosts_nk * num_rows + queue_nk, num_hosts * num_rows)
            guests = _choices(slots_nk, num_hosts * num_rows)
            guests = (experts_nk % own).reshape(-1).at[guests].get(mode="fill", fill_value=own)
            x_SD = exchange(_to_slots(x_nD, slots_nk, num_hosts * num_rows), "experts", 0, 0)
            guests_S1 = exchange(guests, "experts", 0, 0)[:, None]
            y_SD = self._grouped(x_SD, guests_S1, jnp.ones_like(guests_S1, jnp.float32), len(x_SD))
            y_nD = _from_slots(exchange(y_SD, "experts", 0, 0), slots_nk, gates_nk)
        else:
            y_nD = self._grouped(x_nD, jnp.where(fits_nk, experts_nk, own), gates_nk, num_rows)
            y_nD = sum_into(y_nD, "experts", 0, *TOKENS)
        return y_nD.reshape(B, T, D), all_sum(jnp.sum(wanted_nk & ~fits_nk, dtype=jnp.float32), *TOKENS, "experts")

    def _grouped(self, x_nD: Array, experts_nk: Array, gates_nk: Array, num_rows: int) -> Array:
        """[n, D]: what those of the experts [n, k] that are on this device (others have a higher number) make of the tokens.

        There are at most `num_rows` such choices.
        """
        own, split = self.config.num_experts // ways("experts"), overlap("expert_mlp", *TOKENS)
        x_nD, experts_nk, gates_nk = (gather_for(x, "expert_mlp", 0, *TOKENS) for x in (x_nD, experts_nk, gates_nk))
        num_rows, k = num_rows * split, experts_nk.shape[1]
        order_A = jnp.argsort(experts_nk.reshape(-1), stable=True)
        slots_nk = _within(jnp.where(experts_nk < own, _inverse(order_A).reshape(-1, k), num_rows), num_rows)
        keys_A, numbers = experts_nk.reshape(-1)[order_A], jnp.arange(own, dtype=experts_nk.dtype)
        sizes_E = jnp.diff(jnp.searchsorted(keys_A, numbers, side="right").astype(jnp.int32), prepend=0)
        x_MD = _to_slots(x_nD, slots_nk, num_rows)
        expert_M = jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(num_rows), side="right")

        def product(x: Array, matrix: nnx.Param, bias: nnx.Param | None, axes: str) -> Array:
            y = project_groups(x, sizes_E, matrix, self.config.implementation)
            return y if bias is None else y + self._bias(bias, y).at[expert_M].get(mode="clip")

        y_MD = self._experts(product, x_MD)
        return sum_into(_from_slots(y_MD, slots_nk, gates_nk), "expert_mlp", 0, *TOKENS)

    def _experts(self, product: Callable[[Array, nnx.Param, nnx.Param | None, str], Array], x: Array) -> Array:
        up = product(x, self.up, self.up_bias, "DF")
        gate = None if self.gate is None else product(x, self.gate, self.gate_bias, "DF")
        return product(self.config.expert.act(up, gate), self.down, self.down_bias, "FD")

    def _bias(self, bias: nnx.Param, like: Array) -> Array:
        """[E, ...]; where the widths of experts are split, the first device adds that of the output, which is then summed."""
        value = weight(bias, like)
        return jnp.where(index("expert_mlp") == 0, value, 0) if bias is self.down_bias else value


def _places_in_queues(queues_A: Array, num_queues: int) -> Array:
    """int32 [A]: how many before element i are in the same queue, for those of a number below `num_queues`."""
    order = jnp.argsort(queues_A, stable=True)
    starts = jnp.searchsorted(queues_A[order], jnp.arange(num_queues, dtype=queues_A.dtype)).astype(jnp.int32)
    return _inverse(order) - starts.at[queues_A].get(mode="clip")


def _inverse(permutation_A: Array) -> Array:
    """int32: `_inverse(p)[p[i]] == i`."""
    places = jnp.arange(len(permutation_A), dtype=jnp.int32)
    return vary(jnp.zeros_like(places), varying(permutation_A)).at[permutation_A].set(places, unique_indices=True)


def _within(slots: Array, num_slots: int) -> Array:
    """`slots`, with `num_slots` (none) for those outside [0, num_slots)."""
    return jnp.where((slots >= 0) & (slots < num_slots), slots, num_slots)


def _choices(slots_nk: Array, num_slots: int) -> Array:
    """int32 [num_slots]: which of the n x k choices has a slot; n x k for none."""
    choices = jnp.arange(slots_nk.size, dtype=jnp.int32)
    empty = vary(jnp.full(num_slots, slots_nk.size, jnp.int32), varying(slots_nk))
    return empty.at[slots_nk.reshape(-1)].set(choices, mode="drop")


def _to_slots(x_nD: Array, slots_nk: Array, num_slots: int) -> Array:
    """[num_slots, D]: each token in the slots of its choices (`num_slots`: in none), 0 elsewhere."""
    return _rows(x_nD, _choices(slots_nk, num_slots) // slots_nk.shape[1], slots_nk, varying(x_nD))


def _from_slots(y_SD: Array, slots_nk: Array, gates_nk: Array) -> Array:
    """[n, D]: the sum of what stands in the slots of a token's choices, times their gates."""
    rows = _rows(y_SD, slots_nk.reshape(-1), _choices(slots_nk, len(y_SD))[:, None], varying(y_SD))
    y_nkD = rows.reshape(*slots_nk.shape, -1).astype(jnp.float32)
    return jnp.sum(y_nkD * gates_nk[:, :, None], axis=1).astype(y_SD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rows(x_nD: Array, index_m: Array, inverse_nj: Array, own: frozenset[str]) -> Array:
    """[m, D]: row index[i] of `x_nD`, or 0 where there is none.

    `inverse_nj` has the up to j places where each row goes: the gradient is read from there, not scattered. `own` are the axes
    along which x differs."""
    return x_nD.at[index_m].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _rows_forward(x_nD, index_m, inverse_nj, own):
    return _rows(x_nD, index_m, inverse_nj, own), inverse_nj


def _rows_backward(own, inverse_nj, g_mD):
    parts = g_mD.at[inverse_nj].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    dx = jnp.sum(parts, axis=1, dtype=jnp.float32).astype(g_mD.dtype)
    return settle(dx, own), None, None


_rows.defvjp(_rows_forward, _rows_backward)
