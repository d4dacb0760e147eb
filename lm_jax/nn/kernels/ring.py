"""Ring attention: the sequence is split over devices, and keys and values travel around them (Liu et al. 2023, arXiv:2310.01889).

No device ever holds the scores of more than its own queries and one other device's keys. Rows are split in the zig-zag order of
`core.sharding.token_order`: a device holds one early and one late slice of a row, so under a causal mask every device has the same
two of four slice pairs to compute in every round, and none that is masked out whole.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm_jax.core.local import index, mesh_axes, settle, vary, varying, ways
from lm_jax.core.types import Array
from lm_jax.nn.embedding import soft_cap
from lm_jax.nn.kernels.spec import ATTENTION, MASKED, AttentionSpec, Tokens, alibi, group, visible


class _Sums(NamedTuple):
    """A softmax in progress, of each slice of queries: [slices, B, K, G, T]."""

    top: Array  # the largest score so far
    total: Array  # sum of exp(score - top)
    values: Array  # [slices, B, K, G, T, H]: sum of exp(score - top) v


def ring(
    spec: AttentionSpec, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, queries: Tokens, keys: Tokens, sinks_N: Array | None
) -> Array:
    """[B, T, N, H] in the dtype of `q_BTNH`, from this device's part of the sequence; float32 softmax. See `AttentionSpec`."""
    return _ring(q_BTNH, k_BSKH, v_BSKH, sinks_N, queries, keys, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _ring(q, k, v, sinks, queries, keys, spec):
    return _forward(q, k, v, sinks, queries, keys, spec)[0]


def _forward(q, k, v, sinks, queries, keys, spec):
    n = _num_slices(spec)
    q_slices, at = _slices(group(q, k.shape[2]), n, 1), _tokens(queries, n)
    start = _start(q_slices, v.shape[-1], sinks)

    def visit(sums: _Sums, travelling: tuple, pairs: list) -> _Sums:
        k, v, where = travelling
        for i, j in pairs:
            scores, mask, _ = _scores(spec, q_slices[i], k[j], _pick(at, i), _pick(where, j))
            top = jnp.maximum(sums.top[i], jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - top[..., None]) * mask
            keep = jnp.exp(sums.top[i] - top)
            total = sums.total[i] * keep + jnp.sum(weights, axis=-1)
            values = jnp.einsum("BKGTS,BSKH->BKGTH", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32)
            new = _Sums(top, total, sums.values[i] * keep[..., None] + values)
            sums = jax.tree.map(lambda whole, part, i=i: whole.at[i].set(part), sums, new)
        return sums

    def body(carry, round_):
        sums, travelling = carry
        travelling = _send(travelling)
        return (visit(sums, travelling, _pairs(round_, n)), travelling), None

    travelling = (_slices(k, n, 1), _slices(v, n, 1), _tokens(keys, n))
    sums = visit(start, travelling, _first_pairs(n))
    if ways("sequence") > 1:
        (sums, _), _ = jax.lax.scan(body, (sums, travelling), jnp.arange(1, ways("sequence")))
    total = jnp.maximum(sums.total, 1e-30)
    y = jnp.moveaxis(sums.values / total[..., None], 4, 2)  # [slices, B, T, K, G, H]
    y = _join(y, 1).reshape(*q.shape[:3], -1).astype(q.dtype)
    log_total = checkpoint_name(sums.top + jnp.log(total), ATTENTION)
    return y, (q, k, v, sinks, queries, keys, checkpoint_name(y, ATTENTION), log_total)


def _backward(spec, saved, dy):
    q, k, v, sinks, queries, keys, y, log_total = saved
    n, K = _num_slices(spec), k.shape[2]
    q_slices, at = _slices(group(q, K), n, 1), _tokens(queries, n)
    dy_slices = _slices(group(dy, K), n, 1)
    delta = jnp.sum(group(dy, K).astype(jnp.float32) * group(y, K), axis=-1)
    delta = jnp.moveaxis(_slices(delta, n, 1), 2, 4)  # [slices, B, K, G, T]

    def visit(grads, travelling, pairs):
        k, v, where = travelling
        dq, dk, dv = grads
        for i, j in pairs:
            scores, mask, slope = _scores(spec, q_slices[i], k[j], _pick(at, i), _pick(where, j))
            weights = jnp.exp(scores - log_total[i][..., None]) * mask
            dweights = jnp.einsum("BTKGH,BSKH->BKGTS", dy_slices[i], v[j], preferred_element_type=jnp.float32)
            dscores = weights * (dweights - delta[i][..., None]) * slope * spec.scale
            dscores, weights = dscores.astype(q.dtype), weights.astype(q.dtype)
            product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            dq = dq.at[i].add(product("BKGTS,BSKH->BTKGH", dscores, k[j]))
            dk = dk.at[j].add(product("BKGTS,BTKGH->BSKH", dscores, q_slices[i]))
            dv = dv.at[j].add(product("BKGTS,BTKGH->BSKH", weights, dy_slices[i]))
        return dq, dk, dv

    def body(carry, round_):
        (dq, dk, dv), travelling = carry
        travelling, dk, dv = _send((travelling, dk, dv))
        return (visit((dq, dk, dv), travelling, _pairs(round_, n)), travelling), None

    travelling = (_slices(k, n, 1), _slices(v, n, 1), _tokens(keys, n))
    zeros = lambda x: vary(jnp.zeros(x.shape, jnp.float32), varying(q))  # noqa: E731
    grads = visit((zeros(q_slices), zeros(travelling[0]), zeros(travelling[1])), travelling, _first_pairs(n))
    if ways("sequence") > 1:
        (grads, _), _ = jax.lax.scan(body, (grads, travelling), jnp.arange(1, ways("sequence")))
    dq, dk, dv = grads
    if ways("sequence") > 1:
        dk, dv = _send((dk, dv))  # the last step home
    dsinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(jnp.float32).reshape(1, 1, K, -1, 1) - log_total)
        dsinks = settle(-jnp.sum(share * delta, axis=(0, 1, 4)).reshape(-1).astype(sinks.dtype), varying(sinks))
    back = lambda g, like: _join(g, 1).reshape(like.shape).astype(like.dtype)  # noqa: E731
    return back(dq, q), back(dk, k), back(dv, v), dsinks, None, None


_ring.defvjp(_forward, _backward)


def _num_slices(spec: AttentionSpec) -> int:
    """Into how many slices a device's part of the row is cut, so that pairs that see nothing are left out."""
    return 2 if spec.causal and not spec.prefix and ways("sequence") > 1 else 1


def _first_pairs(num_slices: int) -> list[tuple[int, int]]:
    """(query slice, key slice) of a device's own keys."""
    return [(0, 0)] if num_slices == 1 else [(0, 0), (1, 0), (1, 1)]


def _pairs(round_: Array, num_slices: int) -> list[tuple[Any, Any]]:
    """The pairs with the keys of the device that stands `round_` places before this one in the ring.

    With two slices, the late queries see the early keys of every device. The keys of a device before this one in the row's first
    half are seen by the early queries too; those of a device after it by the late queries only, with its late keys.
    """
    if num_slices == 1:
        return [(0, 0)]
    late = (round_ > index("sequence")).astype(jnp.int32)
    return [(1, 0), (late, late)]


def _scores(spec: AttentionSpec, q: Array, k: Array, queries: Tokens, keys: Tokens) -> tuple[Array, Array, Array]:
    """(scores, mask, derivative of the soft-cap) [B, K, G, T, S]."""
    raw = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * spec.scale
    if spec.alibi is not None:
        K, G = raw.shape[1:3]
        bias = alibi(spec.alibi, K * G, queries.index, keys.index)
        raw = raw + bias.reshape(1, K, G, *bias.shape[1:])
    mask = visible(spec, queries, keys)[:, None, None, :, :]
    scores = soft_cap(raw, spec.soft_cap)
    slope = jnp.ones((), jnp.float32) if spec.soft_cap is None else 1 - jnp.square(scores / spec.soft_cap)
    return jnp.where(mask, scores, MASKED), mask.astype(jnp.float32), slope


def _start(q_slices: Array, value_dim: int, sinks: Array | None) -> _Sums:
    slices, B, T, K, G, _ = q_slices.shape
    shape, along = (slices, B, K, G, T), varying(q_slices)
    values = vary(jnp.zeros((*shape, value_dim), jnp.float32), along)
    if sinks is None:
        return _Sums(vary(jnp.full(shape, MASKED, jnp.float32), along), vary(jnp.zeros(shape, jnp.float32), along), values)
    top = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(1, 1, K, G, 1), shape)
    return _Sums(vary(top, along), vary(jnp.ones(shape, jnp.float32), along), values)


def _send(x: Any) -> Any:
    """Each device's `x` to the next one of the ring."""
    n = ways("sequence")
    return jax.lax.ppermute(x, mesh_axes("sequence"), [(i, (i + 1) % n) for i in range(n)])


def _slices(x: Array, num_slices: int, dim: int) -> Array:
    return jnp.stack(jnp.split(x, num_slices, dim))


def _join(x: Array, dim: int) -> Array:
    return jnp.concatenate(list(x), axis=dim)


def _tokens(tokens: Tokens, num_slices: int) -> Tokens:
    segments, prefix = (None if x is None else _slices(x, num_slices, 1) for x in (tokens.segments, tokens.prefix))
    return Tokens(_slices(tokens.index, num_slices, 0), segments, prefix)


def _pick(tokens: Tokens, i: Any) -> Tokens:
    return Tokens(tokens.index[i], *(None if x is None else x[i] for x in (tokens.segments, tokens.prefix)))
