"""What all models of text are made of: embedding, stack, vocabulary head."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.local import all_sum, token_index
from lm_jax.core.param import gathered
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.base import ModelConfig, Output
from lm_jax.nn.embedding import Embedding, EmbeddingConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.place import Memory, Place
from lm_jax.nn.stack import Stack, StackConfig


@dataclasses.dataclass(kw_only=True)
class TextConfig(ModelConfig):
    """Embedding, stack, vocabulary head.

    The tables have a multiple of `vocab_multiple` rows, so that they split evenly: those from `vocab_size` on belong to no token,
    score nothing and are never trained.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens"})

    vocab_multiple: int = 1
    width: int = 768
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    init: Init = dataclasses.field(default_factory=Init)

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype or heads that do not divide the width."""
        super().validate()
        check_positive(self, "vocab_multiple", "width")
        self.stack.check(self.width)

    @property
    def table_size(self) -> int:
        """Rows of the embedding, and columns of the head."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def num_outputs(self) -> int:
        """How many targets the head scores."""
        return self.vocab_size

    @property
    def head_size(self) -> int:
        """Columns of the head."""
        return self.table_size

    @property
    def reuses_head(self) -> bool:
        """Whether one step uses the head's matrix more than once: as embedding too, where it is tied."""
        return self.head.tied

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"stack": (self.width, self.stack)}

    def max_length(self) -> int | None:
        """See `ModelConfig.max_length`."""
        return self.embedding.max_length()

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`."""
        forward = self.stack.flops_per_token(self.width, length, causal=causal)
        return 3 * (forward + self.head.flops_per_token(self.width, self.num_outputs))


class TextModel(nnx.Module):
    """See `TextConfig`."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.table_size, config.width
        self.embedding = config.embedding.build(rngs, V, D, config.init)
        self.stack = config.stack.build(rngs, D, config.init)
        self.head = config.head.build(rngs, config.head_size, D, config.init)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states for `batch["tokens"]` [B, T], with "segments", "positions", "prefix" and "token_types" [B, T] where given.

        `key` drives dropout; None means evaluation.
        """
        x_BTD, aux = self._hidden(batch, place_of(batch), key)
        return output_of(x_BTD, aux, batch)

    def _hidden(self, batch: Batch, place: Place, key: Array | None) -> tuple[Array, Aux]:
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD, _, aux = self.stack(self._embed(batch, place, keys[0]), place, key=keys[1])
        return x_BTD, aux

    def _embed(self, batch: Batch, place: Place, key: Array | None) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        return self.embedding(batch["tokens"], place.positions_BT, dtype, key, batch.get("token_types"))

    def logits(self, hidden_BTD: Array) -> Array:
        """float32 [B, T, V] of hidden states; in a local view V is this device's part of the vocabulary."""
        return self.head(hidden_BTD, self.embedding.table, self.config.num_outputs)

    def logits_of(self, hidden_BTD: Array, ids: Array) -> Array:
        """float32 logits [B, T, S] of ids [S], or [B, T] of ids [B, T], of this device's tokens of the residual stream."""
        return self.head.logits_of(hidden_BTD, self.embedding.table, ids)

    def with_whole_head(self, like: Array) -> "TextModel":
        """This model with the head's matrix `gathered` for several uses: by chunks of the loss, or as embedding too."""
        matrix = self.embedding.table if self.head.matrix is None else self.head.matrix
        is_param = lambda x: isinstance(x, nnx.Param)  # noqa: E731
        return jax.tree.map(lambda p: gathered(p, like) if p is matrix else p, self, is_leaf=is_param)


def read_whole(
    embedding: Embedding, stack: Stack, tokens_BT: Array, segments_BT: Array | None, dtype: str, key: Array | None
) -> Output:
    """Hidden states [B, T, D] of texts that every device of a row has whole; `segments_BT` is 0 at padding (None: no padding)."""
    keys = (None, None) if key is None else jax.random.split(key)
    with whole_rows():
        place = Place(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None, :], segments_BT)
        x_BTD = embedding(tokens_BT, place.positions_BT, jnp.dtype(dtype), keys[0])
        x_BTD, _, aux = stack(x_BTD, place, key=keys[1])
        return output_of(x_BTD, aux, {"tokens": tokens_BT, "segments": segments_BT})


def place_of(batch: Batch) -> Place:
    """Where the tokens of a batch stand; positions count from the start of the row where none are given."""
    positions = batch.get("positions")
    if positions is None:
        positions = token_index(batch["tokens"].shape[1])[None, :]
    return Place(positions, batch.get("segments"), prefix_BT=batch.get("prefix"))


def output_of(x_BTD: Array, aux: Aux, batch: Batch, further: tuple[Array, ...] = ()) -> Output:
    """The output, with the auxiliary loss as a mean over the tokens that are no padding."""
    if not aux.metrics:
        return Output(x_BTD, aux.loss, {}, further)
    count = _num_real(batch["tokens"].shape, batch.get("segments"))
    return Output(x_BTD, aux.loss / jnp.maximum(count, 1.0), aux.metrics, further)


def for_targets(aux: Aux, memory: Memory, batch: Batch) -> Aux:
    """What the layers of an encoder return, so that `output_of` makes a mean over the tokens of `memory` of its loss, and not over
    those of `batch`."""
    if not aux.metrics:
        return aux
    with whole_rows():
        own = _num_real(memory.x_BSD.shape[:2], memory.segments_BS)
    return aux._replace(loss=aux.loss * _num_real(batch["tokens"].shape, batch.get("segments")) / jnp.maximum(own, 1.0))


def _num_real(shape: tuple[int, ...], segments_BT: Array | None) -> Array:
    """float32 []: the tokens of all devices that are no padding."""
    real = math.prod(shape) if segments_BT is None else jnp.sum(segments_BT > 0)
    return all_sum(jnp.asarray(real, jnp.float32), "batch", "sequence")
