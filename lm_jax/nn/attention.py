"""Attention with grouped queries, to the tokens of a row or to a memory, and its key-value cache."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, all_sum, index, to_residual, token_index, ways
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Mean
from lm_jax.nn.attend import IMPLEMENTATIONS, attend
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.kernels.reference import masked_attention
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens
from lm_jax.nn.linear import project
from lm_jax.nn.norm import Norm, NormConfig
from lm_jax.nn.place import CacheInfo, Place
from lm_jax.nn.positions import RotaryConfig


class KeyValues(NamedTuple):
    """Keys and values of the past, or of a memory."""

    keys: Array  # [B, S, K, H]
    values: Array  # [B, S, K, H]


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
    | causal | a query sees no token after it, but for those of a prefix (`Place.prefix_BT`) | |
    | window | a query sees only tokens less than `window` away, itself included | Beltagy et al. 2020, arXiv:2004.05150 |
    | chunk | a document is cut into chunks of as many tokens; a query sees only its own | Llama 4 |
    | alibi | scores fall linearly with distance | Press et al. 2021, arXiv:2108.12409 |
    | soft_cap | scores pass through cap * tanh(score / cap) | Gemma 2, arXiv:2408.00118 |
    | scale | of the scores; None: head_dim ** -0.5 | |
    | bias, output_bias | on the query, key and value projections; on the output projection | |
    | key_bias | on the key projection; None: as `bias`. It moves all scores of a query alike | Whisper, arXiv:2212.04356 |
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
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    alibi: bool = False
    soft_cap: float | None = None
    scale: float | None = None
    bias: bool = False
    key_bias: bool | None = None
    output_bias: bool = False
    sinks: bool = False
    implementation: str = "auto"

    def validate(self) -> None:
        """Raises `ConfigError` where heads do not divide or the implementation is unknown."""
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_positive(self, "num_heads")
        for name in ("num_kv_heads", "head_dim", "clip", "window", "chunk", "soft_cap", "scale"):
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

    def check(self, width: int) -> None:
        """Raises `ConfigError` where the heads do not divide `width`."""
        self.size(width)

    def sizes(self, width: int) -> tuple[int, int]:
        """Of the keys and of the values of a head."""
        return self.size(width), self.size(width)

    def spec(self, width: int, *, segments: bool, prefix: bool = False, bias: bool = False) -> AttentionSpec:
        """What the layer computes for inputs of `width`."""
        return AttentionSpec(
            scale=self.scale or self.size(width) ** -0.5,
            causal=self.causal,
            window=self.window,
            soft_cap=self.soft_cap,
            segments=segments or self.chunk is not None,
            sinks=self.sinks,
            prefix=self.causal and prefix,
            alibi=self.num_heads if self.alibi else None,
            bias=bias,
        )

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> KeyValues:
        """Of this device's heads, for `batch_size` rows of up to `length` tokens."""
        heads = (self.num_kv_heads or self.num_heads) // ways("kv_heads")
        if ways("heads") != ways("kv_heads"):
            heads = self.num_heads // ways("heads")
        shape = (batch_size, length, heads, self.size(width))
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

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
        window = min(self.window or length, self.chunk or length, length)
        seen = (length - (window - 1) / 2) * window / length if causal and self.causal else length
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
        has_key_bias = config.bias if config.key_bias is None else config.key_bias
        self.key_bias = param(rngs, zeros, (K, H), kv) if has_key_bias else None
        self.value_bias = param(rngs, zeros, (K, H), kv) if config.bias else None
        self.output_bias = param(rngs, zeros, (D,), ("embed",)) if config.output_bias else None
        self.sinks = param(rngs, zeros, (N,), ("heads",)) if config.sinks else None
        self.query_norm = config.norm_of_heads(rngs, N, H, "heads")
        self.key_norm = config.norm_of_heads(rngs, K, H, "kv_heads")

    def __call__(
        self, x_BTD: Array, place: Place, cache: KeyValues | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, KeyValues | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also the cache with T slots more."""
        x_BTD, config = all_gather(x_BTD, "residual", 1), self.config
        q_BTNH, (k_BTKH, v_BTKH) = self._queries(x_BTD), self._keys_values(x_BTD)
        T = q_BTNH.shape[1]
        if config.rotary is not None:
            length = T * ways("sequence") if cache is None else cache.keys.shape[1]
            q_BTNH = config.rotary.rotate(q_BTNH, place.positions_BT, length)
            k_BTKH = config.rotary.rotate(k_BTKH, place.positions_BT, length)
        k_BTKH, v_BTKH = for_these_heads(k_BTKH, self.query), for_these_heads(v_BTKH, self.query)
        spec, sinks_N = config.spec(x_BTD.shape[-1], **place.has()), self._sinks(q_BTNH)
        if cache is None or info is None:
            tokens = Tokens(token_index(T), self._segments(place, len(x_BTD)), place.prefix_BT if spec.prefix else None)
            y_BTNH = attend(config.implementation, spec, q_BTNH, k_BTKH, v_BTKH, tokens, tokens, sinks_N, place.bias_NTS)
        else:
            cache = KeyValues(write(cache.keys, k_BTKH, info.index), write(cache.values, v_BTKH, info.index))
            mask, slots = cache_mask(info, place, config.window, config.chunk), jnp.arange(cache.keys.shape[1])
            at = info.index + jnp.arange(T)
            y_BTNH = masked_attention(spec, q_BTNH, *cache, mask, at, slots, sinks_N, place.bias_NTS)
        return self._output(y_BTNH), cache

    def remember(self, memory_BSD: Array) -> KeyValues:
        """Keys and values of a memory, for `read`."""
        keys, values = self._keys_values(memory_BSD)
        return KeyValues(for_these_heads(keys, self.query), for_these_heads(values, self.query))

    def read(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array) -> Array:
        """[B, T, D] to [B, T, D]: attention to a memory, of which each token sees its own segment."""
        return self._output(self._read(x_BTD, place, memory, segments_BS, self.config.implementation))

    def weights(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array) -> Mean:
        """float32 [B, T, S]: the weights that `read` gives to the tokens of the memory, a mean over heads."""
        B, S, K, _ = memory.values.shape
        one = jnp.broadcast_to(
            jnp.eye(S, dtype=jnp.float32)[None, :, None, :], (B, S, K, S)
        )  # each token is a dimension of its own
        weights_BTNS = self._read(x_BTD, place, KeyValues(memory.keys, one), segments_BS, "reference")
        return Mean(all_sum(jnp.sum(weights_BTNS, axis=2), "heads"), jnp.float32(self.config.num_heads))

    def _read(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array, implementation: str) -> Array:
        q_BTNH = self._queries(all_gather(x_BTD, "residual", 1))
        config, size = self.config, x_BTD.shape[-1]
        scale = config.scale or config.size(size) ** -0.5
        spec = AttentionSpec(scale=scale, causal=False, soft_cap=config.soft_cap, segments=True, sinks=config.sinks, cross=True)
        segments_BT = place.segments_BT
        if segments_BT is None:
            segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
        queries = Tokens(token_index(q_BTNH.shape[1]), segments_BT)
        keys = Tokens(jnp.arange(segments_BS.shape[1], dtype=jnp.int32), segments_BS)
        return attend(implementation, spec, q_BTNH, *memory, queries, keys, self._sinks(q_BTNH))

    def _queries(self, x_BTD: Array) -> Array:
        q_BTNH = self._project(x_BTD, self.query, self.query_bias)
        return self._clip(q_BTNH if self.query_norm is None else self.query_norm(q_BTNH))

    def _keys_values(self, x_BTD: Array) -> tuple[Array, Array]:
        k_BTKH = self._project(x_BTD, self.key, self.key_bias)
        v_BTKH = self._project(x_BTD, self.value, self.value_bias)
        return self._clip(k_BTKH if self.key_norm is None else self.key_norm(k_BTKH)), self._clip(v_BTKH)

    def _clip(self, x: Array) -> Array:
        return x if self.config.clip is None else jnp.clip(x, -self.config.clip, self.config.clip)

    def _segments(self, place: Place, num_rows: int) -> Array | None:
        if self.config.chunk is None:
            return place.segments_BT
        one = jnp.ones((num_rows, place.positions_BT.shape[1]), jnp.int32)
        return chunks(one if place.segments_BT is None else place.segments_BT, place.positions_BT, self.config.chunk)

    def _sinks(self, q_BTNH: Array) -> Array | None:
        return None if self.sinks is None else weight(self.sinks, q_BTNH, jnp.float32)

    def _output(self, y_BTNH: Array) -> Array:
        y_BTD = to_residual(project("BTNH,NHD->BTD", y_BTNH, self.output), "heads")
        return y_BTD if self.output_bias is None else y_BTD + weight(self.output_bias, y_BTD)[None, None, :]

    def _project(self, x_BTD: Array, matrix: nnx.Param, bias: nnx.Param | None) -> Array:
        y_BTNH = project("BTD,DNH->BTNH", x_BTD, matrix)
        return y_BTNH if bias is None else y_BTNH + weight(bias, y_BTNH)[None, None, :, :]


def for_these_heads(k_BTKH: Array, matrix: nnx.Param) -> Array:
    """The key heads of this device's heads, those of `matrix` [..., N, H], where these are split over more devices."""
    if ways("heads") == ways("kv_heads"):
        return k_BTKH
    if ways("kv_heads") > 1:
        raise ConfigError(f"heads split {ways('heads')} ways, kv_heads {ways('kv_heads')}: split both alike, or kv_heads not")
    heads = matrix.shape[-2]
    group = heads * ways("heads") // k_BTKH.shape[2]
    return jnp.take(k_BTKH, (index("heads") * heads + jnp.arange(heads)) // group, axis=2)


def write(slots: Array, new: Array, index: Array) -> Array:
    """The slots [B, S, ...] with `new` [B, T, ...] from `index` on."""
    return jax.lax.dynamic_update_slice_in_dim(slots, new, index, axis=1)


def cache_mask(info: CacheInfo, place: Place, window: int | None, chunk: int | None) -> Array:
    """bool [B, T, S]: which slots of a cache the new tokens see."""
    T, S = place.positions_BT.shape[1], info.segments_BS.shape[1]
    assert place.segments_BT is not None
    t, s = info.index + jnp.arange(T)[:, None], jnp.arange(S)[None, :]
    reach = info.limit if window is None else jnp.minimum(info.limit, window)
    mask = (s <= t)[None, :, :]
    if info.prefix_BS is not None:
        mask = mask | (info.prefix_BS > 0)[:, None, :]
    mask = mask & (jnp.abs(t - s) < reach)[None, :, :]
    own, others = place.segments_BT, info.segments_BS
    if chunk is not None:
        positions_BS = jnp.cumsum(others > 0, axis=1) - 1
        own, others = chunks(own, place.positions_BT, chunk), chunks(others, positions_BS, chunk)
    return mask & (own[:, :, None] == others[:, None, :])


def chunks(segments_BT: Array, positions_BT: Array, chunk: int) -> Array:
    """int32 [B, T]: a number for each chunk of a document, as if it was a document of its own; 0 is padding.

    There can be 2^15 chunks of 2^16 documents.
    """
    return jnp.where(segments_BT > 0, segments_BT * 2**15 + positions_BT // chunk, 0)
