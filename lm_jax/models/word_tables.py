"""What models of word vectors have in common: a table of vectors of words, and one of the same words as contexts."""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.local import all_gather, whole_row
from lm_jax.core.types import Array
from lm_jax.models.base import ModelConfig
from lm_jax.nn.embedding import Embedding, EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class WordTablesConfig(ModelConfig):
    """Two vectors of `width` for each word. The vectors to use later are those of `embedding`, as in other models of text; they
    start with the standard deviation of the programs of word2vec and GloVe, 1 / (sqrt(12) width).
    """

    width: int = 100
    vocab_multiple: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1."""
        super().validate()
        check_positive(self, "width", "vocab_multiple")

    @property
    def initial_std(self) -> float:
        """The standard deviation of the vectors at the start."""
        return 1 / (math.sqrt(12) * self.width)

    @property
    def num_outputs(self) -> None:
        """None: no word is chosen."""
        return None

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`: none."""
        return {}

    def max_length(self) -> None:
        """See `ModelConfig.max_length`: any."""
        return None

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`: 0, as there is no matrix product; time goes into reading and writing tables."""
        return 0.0


class WordTables(nnx.Module):
    """See `WordTablesConfig`. Vectors of contexts start with `context_std`."""

    def __init__(self, config: WordTablesConfig, rngs: nnx.Rngs, context_std: float):
        self.config = config
        V = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        self.embedding = EmbeddingConfig().build(rngs, V, config.width, Init(embedding_std=config.initial_std))
        self.contexts = EmbeddingConfig().build(rngs, V, config.width, Init(embedding_std=context_std))

    def words(self, ids_BT: Array) -> Array:
        """[B, T, D] of whole rows: the vectors of words."""
        return self._look_up(self.embedding, ids_BT)

    def outputs(self, ids_BT: Array) -> Array:
        """[B, T, D] of whole rows: the vectors of words as what is met by a context."""
        return self._look_up(self.contexts, ids_BT)

    def tables(self) -> tuple[Array, Array, Array | None]:
        """[V, D], [V, D] and [V]: the vectors of words that tell others, those of words that are told, and the bias of these (None:
        the model has none)."""
        return self.embedding.table[...], self.contexts.table[...], None

    def _look_up(self, table: Embedding, ids_BT: Array) -> Array:
        return whole(table(ids_BT, jnp.zeros((1, ids_BT.shape[1]), jnp.int32), jnp.dtype(self.config.dtype), None))


def whole(x_BTD: Array) -> Array:
    """All tokens of the rows of the residual stream."""
    return whole_row(all_gather(x_BTD, "residual", 1))
