"""Contrastive learning and captioning in one step."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.coca import CoCa
from lm_jax.objectives.base import ObjectiveConfig
from lm_jax.objectives.contrastive import ContrastiveConfig
from lm_jax.objectives.lm import token_sums


@dataclasses.dataclass(kw_only=True)
class ContrastiveCaptioningConfig(ObjectiveConfig):
    """`contrastive_weight` times the contrastive loss of an image plus `caption_weight` times the cross-entropy of a token, in nats
    (CoCa, Yu et al. 2022, arXiv:2205.01917, equation 4, with the weights 1 and 2; the paper adds both directions of the contrastive
    loss and all tokens of a caption, where these are means, as in open_clip).
    """

    targets: ClassVar[frozenset[str]] = frozenset({"captioned pairs"})

    contrastive: ContrastiveConfig = dataclasses.field(default_factory=ContrastiveConfig)
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0

    def validate(self) -> None:
        """Raises `ConfigError` for weights that are negative or both 0, or no chunk."""
        weights = (self.contrastive_weight, self.caption_weight)
        if min(weights) < 0 or not sum(weights) or self.chunks < 1:
            raise ConfigError(
                f"contrastive_weight and caption_weight={weights} must not be negative or both 0, chunks={self.chunks} at least 1"
            )

    def build(self) -> "ContrastiveCaptioning":
        """The objective."""
        return ContrastiveCaptioning(self)


class ContrastiveCaptioning:
    """See `ContrastiveCaptioningConfig`. (model, batch, key) -> {"loss", "contrastive", "accuracy", "scale", "cross_entropy",
    "token_accuracy", ...}."""

    def __init__(self, config: ContrastiveCaptioningConfig):
        self.config, self.contrastive = config, config.contrastive.build()

    def __call__(self, model: CoCa, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over images, with their number as count, and of "cross_entropy" and "token_accuracy" over tokens, weighted by
        `batch["weights"]`."""
        config = self.config
        if config.chunks > 1 or model.config.reuses_head:
            model = model.with_whole_head(batch["weights"])
        pair, output = model.both(batch, key=key)
        terms = self.contrastive.terms(pair)
        sums = token_sums(model, output.hidden, batch, config.chunks)
        count = all_sum(jnp.sum(batch["weights"]), "batch", "sequence")
        captions = Mean(sums["cross_entropy"], count)
        rows = terms["contrastive"].count
        # A sum over images, as the contrastive loss is: each counts with the mean over the tokens.
        loss = config.contrastive_weight * terms["contrastive"].sum + config.caption_weight * captions.value * rows
        terms |= {"cross_entropy": captions, "token_accuracy": Mean(sums["correct"], count)}
        return {"loss": Mean(loss + output.loss * rows, rows)} | terms | output.metrics
