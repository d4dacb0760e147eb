"""What every objective says of itself."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax.numpy as jnp

from lm_jax.core.config import Config
from lm_jax.core.local import all_sum, own_tokens, part
from lm_jax.core.types import Array, Mean
from lm_jax.models.base import ModelConfig

Objective = Callable[..., dict[str, Mean]]  # (model, batch, *, key) -> named terms, of which "loss" is minimised


@dataclasses.dataclass(kw_only=True)
class ObjectiveConfig(Config):
    """Base of all objectives. `targets` are those that it compares with, in the words of `core.types.Batch`.

    `chunks` > 1 computes logits and loss in that many chunks of each row, where the objective can.
    """

    targets: ClassVar[frozenset[str]]

    chunks: int = 1

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the model is none for this objective, though their targets agree."""

    def remarks(self, terms: dict[str, float]) -> Iterator[str]:
        """Yields what is to be said of the terms of the first batch, each in a line."""
        yield from ()

    def build(self) -> Objective:
        """The objective."""
        raise NotImplementedError


def total(x_BT: Array) -> Array:
    """The sum, over all rows of the batch, of what a device has for whole rows [B, T]; each device adds its own tokens."""
    return all_sum(jnp.sum(part(own_tokens(x_BT), "residual", 1)), "batch", "sequence", "residual")
