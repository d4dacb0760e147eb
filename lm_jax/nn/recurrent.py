"""LSTM and GRU: a recurrence whose every step needs all of the state before it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, own_tokens, part, vary, varying, whole_row
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.place import CacheInfo, Place
from lm_jax.nn.recurrence import starts

State = tuple[Array, ...]  # float32 [B, H] each; the first is the output


def lstm(x_BGH: Array, r_BGH: Array, state: State) -> State:
    """Gates in the order input, forget, candidate, output (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""
    i, f, g, o = jnp.moveaxis(x_BGH + r_BGH, 1, 0)
    cell = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru(x_BGH: Array, r_BGH: Array, state: State) -> State:
    """Gates in the order reset, update, candidate (Cho et al. 2014, arXiv:1406.1078; the reset gate after the product)."""
    r, z = jnp.moveaxis(jax.nn.sigmoid(x_BGH[:, :2] + r_BGH[:, :2]), 1, 0)
    candidate = jnp.tanh(x_BGH[:, 2] + r * r_BGH[:, 2])
    return ((1 - z) * candidate + z * state[0],)


class Cell(NamedTuple):
    """A step, of how many gates and how many states, and which gate is the one that forgets (of an LSTM)."""

    step: Callable[[Array, Array, State], State]
    gates: int
    states: int
    forget: int | None


CELLS = {"lstm": Cell(lstm, 4, 2, 1), "gru": Cell(gru, 3, 1, None)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(step: Callable, unroll: int, x: Array, matrix: Array, bias: Array, starts_TB: Array, state: State) -> Array:
    """State after state: `state = step(x[t], state[0] @ matrix + bias, state)`, with 0 for the state before where a row starts.

    The gradient of the matrix is one product over all steps, not one at each.

    Args:
      x: float32 [T, B, G, H].
      matrix: [H, G, H], in the dtype of its products.
      bias: float32 [G, H].
      state: before the first step.

    Returns:
      All states, float32 [T, B, H] each.
    """
    return _recurrence_forward(step, unroll, x, matrix, bias, starts_TB, state)[0]


def _kept(state: State, starts_B: Array) -> State:
    return tuple(jnp.where(starts_B[:, None], 0, s) for s in state)


def _recurrence_forward(step, unroll, x, matrix, bias, starts_TB, state):
    def body(state, xs):
        x_BGH, starts_B = xs
        state = _kept(state, starts_B)
        product = jnp.einsum("BH,HGK->BGK", state[0].astype(matrix.dtype), matrix, preferred_element_type=jnp.float32)
        r_BGH = product + bias[None]
        state = step(x_BGH, r_BGH, state)
        return state, (state, r_BGH)

    _, (states, r) = jax.lax.scan(body, state, (x, starts_TB), unroll=unroll)
    return states, (x, r, matrix, starts_TB, state, states)


def _recurrence_backward(step, unroll, saved, grads):
    x, r, matrix, starts_TB, first, states = saved
    before = tuple(jnp.concatenate([f[None], s[:-1]]) for f, s in zip(first, states, strict=True))
    before = tuple(jnp.where(starts_TB[:, :, None], 0, s) for s in before)

    def body(later, xs):
        x_BGH, r_BGH, state, starts_B, grad = xs
        grad = jax.tree.map(jnp.add, later, grad)
        dx, dr, earlier = jax.vjp(step, x_BGH, r_BGH, state)[1](grad)
        product = jnp.einsum("BGK,HGK->BH", dr.astype(matrix.dtype), matrix, preferred_element_type=jnp.float32)
        return _kept((earlier[0] + product, *earlier[1:]), starts_B), (dx, dr)

    nothing = jax.tree.map(jnp.zeros_like, first)
    earlier, (dx, dr) = jax.lax.scan(body, nothing, (x, r, before, starts_TB, grads), reverse=True, unroll=unroll)
    h, products = before[0].astype(matrix.dtype), dr.astype(matrix.dtype)
    dmatrix = jnp.einsum("TBH,TBGK->HGK", h, products, preferred_element_type=jnp.float32).astype(matrix.dtype)
    return dx, dmatrix, jnp.sum(dr, axis=(0, 1)), None, earlier


recurrence.defvjp(_recurrence_forward, _recurrence_backward)


@dataclasses.dataclass(kw_only=True)
class RecurrentConfig(Config):
    """An LSTM or a GRU as the mixer of a block.

    | field | what |
    |---|---|
    | cell | "lstm" or "gru" |
    | size | of the state; None: the width |
    | direction | "forward", "backward", or "both": two, side by side (for encoders; Schuster and Paliwal 1997) |
    | output | a projection of the states to the width; without it they are the result |
    | forget_bias | of the LSTM's forget gate at the start (Jozefowicz et al. 2015) |
    | unroll | steps compiled as straight code: faster, longer to compile |

    A state begins at 0 with every document. The state is float32; where a row is split over devices each has all of it.
    """

    cell: str = "lstm"
    size: int | None = None
    direction: str = "forward"
    output: bool = True
    forget_bias: float = 1.0
    unroll: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown cell or direction, or a size out of range."""
        check_choice("cell", self.cell, tuple(CELLS))
        check_choice("direction", self.direction, ("forward", "backward", "both"))
        check_positive(self, "unroll")
        if self.size is not None:
            check_positive(self, "size")

    @property
    def causal(self) -> bool:
        """Whether a token depends on none after it."""
        return self.direction == "forward"

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that there are."""
        return ("forward", "backward") if self.direction == "both" else (self.direction,)

    def check(self, width: int) -> None:
        """Raises `ConfigError` where the states are the result and do not have the width."""
        size = (self.size or width) * len(self.directions)
        if not self.output and size != width:
            raise ConfigError(
                f"output=False: the states, {size} numbers for a token, are the result, and must be as many as width={width}; "
                f"take size={width // len(self.directions)} or output=True"
            )

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> State:
        """The state before the first token of `batch_size` rows."""
        return tuple(jnp.zeros((batch_size, self.size or width)) for _ in range(CELLS[self.cell].states))

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "Recurrent":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return Recurrent(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one forward pass over one token."""
        H, G = self.size or width, CELLS[self.cell].gates
        return 2 * len(self.directions) * (G * H * (width + H) + (H * width if self.output else 0))


class Direction(nnx.Module):
    """One cell, along the row or against it."""

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config, self.cell = config, CELLS[config.cell]
        D, H, G, forget = width, config.size or width, self.cell.gates, self.cell.forget
        self.input = param(rngs, init.linear(D), (D, G, H), ("embed", "gates", "recurrent"))
        self.matrix = param(rngs, init.linear(H), (H, G, H), ("recurrent", "gates", "inner"))
        gates = zeros if forget is None else lambda *args, **kw: zeros(*args, **kw).at[forget].set(config.forget_bias)
        self.bias = param(rngs, gates, (G, H), ("gates", "recurrent"))
        # Of the candidate before it is reset; the other gates have one bias.
        self.candidate_bias = param(rngs, zeros, (H,), ("recurrent",)) if config.cell == "gru" else None

    def __call__(self, x_BTD: Array, starts_BT: Array, state: State) -> tuple[Array, State]:
        """Outputs [B, T, H] for whole rows, in the dtype of `x_BTD`, and the last state."""
        x_BTGH = project("BTD,DGH->BTGH", x_BTD, self.input).astype(jnp.float32)
        x_BTGH = x_BTGH + weight(self.bias, x_BTD, jnp.float32)[None, None]
        matrix, along = weight(self.matrix, x_BTD), varying(x_BTD)
        bias = vary(jnp.zeros(x_BTGH.shape[2:]), along)
        if self.candidate_bias is not None:
            bias = bias.at[2].set(weight(self.candidate_bias, x_BTD, jnp.float32))
        starts_TB = vary(jnp.broadcast_to(starts_BT, x_BTD.shape[:2]).T, along)
        state = jax.tree.map(lambda s: vary(s, along), state)
        states = recurrence(self.cell.step, self.config.unroll, jnp.moveaxis(x_BTGH, 1, 0), matrix, bias, starts_TB, state)
        return jnp.moveaxis(states[0], 0, 1).astype(x_BTD.dtype), tuple(s[-1] for s in states)


class Recurrent(nnx.Module):
    """See `RecurrentConfig`."""

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        for name in config.directions:
            setattr(self, name, Direction(config, rngs, width, init))
        H = len(config.directions) * (config.size or width)
        draw = init.output(H, num_layers)
        self.output = param(rngs, draw, (H, width), ("recurrent", "embed")) if config.output else None

    def __call__(
        self, x_BTD: Array, place: Place, cache: State | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, State | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also the state after the last token."""
        x_BTD = whole_row(all_gather(x_BTD, "residual", 1))
        starts_BT, empty = starts(place), self.config.empty_cache(x_BTD.shape[2], len(x_BTD), 0, jnp.float32)
        found, state = [], cache
        if "forward" in self.config.directions:
            y_BTH, state = self.forward(x_BTD, starts_BT, empty if cache is None else cache)
            found.append(y_BTH)
        if "backward" in self.config.directions:
            ends_BT = jnp.concatenate([starts_BT[:, 1:], jnp.ones_like(starts_BT[:, :1])], axis=1)
            found.append(self.backward(x_BTD[:, ::-1], ends_BT[:, ::-1], empty)[0][:, ::-1])
        y_BTH = part(own_tokens(jnp.concatenate(found, axis=-1)), "residual", 1)
        if self.output is not None:
            y_BTH = project("BTH,HD->BTD", y_BTH, self.output)
        return y_BTH, None if cache is None else state
