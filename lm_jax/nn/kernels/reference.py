"""Attention as it is defined, with all scores at once. Every other backend is checked against it."""

import jax
import jax.numpy as jnp

from lm_jax.core.local import all_gather
from lm_jax.core.types import Array
from lm_jax.nn.embedding import soft_cap
from lm_jax.nn.kernels.spec import MASKED, AttentionSpec, Tokens, alibi, group, visible


def reference(
    spec: AttentionSpec,
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    queries: Tokens,
    keys: Tokens,
    sinks_N: Array | None = None,
    bias_NTS: Array | None = None,
) -> Array:
    """[B, T, N, H]. Where the sequence is split, keys and values are gathered first."""
    if not spec.cross:
        k_BSKH, v_BSKH = all_gather(k_BSKH, "sequence", 1), all_gather(v_BSKH, "sequence", 1)
        segments, prefix = (None if x is None else all_gather(x, "sequence", 1) for x in (keys.segments, keys.prefix))
        keys = Tokens(all_gather(keys.index, "sequence", 0), segments, prefix)
    return masked_attention(
        spec, q_BTNH, k_BSKH, v_BSKH, visible(spec, queries, keys), queries.index, keys.index, sinks_N, bias_NTS
    )


def masked_attention(
    spec: AttentionSpec,
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask_BTS: Array,
    queries_T: Array,
    keys_S: Array,
    sinks_N: Array | None = None,
    bias_NTS: Array | None = None,
) -> Array:
    """softmax(scores of `spec`, masked) v with float32 scores; [B, T, N, H] in the dtype of `q_BTNH`.

    Query heads are grouped over the K key-value heads in order; values may be of another size than keys. `mask_BTS` is bool,
    [B or 1, T, S]; `queries_T` and `keys_S` are places in the row.
    """
    (B, T, N, _), K = q_BTNH.shape, k_BSKH.shape[2]
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", group(q_BTNH, K), k_BSKH, preferred_element_type=jnp.float32) * spec.scale
    if spec.alibi is not None:
        distances = alibi(spec.alibi, N, queries_T, keys_S)
        bias_NTS = distances if bias_NTS is None else bias_NTS + distances
    if bias_NTS is not None:
        scores = scores + bias_NTS.reshape(1, K, N // K, *bias_NTS.shape[1:])
    scores = jnp.where(mask_BTS[:, None, None, :, :], soft_cap(scores, spec.soft_cap), MASKED)
    if sinks_N is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sinks = sinks_N.astype(jnp.float32).reshape(1, K, -1, 1, 1)
        top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks))
        weights = jnp.exp(scores - top)
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sinks - top))
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v_BSKH.dtype), v_BSKH).reshape(B, T, N, -1)
