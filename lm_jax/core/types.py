"""The few types that every floor shares, and the legend of tensor names.

Tensor names carry their axes: `x_BTD`, `q_BTNH`. Einsum strings use the same letters.

    B batch           T query positions    S memory positions   D model width
    N query heads     K key-value heads    H head size          G query heads per key-value head
    F feed-forward    V vocabulary         E experts            C capacity
    L layers          P patches            M mel bins         A size of a hidden vector of scores
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# What a model may read of it, its `inputs`: tokens features prefix memory_tokens pair_tokens images mels waves windows negatives
# contexts. Beside them segments positions (also memory_..., pair_...) token_types, samples (how many of the waves are no padding),
# and targets weights counts. `targets` of data, models, objectives and evals say what the targets are, in words of this list: "next
# words", "masked words", "classes", "tags", "spans", "transcripts", "context words", "counts of pairs" (of words), "pairs" (which
# text of the batch belongs to which image, or to which other text), "captioned pairs" (both that and the next words).
Batch = dict[str, Any]


class Mean(NamedTuple):
    """A weighted mean kept as its sum and its total weight, so that it adds across micro-batches and hosts."""

    sum: Array
    count: Array

    @property
    def value(self) -> Array:
        """`sum / count`; 0 where the count is 0."""
        return self.sum / jnp.maximum(self.count, 1e-30)

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.sum + other.sum, self.count + other.count)


class Aux(NamedTuple):
    """What layers return beside their output: a loss of every token, and what is only logged."""

    loss: Array  # float32 []: weighted already, the sum over the tokens that are no padding; layers and micro-batches add up
    metrics: dict[str, Mean]

    @classmethod
    def none(cls) -> "Aux":
        """That of a layer without any."""
        return cls(jnp.zeros((), jnp.float32), {})

    def __add__(self, other: "Aux") -> "Aux":  # type: ignore[override]
        metrics = dict(self.metrics)
        for name, mean in other.metrics.items():
            metrics[name] = metrics[name] + mean if name in metrics else mean
        return Aux(self.loss + other.loss, metrics)
