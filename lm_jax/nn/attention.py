"""Causal self-attention with grouped queries, and its key-value cache."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, index, sum_into, token_index, ways
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.attend import IMPLEMENTATIONS, attend
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.kernels.reference import masked_attention
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens
from lm_jax.nn.linear import project
from lm_jax.nn.norm import Norm, NormConfig
from lm_jax.nn.positions import RotaryConfig


class Place(NamedTuple):
    """Where the queries of a call stand. Shared by all layers."""

    positions_BT: Array  # int32 [B, T] or [1, T]: the position within the document, for position embeddings
    segments_BT: Array | None  # int32 [B, T]: the document within the row, 0 is padding; None: one document per row
    rows_B: Array | None = None  # int32 [B]: which rows of the batch these are, -1 for none; None: those of this device, in order


class Cache(NamedTuple):
    """The keys and values of the past, one layer's or (with a leading axis) those of a whole stack."""

    keys: Array  # [B, S, K, H]
    values: Array  # [B, S, K, H]


class CacheInfo(NamedTuple):
    """What all layers' caches share."""

    index: Array  # int32 []: how many slots are filled
    segments_BS: Array  # int32 [B, S]: as in `Place`, for the slots
    limit: Array  # int32 []: a query sees at most this many slots back, itself included


@dataclasses.dataclass(kw_only=True)
class AttentionConfig(Config):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

    | field | what | source |
    |---|---|---|
    | num_kv_heads | key-value heads shared by groups of query heads; None: as many as query heads | arXiv:2305.13245 |
    | head_dim | None: width / num_heads | |
    | rotary | rotary positions; None: no positions in attention | arXiv:2104.09864 |
    | qk_norm | a norm of every query and key head before the rotation | Dehghani et al. 2023, arXiv:2302.05442 |
    | qk_norm_whole | that norm is over all heads at once | OLMo 2, arXiv:2501.00656 |
    | clip | queries, keys and values are cut to [-clip, clip] before the rotation | DBRX, OLMo |
    | window | a query sees only the last `window` tokens, itself included | Beltagy et al. 2020, arXiv:2004.05150 |
    | soft_cap | scores pass through cap * tanh(score / cap) | Gemma 2, arXiv:2408.00118 |
    | scale | of the scores; None: head_dim ** -0.5 | |
    | bias, output_bias | on the query, key and value projections; on the output projection | |
    | sinks | a learned score per head that takes weight but has no value | arXiv:2309.17453 |
    | implementation | "auto", or a backend of `nn/attend.py` by name | |
    """

    num_heads: int = 12
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rotary: RotaryConfig | None = None
    qk_norm: NormConfig | None = None
    qk_norm_whole: bool = False
    clip: float | None = None
    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    implementation: str = "auto"

    def validate(self) -> None:
        """Raises `ConfigError` where heads do not divide or the implementation is unknown."""
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_positive(self, "num_heads")
        for name in ("num_kv_heads", "head_dim", "clip", "window", "soft_cap", "scale"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ConfigError(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}")

    def size(self, width: int) -> int:
        """The head size H. Raises `ConfigError` when the heads do not divide `width`."""
        if self.head_dim is not None:
            return self.head_dim
        if width % self.num_heads:
            near = next(h for h in range(self.num_heads, 0, -1) if width % h == 0)
            raise ConfigError(
                f"width={width} is not divisible by num_heads={self.num_heads}; "
                f"take a divisor of {width} (such as {near}) or set head_dim"
            )
        return width // self.num_heads

    def spec(self, width: int, *, segments: bool) -> AttentionSpec:
        """What the layer computes for inputs of `width`."""
        scale = self.scale or self.size(width) ** -0.5
        return AttentionSpec(scale=scale, window=self.window, soft_cap=self.soft_cap, segments=segments, sinks=self.sinks)

    def cached_heads(self) -> int:
        """How many key-value heads a cache holds on this device."""
        if ways("heads") == ways("kv_heads"):
            return (self.num_kv_heads or self.num_heads) // ways("kv_heads")
        return self.num_heads // ways("heads")

    def norm_of_heads(self, rngs: nnx.Rngs, num_heads: int, size: int, axis: str) -> Norm | None:
        """That of queries or of keys: of each head, or of all `num_heads` at once."""
        if self.qk_norm is None:
            return None
        whole = self.qk_norm_whole
        shape, axes = ((num_heads, size), (axis, "head_dim")) if whole else ((size,), ("head_dim",))
        return self.qk_norm.build(rngs, *shape, axes=axes)

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "Attention":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return Attention(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one forward pass, a mean over the tokens of a row of `length`.

        The scores are counted over the full square, or with `causal` over the visible half (or window) only.
        """
        N, K, H = self.num_heads, self.num_kv_heads or self.num_heads, self.size(width)
        window = min(self.window or length, length)
        seen = (length - (window - 1) / 2) * window / length if causal else length
        return 2 * width * H * (2 * N + 2 * K) + 4 * seen * N * H


class Attention(nnx.Module):
    """See `AttentionConfig`."""

    def __init__(self, config: AttentionConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, N, K, H = width, config.num_heads, config.num_kv_heads or config.num_heads, config.size(width)
        kv = ("kv_heads", "head_dim")
        self.query = param(rngs, init.linear(D), (D, N, H), ("embed", "heads", "head_dim"))
        self.key = param(rngs, init.linear(D), (D, K, H), ("embed", *kv))
        self.value = param(rngs, init.linear(D), (D, K, H), ("embed", *kv))
        self.output = param(rngs, init.output(N * H, num_layers), (N, H, D), ("heads", "head_dim", "embed"))
        self.query_bias = param(rngs, zeros, (N, H), ("heads", "head_dim")) if config.bias else None
        self.key_bias = param(rngs, zeros, (K, H), kv) if config.bias else None
        self.value_bias = param(rngs, zeros, (K, H), kv) if config.bias else None
        self.output_bias = param(rngs, zeros, (D,), ("embed",)) if config.output_bias else None
        self.sinks = param(rngs, zeros, (N,), ("heads",)) if config.sinks else None
        self.query_norm = config.norm_of_heads(rngs, N, H, "heads")
        self.key_norm = config.norm_of_heads(rngs, K, H, "kv_heads")

    def __call__(
        self, x_BTD: Array, place: Place, cache: Cache | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, Cache | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also the cache with T slots more."""
        x_BTD = all_gather(x_BTD, "residual", 1)
        q_BTNH = self._project(x_BTD, self.query, self.query_bias)
        k_BTKH = self._project(x_BTD, self.key, self.key_bias)
        v_BTKH = self._project(x_BTD, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if self.config.clip is not None:
            q_BTNH, k_BTKH, v_BTKH = (jnp.clip(x, -self.config.clip, self.config.clip) for x in (q_BTNH, k_BTKH, v_BTKH))
        if self.config.rotary is not None:
            q_BTNH = self.config.rotary.rotate(q_BTNH, place.positions_BT)
            k_BTKH = self.config.rotary.rotate(k_BTKH, place.positions_BT)
        k_BTKH, v_BTKH = self._for_these_heads(k_BTKH), self._for_these_heads(v_BTKH)
        spec = self.config.spec(x_BTD.shape[-1], segments=place.segments_BT is not None)
        sinks_N = None if self.sinks is None else weight(self.sinks, q_BTNH, jnp.float32)
        if cache is None or info is None:
            tokens = Tokens(token_index(q_BTNH.shape[1]), place.segments_BT)
            y_BTNH = attend(self.config.implementation, spec, q_BTNH, k_BTKH, v_BTKH, tokens, tokens, sinks_N)
        else:
            cache = Cache(_write(cache.keys, k_BTKH, info.index), _write(cache.values, v_BTKH, info.index))
            mask = _cache_mask(info, place, spec.window)
            y_BTNH = masked_attention(q_BTNH, cache.keys, cache.values, mask, spec.scale, spec.soft_cap, sinks_N)
        y_BTD = sum_into(project("BTNH,NHD->BTD", y_BTNH, self.output), "heads", 1, "residual")
        if self.output_bias is not None:
            y_BTD = y_BTD + weight(self.output_bias, y_BTD)[None, None, :]
        return y_BTD, cache

    def _project(self, x_BTD: Array, matrix: nnx.Param, bias: nnx.Param | None) -> Array:
        y_BTNH = project("BTD,DNH->BTNH", x_BTD, matrix)
        return y_BTNH if bias is None else y_BTNH + weight(bias, y_BTNH)[None, None, :, :]

    def _for_these_heads(self, k_BTKH: Array) -> Array:
        """The key-value heads of this device's query heads, where query heads are split over more devices."""
        if ways("heads") == ways("kv_heads"):
            return k_BTKH
        if ways("kv_heads") > 1:
            raise ConfigError(f"heads split {ways('heads')} ways, kv_heads {ways('kv_heads')}: split both alike, or kv_heads not")
        queries = self.query.shape[-2]
        group = queries * ways("heads") // k_BTKH.shape[2]
        return jnp.take(k_BTKH, (index("heads") * queries + jnp.arange(queries)) // group, axis=2)


def _write(slots: Array, new: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(slots, new, index, axis=1)


def _cache_mask(info: CacheInfo, place: Place, window: int | None) -> Array:
    T, S = place.positions_BT.shape[1], info.segments_BS.shape[1]
    assert place.segments_BT is not None
    t, s = info.index + jnp.arange(T)[:, None], jnp.arange(S)[None, :]
    reach = info.limit if window is None else jnp.minimum(info.limit, window)
    mask = (s <= t) & (t - s < reach)
    same = place.segments_BT[:, :, None] == info.segments_BS[:, None, :]
    return mask[None, :, :] & same
