"""Word vectors whose products are logarithms of counts."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param
from lm_jax.core.types import Array, Batch
from lm_jax.models.word_vectors import WordVectors, WordVectorsConfig
from lm_jax.nn.embedding import look_up
from lm_jax.nn.init import zeros


@dataclasses.dataclass(kw_only=True)
class GloVeConfig(WordVectorsConfig):
    """GloVe (Pennington et al. 2014, eq. 7): as a word and as a context, each word has a vector of `width` and a bias.

    The vectors to use later are those of `embedding`; all vectors start with the standard deviation of the authors' program,
    1 / (sqrt(12) width), biases at 0.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "contexts"})
    targets: ClassVar[frozenset[str]] = frozenset({"counts of pairs"})

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1 or a context, which has no meaning here."""
        super().validate()
        if self.context != "each":
            raise ConfigError(f"context={self.context!r} has no meaning for GloVe, where each pair is met alone: leave it out")

    @property
    def context_std(self) -> float:
        """See `WordVectorsConfig`: as that of words."""
        return self.initial_std

    def build(self, key: Array) -> "GloVe":
        """The model with parameters drawn from `key`."""
        return GloVe(self, nnx.Rngs(params=key))


class GloVe(WordVectors):
    """See `GloVeConfig`."""

    def __init__(self, config: GloVeConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        rows = self.embedding.table.shape[0]
        self.bias, self.context_bias = (param(rngs, zeros, (rows, 1), ("vocab", "inner")) for _ in range(2))

    def log_counts(self, batch: Batch) -> Array:
        """float32 [B, T]: what the logarithm of the count of each pair is expected to be."""
        words, contexts = batch["tokens"], batch["contexts"]
        product_BT = jnp.sum(self._look_up(self.embedding, words) * self.outputs(contexts), axis=-1)
        biases = look_up(self.bias, words, jnp.float32) + look_up(self.context_bias, contexts, jnp.float32)
        return product_BT.astype(jnp.float32) + self._whole(biases)[:, :, 0]
