"""Negative sampling: words told from noise, given a context."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm_jax.core.config import check_positive
from lm_jax.core.local import whole_row
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.word_vectors import WordVectors
from lm_jax.objectives.base import ObjectiveConfig, total


@dataclasses.dataclass(kw_only=True)
class NegativeSamplingConfig(ObjectiveConfig):
    """-log s(v u) - `negatives` E[log s(-v u')] for each pair, s being the logistic function (Mikolov et al. 2013,
    arXiv:1310.4546, eq. 4), v the vector of a word (or the mean of a context), u that of a context word (or of the word in it).

    The expectation over noise u' is the mean over the noise words of the row, whatever their number.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"context words"})

    negatives: float = 5.0

    def validate(self) -> None:
        """Raises `ConfigError` for a weight that is not above 0."""
        check_positive(self, "negatives")

    def build(self) -> "NegativeSampling":
        """The objective."""
        return NegativeSampling(self)


class NegativeSampling:
    """See `NegativeSamplingConfig`. "loss" and "accuracy" (pairs that score above 0) are means over pairs, in nats."""

    def __init__(self, config: NegativeSamplingConfig):
        self.config = config

    def __call__(self, model: WordVectors, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over all pairs, with their number as count."""
        x_BTD, u_BTD = model(batch).hidden, model.outputs(batch["tokens"])
        pairs_BTS = whole_row(batch["windows"])
        if model.config.context == "each":
            scores_BTS = jnp.einsum("BTD,BSD->BTS", x_BTD, u_BTD).astype(jnp.float32)
        else:
            scores_BTS = jnp.sum(x_BTD * u_BTD, axis=-1, keepdims=True).astype(jnp.float32)
            pairs_BTS = jnp.max(pairs_BTS, axis=-1, keepdims=True)  # one for each word that has a context
        with whole_rows():
            noise_BKD = model.outputs(batch["negatives"])
        noise_BTK = jnp.einsum("BTD,BKD->BTK", x_BTD, noise_BKD).astype(jnp.float32)
        pairs_BT = jnp.sum(pairs_BTS, axis=-1)
        told_BT = jnp.sum(pairs_BTS * jax.nn.softplus(-scores_BTS), axis=-1)
        noise_BT = pairs_BT * jnp.mean(jax.nn.softplus(noise_BTK), axis=-1)
        right_BT = jnp.sum(jnp.where(scores_BTS > 0, pairs_BTS, 0.0), axis=-1)
        count = total(pairs_BT)
        return {
            "loss": Mean(total(told_BT + self.config.negatives * noise_BT), count),
            "accuracy": Mean(total(right_BT), count),
        }
