"""Attention as it is defined, with all scores at once. Every other backend is checked against it."""

import jax
import jax.numpy as jnp

from lm_jax.core.local import all_gather
from lm_jax.core.types import Array
from lm_jax.nn.embedding import soft_cap
from lm_jax.nn.kernels.spec import MASKED, AttentionSpec, Tokens, group, visible


def reference(
    spec: AttentionSpec, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, queries: Tokens, keys: Tokens, sinks_N: Array | None
) -> Array:
    """[B, T, N, H]. Where the sequence is split, keys and values are gathered first."""
    k_BSKH, v_BSKH = all_gather(k_BSKH, "sequence", 1), all_gather(v_BSKH, "sequence", 1)
    segments = None if keys.segments is None else all_gather(keys.segments, "sequence", 1)
    mask = visible(spec, queries, Tokens(all_gather(keys.index, "sequence", 0), segments))
    return masked_attention(q_BTNH, k_BSKH, v_BSKH, mask, spec.scale, spec.soft_cap, sinks_N)


def masked_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array, scale: float, cap: float | None, sinks_N: Array | None = None
) -> Array:
    """softmax(scale q k^T, masked) v with float32 scores; [B, T, N, H] in the dtype of `q_BTNH`.

    Query heads are grouped over the K key-value heads in order. `mask_BTS` is bool, [B or 1, T, S].
    """
    K = k_BSKH.shape[2]
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", group(q_BTNH, K), k_BSKH, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask_BTS[:, None, None, :, :], soft_cap(scores, cap), MASKED)
    if sinks_N is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sinks = sinks_N.astype(jnp.float32).reshape(1, K, -1, 1, 1)
        top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks))
        weights = jnp.exp(scores - top)
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sinks - top))
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v_BSKH.dtype), v_BSKH).reshape(q_BTNH.shape)
