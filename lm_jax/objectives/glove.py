"""The weighted least squares of GloVe."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lm_jax.core.config import check_positive
from lm_jax.core.local import whole_row
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.glove import GloVe
from lm_jax.objectives.base import ObjectiveConfig, total


@dataclasses.dataclass(kw_only=True)
class GloVeLossConfig(ObjectiveConfig):
    """f(X) (v u + b + c - log X)^2 for each pair of words with count X, f(X) = min(1, (X / `largest`)^`power`) (Pennington et al.
    2014, eq. 8 and 9)."""

    targets: ClassVar[frozenset[str]] = frozenset({"counts of pairs"})

    largest: float = 100.0
    power: float = 0.75

    def validate(self) -> None:
        """Raises `ConfigError` for values that are not above 0."""
        check_positive(self, "largest", "power")

    def build(self) -> "GloVeLoss":
        """The objective."""
        return GloVeLoss(self)


class GloVeLoss:
    """See `GloVeLossConfig`. "loss" is the mean over pairs."""

    def __init__(self, config: GloVeLossConfig):
        self.config = config

    def __call__(self, model: GloVe, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """The sum over all pairs, with their number as count."""
        counts_BT = whole_row(batch["counts"])
        weights_BT = jnp.minimum((counts_BT / self.config.largest) ** self.config.power, 1.0)
        loss_BT = weights_BT * (model.log_counts(batch) - jnp.log(counts_BT)) ** 2
        return {"loss": Mean(total(loss_BT), total(jnp.ones_like(counts_BT)))}
