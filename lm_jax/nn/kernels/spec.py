"""What an attention computes, apart from how: the contract that every backend keeps."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lm_jax.core.types import Array

# Finite, so that a query that sees nothing (padding) gives a uniform row and not a NaN.
MASKED = -1e30

ATTENTION = "attention"  # what rematerialisation policies call the results


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """softmax(scores) v, where scores = soft_cap(scale q k^T) at the keys that a query sees.

    Attributes:
      scale: of the scores.
      causal: a query sees no key that stands after it in the row.
      window: a query sees only keys less than `window` places away.
      soft_cap: scores pass through cap * tanh(score / cap) (Gemma 2, arXiv:2408.00118).
      segments: queries and keys have segments, and a query sees only its own.
      sinks: each head has one more score, a parameter, that takes weight but has no value (Xiao et al. 2023, arXiv:2309.17453;
        as in gpt-oss).
      cross: queries and keys are of two sequences; neither causal nor windowed.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    segments: bool = False
    sinks: bool = False
    cross: bool = False


class Tokens(NamedTuple):
    """Where the tokens of a sequence stand."""

    index: Array  # int32 [T]: the place in the row
    segments: Array | None = None  # int32 [B, T]: the document within the row, 0 is padding


def visible(spec: AttentionSpec, queries: Tokens, keys: Tokens) -> Array:
    """bool [B or 1, T, S]: whether query t sees key s."""
    t, s = queries.index[:, None], keys.index[None, :]
    mask = jnp.ones((t.shape[0], s.shape[1]), bool)
    if spec.causal:
        mask = s <= t
    if spec.window is not None:
        mask = mask & (jnp.abs(t - s) < spec.window)
    mask = mask[None, :, :]
    if spec.segments:
        assert queries.segments is not None and keys.segments is not None
        mask = mask & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return mask


def group(q_BTNH: Array, num_kv_heads: int) -> Array:
    """[B, T, K, G, H]: the query heads by the key-value head that they share, in order."""
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, num_kv_heads, N // num_kv_heads, H)
