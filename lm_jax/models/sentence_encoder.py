"""Sentence embeddings: one encoder that makes a unit vector of each text, of which near ones mean about the same."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.base import ModelConfig
from lm_jax.models.embeddings import Embeddings, unit
from lm_jax.models.encoder import both_ways
from lm_jax.models.text import read_whole
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class SentenceEncoderConfig(ModelConfig):
    """A vector of `width` of a text: the `pool` over the last hidden states of its tokens, made a unit vector ("mean" or "max", or
    "first", that of its first token; Sentence-BERT, Reimers and Gurevych 2019, arXiv:1908.10084, section 3).

    Two texts that belong together pass through the same encoder. Products of vectors are multiplied by exp of a parameter that
    starts at `log_scale` (0.05 is the temperature of SimCSE, Gao et al. 2021, arXiv:2104.08821), and a parameter that starts at
    `bias` is added (None: none). Embedding and stack have the names that they have in an `Encoder`, from which it can be started.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"pair_tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})

    vocab_multiple: int = 1
    width: int = 384
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    stack: StackConfig = dataclasses.field(default_factory=both_ways)
    pool: str = "mean"
    log_scale: float = math.log(1 / 0.05)
    bias: float | None = None
    init: Init = dataclasses.field(default_factory=Init)

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype or pool, or sizes out of range."""
        super().validate()
        check_positive(self, "vocab_multiple", "width")
        check_choice("pool", self.pool, ("mean", "max", "first"))
        self.stack.check(self.width)

    @property
    def num_outputs(self) -> None:
        """See `ModelConfig.num_outputs`: what it chooses from are the others of the batch."""
        return None

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"stack": (self.width, self.stack)}

    def max_length(self) -> int | None:
        """See `ModelConfig.max_length`."""
        return self.embedding.max_length()

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`."""
        return 3 * self.stack.flops_per_token(self.width, length, causal=causal)

    def build(self, key: Array) -> "SentenceEncoder":
        """The model with parameters drawn from `key`."""
        return SentenceEncoder(self, nnx.Rngs(params=key))


class SentenceEncoder(nnx.Module):
    """See `SentenceEncoderConfig`."""

    def __init__(self, config: SentenceEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        table_size = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        self.embedding = config.embedding.build(rngs, table_size, config.width, config.init)
        self.stack = config.stack.build(rngs, config.width, config.init)
        self.log_scale = param(rngs, nnx.initializers.constant(config.log_scale), (), ())
        self.bias = None if config.bias is None else param(rngs, nnx.initializers.constant(config.bias), (), ())

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Embeddings:
        """The vectors of both texts of each row of `batch["pair_tokens"]` [B, T, 2]; "pair_segments" are 0 at padding."""
        sides = [_texts(batch[name]) if name in batch else None for name in ("pair_tokens", "pair_segments")]
        vectors, aux = self.vectors(*sides, key=key)
        left, right = vectors[::2], vectors[1::2]
        bias = None if self.bias is None else weight(self.bias, left)
        return Embeddings(left, right, jnp.exp(weight(self.log_scale, left)), bias, aux.loss, aux.metrics)

    def pair(self, batch: Batch, *, key: Array | None = None) -> Embeddings:
        """The same, by the name that all models of pairs have."""
        return self(batch, key=key)

    def vectors(self, tokens_BT: Array, segments_BT: Array | None = None, *, key: Array | None = None) -> tuple[Array, Aux]:
        """float32 [B, D]: a unit vector of each text, given as whole rows of ids; `segments_BT` is 0 at padding (None: there is
        none). That of a row of padding only is no number."""
        read, pool = read_whole(self.embedding, self.stack, tokens_BT, segments_BT, self.config.dtype, key), self.config.pool
        real_BT = jnp.ones(tokens_BT.shape, jnp.int32) if segments_BT is None else segments_BT
        return unit(_pooled(read.hidden, (real_BT > 0)[:, :, None], pool)), Aux(read.loss, read.metrics)


def _texts(x_BT2: Array) -> Array:
    """[2 B, T]: the two texts of each row one after the other."""
    return jnp.moveaxis(x_BT2, 2, 1).reshape(-1, x_BT2.shape[1])


def _pooled(x_BTD: Array, real_BT1: Array, pool: str) -> Array:
    if pool == "first":
        return x_BTD[:, 0]
    if pool == "max":
        return jnp.max(jnp.where(real_BT1, x_BTD, -jnp.inf), axis=1)
    return jnp.sum(jnp.where(real_BT1, x_BTD, 0), axis=1)  # the direction of the mean
