"""Word vectors whose products are logarithms of counts."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.param import param
from lm_jax.core.types import Array, Batch
from lm_jax.models.word_tables import WordTables, WordTablesConfig, whole
from lm_jax.nn.embedding import look_up
from lm_jax.nn.init import zeros


@dataclasses.dataclass(kw_only=True)
class GloVeConfig(WordTablesConfig):
    """GloVe (Pennington et al. 2014, eq. 7): as a word and as a context, each word has a vector of `width` and a bias.

    All vectors start alike, biases at 0; see `WordTablesConfig`.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "contexts"})
    targets: ClassVar[frozenset[str]] = frozenset({"counts of pairs"})

    def build(self, key: Array) -> "GloVe":
        """The model with parameters drawn from `key`."""
        return GloVe(self, nnx.Rngs(params=key))


class GloVe(WordTables):
    """See `GloVeConfig`."""

    def __init__(self, config: GloVeConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs, config.initial_std)
        rows = self.embedding.table.shape[0]
        self.bias, self.context_bias = (param(rngs, zeros, (rows, 1), ("vocab", "inner")) for _ in range(2))

    def tables(self) -> tuple[Array, Array, Array | None]:
        """See `WordTables.tables`."""
        return self.contexts.table[...], self.embedding.table[...], self.bias[...][:, 0]

    def log_counts(self, batch: Batch) -> Array:
        """float32 [B, T]: what the logarithm of the count of each pair is expected to be."""
        words, contexts = batch["tokens"], batch["contexts"]
        product_BT = jnp.sum(self.words(words) * self.outputs(contexts), axis=-1)
        biases = look_up(self.bias, words, jnp.float32) + look_up(self.context_bias, contexts, jnp.float32)
        return product_BT.astype(jnp.float32) + whole(biases)[:, :, 0]
