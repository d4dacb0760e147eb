"""Multi-head latent attention: keys and values of all heads are made from one short vector of a token, all that is cached."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, to_residual, token_index, ways
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.attend import IMPLEMENTATIONS, attend
from lm_jax.nn.attention import cache_mask, write
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.kernels.reference import masked_attention
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens
from lm_jax.nn.linear import project
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import CacheInfo, Place
from lm_jax.nn.positions import RotaryConfig


class Latents(NamedTuple):
    """What a token leaves for those after it."""

    latents: Array  # [B, S, R]: normed
    turned: Array  # [B, S, r]: the part of the keys that is rotated, the same for all heads


@dataclasses.dataclass(kw_only=True)
class LatentAttentionConfig(Config):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    | field | what |
    |---|---|
    | query_rank | queries are made from a vector of this size; None: from the input |
    | rank | the size R of the vector that keys and values are made from |
    | head_dim | of the part of queries and keys without positions |
    | turned_dim | of the part with rotary positions, r, whose keys all heads share |
    | value_dim | of the values |
    | norm | of the two short vectors |
    | scale | of the scores; None: (head_dim + turned_dim) ** -0.5 |
    | window | as in `AttentionConfig` |
    | bias | on the projections to the short vectors and on the output |

    Decoding multiplies queries, not the cached vectors, with the matrix that makes keys, and so never makes the keys of the past.
    """

    num_heads: int = 12
    query_rank: int | None = None
    rank: int = 512
    head_dim: int = 128
    turned_dim: int = 64
    value_dim: int = 128
    rotary: RotaryConfig = dataclasses.field(default_factory=lambda: RotaryConfig(interleaved=True))
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    scale: float | None = None
    window: int | None = None
    bias: bool = False
    implementation: str = "auto"

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or an unknown implementation."""
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_positive(self, "num_heads", "rank", "head_dim", "turned_dim", "value_dim")
        for name in ("query_rank", "scale", "window"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.turned_dim % 2:
            raise ConfigError(f"turned_dim={self.turned_dim} must be even: pairs are turned")

    def check(self, width: int) -> None:
        """Any width will do."""

    def sizes(self, width: int) -> tuple[int, int]:
        """Of the keys and of the values of a head."""
        return self.head_dim + self.turned_dim, self.value_dim

    def spec(self, width: int, *, segments: bool, prefix: bool = False, bias: bool = False) -> AttentionSpec:
        """What the layer computes for inputs of any width."""
        scale = self.scale or (self.head_dim + self.turned_dim) ** -0.5
        return AttentionSpec(scale=scale, window=self.window, segments=segments, prefix=prefix, bias=bias)

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> Latents:
        """For `batch_size` rows of up to `length` tokens."""
        return Latents(*(jnp.zeros((batch_size, length, size), dtype) for size in (self.rank, self.turned_dim)))

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "LatentAttention":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return LatentAttention(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one forward pass, as `AttentionConfig.flops_per_token`."""
        N, H, V = self.num_heads, self.head_dim + self.turned_dim, self.value_dim
        query = N * H * width if self.query_rank is None else self.query_rank * (width + N * H)
        others = width * (self.rank + self.turned_dim) + self.rank * N * (self.head_dim + V) + N * V * width
        window = min(self.window or length, length)
        seen = (length - (window - 1) / 2) * window / length if causal else length
        return 2 * (query + others) + 2 * seen * N * (H + V)


class LatentAttention(nnx.Module):
    """See `LatentAttentionConfig`. `expand` makes the keys without positions and the values of a head, in this order."""

    def __init__(self, config: LatentAttentionConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, N, R, Q = width, config.num_heads, config.rank, config.query_rank
        H, V, r = config.head_dim, config.value_dim, config.turned_dim
        heads = ("heads", "head_dim")
        self.query_latent = None if Q is None else param(rngs, init.linear(D), (D, Q), ("embed", "inner"))
        self.query_norm = None if Q is None else config.norm.build(rngs, Q, axes=("inner",))
        source = (D, "embed") if Q is None else (Q, "inner")
        self.query = param(rngs, init.linear(source[0]), (source[0], N, H + r), (source[1], *heads))
        self.latent = param(rngs, init.linear(D), (D, R + r), ("embed", "inner"))
        self.latent_norm = config.norm.build(rngs, R, axes=("inner",))
        self.expand = param(rngs, init.linear(R), (R, N, H + V), ("inner", *heads))
        self.output = param(rngs, init.output(N * V, num_layers), (N, V, D), (*heads, "embed"))
        self.query_latent_bias = param(rngs, zeros, (Q,), ("inner",)) if config.bias and Q is not None else None
        self.latent_bias = param(rngs, zeros, (R + r,), ("inner",)) if config.bias else None
        self.output_bias = param(rngs, zeros, (D,), ("embed",)) if config.bias else None

    def __call__(
        self, x_BTD: Array, place: Place, cache: Latents | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, Latents | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also the cache with T slots more."""
        config, x_BTD = self.config, all_gather(x_BTD, "residual", 1)
        T, H = x_BTD.shape[1], config.head_dim
        length = T * ways("sequence") if cache is None else cache.latents.shape[1]
        q_BTNH = project("BTD,DNH->BTNH", self._query_source(x_BTD), self.query)
        turned = config.rotary.rotate(q_BTNH[..., H:], place.positions_BT, length)
        new_BTR = _with_bias(project("BTD,DR->BTR", x_BTD, self.latent), self.latent_bias)
        latents = self.latent_norm(new_BTR[..., : config.rank])
        keys = config.rotary.rotate(new_BTR[:, :, None, config.rank :], place.positions_BT, length)
        spec = config.spec(x_BTD.shape[-1], **place.has())
        if cache is None or info is None:
            both = project("BTR,RNH->BTNH", latents, self.expand)
            shared = jnp.broadcast_to(keys, (*both.shape[:3], config.turned_dim))
            q_BTNH, k_BTNH = (jnp.concatenate(parts, -1) for parts in ((q_BTNH[..., :H], turned), (both[..., :H], shared)))
            tokens = Tokens(token_index(T), place.segments_BT, place.prefix_BT)
            y_BTNV = attend(config.implementation, spec, q_BTNH, k_BTNH, both[..., H:], tokens, tokens, None, place.bias_NTS)
        else:
            cache = Latents(write(cache.latents, latents, info.index), write(cache.turned, keys[:, :, 0], info.index))
            expand = weight(self.expand, q_BTNH)
            q_BTNR = jnp.einsum("BTNH,RNH->BTNR", q_BTNH[..., :H], expand[..., :H])
            mask, slots = cache_mask(info, place, config.window, None), jnp.arange(cache.latents.shape[1])
            one_head = jnp.concatenate(cache, -1)[:, :, None], cache.latents[:, :, None]
            at, q_BTNR = info.index + jnp.arange(T), jnp.concatenate([q_BTNR, turned], -1)
            y_BTNR = masked_attention(spec, q_BTNR, *one_head, mask, at, slots, None, place.bias_NTS)
            y_BTNV = jnp.einsum("BTNR,RNV->BTNV", y_BTNR, expand[..., H:])
        y_BTD = to_residual(project("BTNH,NHD->BTD", y_BTNV, self.output), "heads")
        return _with_bias(y_BTD, self.output_bias), cache

    def _query_source(self, x_BTD: Array) -> Array:
        if self.query_latent is None:
            return x_BTD
        return self.query_norm(_with_bias(project("BTD,DR->BTR", x_BTD, self.query_latent), self.query_latent_bias))


def _with_bias(y_BTD: Array, bias: nnx.Param | None) -> Array:
    return y_BTD if bias is None else y_BTD + weight(bias, y_BTD)[None, None, :]
