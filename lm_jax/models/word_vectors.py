"""Word vectors: a table of vectors of words, and one of the same words as contexts."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.local import all_gather, whole_row
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import ModelConfig, Output
from lm_jax.nn.embedding import Embedding, EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class WordVectorsConfig(ModelConfig):
    """Two vectors of `width` for each word (Mikolov et al. 2013, arXiv:1310.4546).

    A word is met by its `context`: "each" word of it alone (skip-gram), or their "mean" (CBOW, arXiv:1301.3781). The vectors to
    use later are those of `embedding`, as in other models of text; they start with the standard deviation of
    the authors' program, 1 / (sqrt(12) width), the others at 0.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "windows", "negatives"})
    targets: ClassVar[frozenset[str]] = frozenset({"context words"})

    width: int = 100
    context: str = "each"
    vocab_multiple: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1 or an unknown context."""
        super().validate()
        check_positive(self, "width", "vocab_multiple")
        check_choice("context", self.context, ("each", "mean"))

    @property
    def initial_std(self) -> float:
        """The standard deviation of the vectors at the start."""
        return 1 / (math.sqrt(12) * self.width)

    @property
    def context_std(self) -> float:
        """That of the vectors of contexts."""
        return 0.0

    @property
    def num_outputs(self) -> None:
        """None: words are told from noise, not chosen."""
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

    def build(self, key: Array) -> "WordVectors":
        """The model with parameters drawn from `key`."""
        return WordVectors(self, nnx.Rngs(params=key))


class WordVectors(nnx.Module):
    """See `WordVectorsConfig`."""

    def __init__(self, config: WordVectorsConfig, rngs: nnx.Rngs):
        self.config = config
        V = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        self.embedding = EmbeddingConfig().build(rngs, V, config.width, Init(embedding_std=config.initial_std))
        self.contexts = EmbeddingConfig().build(rngs, V, config.width, Init(embedding_std=config.context_std))

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """[B, T, D] of whole rows: the vectors of `batch["tokens"]`, or the means of those of their contexts (0 where there is
        none). Nothing is random."""
        x_BTD = self._look_up(self.embedding, batch["tokens"])
        if self.config.context == "mean":
            windows_BTS = whole_row(batch["windows"]).astype(x_BTD.dtype)
            count_BT = jnp.maximum(jnp.sum(windows_BTS, axis=-1), 1)
            x_BTD = jnp.einsum("BTS,BSD->BTD", windows_BTS, x_BTD) / count_BT[:, :, None]
        return Output(x_BTD, jnp.zeros((), jnp.float32), {})

    def outputs(self, ids_BT: Array) -> Array:
        """[B, T, D] of whole rows: the vectors of words as what is met by a context."""
        return self._look_up(self.contexts, ids_BT)

    def _look_up(self, table: Embedding, ids_BT: Array) -> Array:
        x_BTD = table(ids_BT, jnp.zeros((1, ids_BT.shape[1]), jnp.int32), jnp.dtype(self.config.dtype), None)
        return self._whole(x_BTD)

    def _whole(self, x_BTD: Array) -> Array:
        """All tokens of the rows of the residual stream."""
        return whole_row(all_gather(x_BTD, "residual", 1))
