"""Products of groups of rows with a matrix each: what experts compute on the tokens that chose them.

The rows of an [M, I] array are sorted by group: group e has the next `sizes[e]` of them; what stands after the last group is
ignored and gives 0. Two ways: "ragged" is XLA's own (`jax.lax.ragged_dot`; on a CPU it multiplies all rows with all matrices),
"blocks" visits each block of rows once for every group with rows in it (as MegaBlocks, Gale et al. 2022, arXiv:2211.15841).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm_jax.core.local import vary, varying
from lm_jax.core.types import Array

BLOCK = 128  # rows


class Grouped(NamedTuple):
    """`product(x_MI, w_EIO, sizes_E)` is [M, O] in the dtype of x; `gradient(x_MI, g_MO, sizes_E)` is float32 [E, I, O]."""

    product: Callable[[Array, Array, Array], Array]
    gradient: Callable[[Array, Array, Array], Array]


def _ragged_product(x_MI: Array, w_EIO: Array, sizes_E: Array) -> Array:
    return jax.lax.ragged_dot(x_MI, w_EIO, sizes_E, preferred_element_type=x_MI.dtype)


def _ragged_gradient(x_MI: Array, g_MO: Array, sizes_E: Array) -> Array:
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x_MI, g_MO, sizes_E, numbers, preferred_element_type=jnp.float32)


class _Visits(NamedTuple):
    """Which block of rows meets which group, in order; `total` of them are real."""

    blocks: Array  # int32 [num_blocks + E]
    groups: Array
    starts_E: Array  # int32: the first row of each group
    ends_E: Array
    total: Array  # int32 []


def _visits(num_blocks: int, sizes_E: Array) -> _Visits:
    ends = jnp.cumsum(sizes_E)
    starts = ends - sizes_E
    first = starts // BLOCK
    count = jnp.where(sizes_E > 0, (ends - 1) // BLOCK - first + 1, 0)
    upto = jnp.cumsum(count)
    visit = jnp.arange(num_blocks + sizes_E.shape[0], dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(upto, visit, side="right"), sizes_E.shape[0] - 1).astype(jnp.int32)
    return _Visits(first[group] + visit - (upto - count)[group], group, starts, ends, upto[-1])


def _visit_all(step: Callable, out: Array, num_blocks: int, sizes_E: Array) -> Array:
    """`out = step(out, block, group, mask)` for every visit; `mask` [BLOCK, 1] has the rows of the block that are the group's."""
    visits = _visits(num_blocks, sizes_E)
    rows = jnp.arange(BLOCK, dtype=jnp.int32)

    def visit(out, xs):
        number, block, group = xs

        def run(out):
            row = block * BLOCK + rows
            mask = (row >= visits.starts_E[group]) & (row < visits.ends_E[group])
            return step(out, block, group, mask[:, None])

        return jax.lax.cond(number < visits.total, run, lambda out: out, out), None

    numbers = jnp.arange(visits.blocks.shape[0], dtype=jnp.int32)
    return jax.lax.scan(visit, vary(out, varying(sizes_E)), (numbers, visits.blocks, visits.groups))[0]


def _in_blocks(x_MI: Array) -> Array:
    """[M, I] as [num_blocks, BLOCK, I], with rows of 0 at the end."""
    return jnp.pad(x_MI, ((0, -x_MI.shape[0] % BLOCK), (0, 0))).reshape(-1, BLOCK, x_MI.shape[1])


def _blocks_product(x_MI: Array, w_EIO: Array, sizes_E: Array) -> Array:
    x = _in_blocks(x_MI)

    def step(out, block, group, mask):
        y = jnp.where(mask, x[block] @ w_EIO[group], 0)
        return out.at[block].add(y)

    out = vary(jnp.zeros((*x.shape[:2], w_EIO.shape[2]), x.dtype), varying(x) | varying(w_EIO))
    return _visit_all(step, out, x.shape[0], sizes_E).reshape(-1, w_EIO.shape[2])[: x_MI.shape[0]]


def _blocks_gradient(x_MI: Array, g_MO: Array, sizes_E: Array) -> Array:
    x, g = _in_blocks(x_MI), _in_blocks(g_MO)

    def step(out, block, group, mask):
        return out.at[group].add(jnp.matmul(jnp.where(mask, x[block], 0).T, g[block], preferred_element_type=jnp.float32))

    out = jnp.zeros((sizes_E.shape[0], x.shape[2], g.shape[2]), jnp.float32)
    return _visit_all(step, vary(out, varying(x) | varying(g)), x.shape[0], sizes_E)


GROUPED = {"ragged": Grouped(_ragged_product, _ragged_gradient), "blocks": Grouped(_blocks_product, _blocks_gradient)}


def grouped(name: str = "auto") -> Grouped:
    """The products by name; "auto": "blocks" on a CPU, else "ragged"."""
    if name == "auto":
        name = "blocks" if jax.default_backend() == "cpu" else "ragged"
    return GROUPED[name]
