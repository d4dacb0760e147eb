"""The decoder-only language model: GPT-2, Llama, Qwen, Gemma are values of its config."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.local import all_gather, all_sum, token_index
from lm_jax.core.param import gathered, param, weight
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.nn.attention import Cache, CacheInfo, Place
from lm_jax.nn.embedding import EmbeddingConfig, soft_cap
from lm_jax.nn.init import Init
from lm_jax.nn.linear import project
from lm_jax.nn.stack import StackConfig


class Output(NamedTuple):
    """What a model returns: the last hidden states, the auxiliary loss of a token (a mean), and metrics of its layers."""

    hidden: Array  # [B, T, D]
    loss: Array  # float32 []; 0 in a dense model
    metrics: dict[str, Mean]


class DecodeState(NamedTuple):
    """The state of cached decoding."""

    caches: tuple[Cache, ...]
    info: CacheInfo


@dataclasses.dataclass(kw_only=True)
class HeadConfig(Config):
    """The output projection to the vocabulary: tied to the embedding (Press and Wolf 2017, arXiv:1608.05859) or its own.

    `soft_cap`: logits pass through cap * tanh(logit / cap) (Gemma 2, arXiv:2408.00118).
    """

    tied: bool = True
    bias: bool = False
    soft_cap: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a non-positive cap."""
        if self.soft_cap is not None:
            check_positive(self, "soft_cap")


@dataclasses.dataclass(kw_only=True)
class DecoderConfig(Config):
    """Embedding, causal stack, vocabulary head.

    `dtype` is that of activations and matrix products ("float32" or "bfloat16"); parameters, softmax, norm statistics,
    logits and loss are float32.
    """

    vocab_size: int = 50257
    width: int = 768
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    init: Init = dataclasses.field(default_factory=Init)
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype or heads that do not divide the width."""
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(self, "vocab_size", "width")
        for block in self.stack.pattern:
            block.mixer.size(self.width)

    def build(self, key: Array) -> "Decoder":
        """The model with parameters drawn from `key`."""
        return Decoder(self, nnx.Rngs(params=key))

    def max_length(self) -> int | None:
        """The longest row the model can read: that of its position table; None without one."""
        return None if self.embedding.positions is None else self.embedding.positions.length

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one training step per token: forward and twice that backward.

        Attention counts the full square (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B) or with `causal` only
        what a causal mask leaves. Recomputation (remat) is not counted: these are model, not hardware FLOPs.
        """
        forward = self.stack.flops_per_token(self.width, length, causal=causal)
        return 3 * (forward + 2 * self.width * self.vocab_size)


class Decoder(nnx.Module):
    """See `DecoderConfig`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.width
        self.embedding = config.embedding.build(rngs, V, D, config.init)
        self.stack = config.stack.build(rngs, D, config.init)
        self.head = None if config.head.tied else param(rngs, config.init.linear(D), (D, V), ("embed", "vocab"))
        self.head_bias = param(rngs, nnx.initializers.zeros, (V,), ("vocab",)) if config.head.bias else None

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states for `batch["tokens"]` [B, T], with "segments" and "positions" [B, T] where given.

        `key` drives dropout; None means evaluation.
        """
        tokens = batch["tokens"]
        positions = batch.get("positions")
        if positions is None:
            positions = token_index(tokens.shape[1])[None, :]
        keys = (None, None) if key is None else jax.random.split(key)
        place = Place(positions, batch.get("segments"))
        x_BTD = self.embedding(tokens, positions, jnp.dtype(self.config.dtype), keys[0])
        x_BTD, _, aux = self.stack(x_BTD, place, key=keys[1])
        if not aux.metrics:
            return Output(x_BTD, aux.loss, {})
        real = tokens.size if place.segments_BT is None else jnp.sum(place.segments_BT > 0)
        count = all_sum(jnp.asarray(real, jnp.float32), "batch", "sequence")
        return Output(x_BTD, aux.loss / jnp.maximum(count, 1.0), aux.metrics)

    def logits(self, hidden_BTD: Array) -> Array:
        """float32 [B, T, V]: position t scores the token after it. In a local view V is this device's part of the vocabulary."""
        hidden_BTD = all_gather(hidden_BTD, "residual", 1)
        if self.head is None:
            y_BTV = project("BTD,VD->BTV", hidden_BTD, self.embedding.table, jnp.float32)
        else:
            y_BTV = project("BTD,DV->BTV", hidden_BTD, self.head, jnp.float32)
        if self.head_bias is not None:
            y_BTV = y_BTV + weight(self.head_bias, y_BTV)[None, None, :]
        return soft_cap(y_BTV, self.config.head.soft_cap)

    def with_whole_head(self, like: Array) -> "Decoder":
        """This model with the head's matrix `gathered` for several uses: by chunks of the loss, or as embedding too."""
        matrix = self.embedding.table if self.head is None else self.head
        is_param = lambda x: isinstance(x, nnx.Param)  # noqa: E731
        return jax.tree.map(lambda p: gathered(p, like) if p is matrix else p, self, is_leaf=is_param)

    def init_cache(self, batch_size: int, length: int, context: int | None = None) -> DecodeState:
        """An empty cache for `batch_size` rows of up to `length` tokens.

        With `context`, a query sees at most that many tokens back: generation can run past the length the model was
        trained at, as a sliding window.
        """
        caches = self.stack.init_caches(batch_size, length, self.config.width, jnp.dtype(self.config.dtype))
        segments = jnp.zeros((batch_size, length), jnp.int32)
        limit = jnp.int32(length if context is None else context)
        return DecodeState(caches, CacheInfo(jnp.int32(0), segments, limit))

    def decode(self, tokens_BT: Array, state: DecodeState, weights_BT: Array | None = None) -> tuple[Array, DecodeState]:
        """float32 logits [B, T, V] of the next T tokens of each row, and the state with them added.

        `weights_BT` is 0 at padding (which must stand at the left of a row), 1 elsewhere; None: no padding.
        """
        caches, info = state
        B, T = tokens_BT.shape
        new = jnp.ones((B, T), jnp.int32) if weights_BT is None else (weights_BT > 0).astype(jnp.int32)
        segments = jax.lax.dynamic_update_slice_in_dim(info.segments_BS, new, info.index, axis=1)
        seen_B1 = jnp.sum(info.segments_BS, axis=1, keepdims=True)
        positions = jnp.maximum(seen_B1 + jnp.cumsum(new, axis=1) - 1, 0)
        info = info._replace(segments_BS=segments)
        x_BTD = self.embedding(tokens_BT, positions, jnp.dtype(self.config.dtype), None)
        x_BTD, caches, _ = self.stack(x_BTD, Place(positions, new), caches=caches, info=info)
        return all_gather(self.logits(x_BTD), "vocab", 2), DecodeState(caches, info._replace(index=info.index + T))
