"""Word vectors that tell the context of a word from noise: skip-gram and CBOW."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_choice
from lm_jax.core.local import whole_row
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import Output
from lm_jax.models.word_tables import WordTables, WordTablesConfig


@dataclasses.dataclass(kw_only=True)
class WordVectorsConfig(WordTablesConfig):
    """Mikolov et al. 2013 (arXiv:1310.4546). A word is met by its `context`: "each" word of it alone (skip-gram), or their "mean"
    (CBOW, arXiv:1301.3781). Vectors of contexts start at 0; see `WordTablesConfig`.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "windows", "negatives"})
    targets: ClassVar[frozenset[str]] = frozenset({"context words"})

    context: str = "each"

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1 or an unknown context."""
        super().validate()
        check_choice("context", self.context, ("each", "mean"))

    def build(self, key: Array) -> "WordVectors":
        """The model with parameters drawn from `key`."""
        return WordVectors(self, nnx.Rngs(params=key))


class WordVectors(WordTables):
    """See `WordVectorsConfig`."""

    config: WordVectorsConfig

    def __init__(self, config: WordVectorsConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs, context_std=0.0)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """[B, T, D] of whole rows: the vectors of `batch["tokens"]`, or the means of those of their contexts (0 where there is
        none). Nothing is random."""
        x_BTD = self.words(batch["tokens"])
        if self.config.context == "mean":
            windows_BTS = whole_row(batch["windows"]).astype(x_BTD.dtype)
            count_BT = jnp.maximum(jnp.sum(windows_BTS, axis=-1), 1)
            x_BTD = jnp.einsum("BTS,BSD->BTD", windows_BTS, x_BTD) / count_BT[:, :, None]
        return Output(x_BTD, jnp.zeros((), jnp.float32), {})
