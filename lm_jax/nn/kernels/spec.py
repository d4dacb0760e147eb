"""What an attention computes, apart from how: the contract that every backend keeps."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lm_jax.core.local import index
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
      prefix: keys may be of a prefix, which all tokens of their segment see (prefix-LM, Raffel et al. 2020, arXiv:1910.10683).
      alibi: scores fall linearly with the distance of the key, by a slope that each of this many heads has (Press et al. 2021,
        arXiv:2108.12409).
      bias: a value for every query, key and head is added to the scores.
      cross: keys are of another sequence, which every device holds whole; neither causal nor windowed.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    segments: bool = False
    sinks: bool = False
    prefix: bool = False
    alibi: int | None = None
    bias: bool = False
    cross: bool = False


class Tokens(NamedTuple):
    """Where the tokens of a sequence stand."""

    index: Array  # int32 [T]: the place in the row
    segments: Array | None = None  # int32 [B, T]: the document within the row, 0 is padding
    prefix: Array | None = None  # int32 [B, T]: 1 where all of the document may look


def visible(spec: AttentionSpec, queries: Tokens, keys: Tokens) -> Array:
    """bool [B or 1, T, S]: whether query t sees key s."""
    t, s = queries.index[:, None], keys.index[None, :]
    mask = jnp.ones((t.shape[0], s.shape[1]), bool)
    if spec.causal:
        mask = s <= t
    mask = mask[None, :, :]
    if spec.prefix:
        assert keys.prefix is not None
        mask = mask | (keys.prefix > 0)[:, None, :]
    if spec.window is not None:
        mask = mask & (jnp.abs(t - s) < spec.window)[None, :, :]
    if spec.segments:
        assert queries.segments is not None and keys.segments is not None
        mask = mask & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return mask


def group(q_BTNH: Array, num_kv_heads: int) -> Array:
    """[B, T, K, G, H]: the query heads by the key-value head that they share, in order."""
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, num_kv_heads, N // num_kv_heads, H)


def alibi(num_heads: int, own: int, queries_T: Array, keys_S: Array) -> Array:
    """float32 [own, T, S]: what is added to the scores of this device's `own` of `num_heads` heads, at places in the row.

    The slopes are 2^(-8 i / n) for i = 1..n where n, the number of heads, is a power of two; beyond the largest such n, every
    other slope of 2 n heads (Press et al. 2021, section 3, and their code).
    """
    slopes = jnp.asarray(alibi_slopes(num_heads), jnp.float32)[index("heads") * own + jnp.arange(own)]
    distance = jnp.abs(queries_T[:, None] - keys_S[None, :]).astype(jnp.float32)
    return -slopes[:, None, None] * distance[None, :, :]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """float64 [N]: see `alibi`."""
    power = 2 ** int(np.log2(num_heads))
    first = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-8.0 * np.arange(1, 2 * (num_heads - power) + 1, 2) / (2 * power))
    return np.concatenate([first, more])
