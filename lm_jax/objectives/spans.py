"""Cross-entropy of the first and the last word of an answer among the words of its text."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_max, all_sum, index, ways
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.text import TextModel
from lm_jax.nn.kernels.spec import MASKED
from lm_jax.objectives.base import ObjectiveConfig


@dataclasses.dataclass(kw_only=True)
class SpansConfig(ObjectiveConfig):
    """-log P(start) - log P(end) in nats, each a softmax over the tokens of an example that have a weight (its candidates).

    Where several are right, their probabilities add up (Clark and Gardner 2018, arXiv:1710.10723, section 2.2). Bit c of a target
    says that the token is right for score c: the first is of starts, the second of ends. Examples without any are left out.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"spans"})

    def validate(self) -> None:
        """Raises `ConfigError` for chunks: a softmax needs all tokens of its example."""
        if self.chunks != 1:
            raise ConfigError(f"chunks={self.chunks}: spans are scored in one piece; take 1")

    def build(self) -> "Spans":
        """The objective."""
        return Spans()


class Spans:
    """See `SpansConfig`. (model, batch, key) -> {"loss", "cross_entropy", "accuracy"}, means over the examples."""

    def __call__(self, model: TextModel, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """ "accuracy" is the share of starts and of ends whose best candidate is right."""
        output = model(batch, key=key)
        nats_BS, right_BS, there_BS = _by_example(model.logits(output.hidden), batch)
        count, nats, right = (all_sum(jnp.sum(x), "batch") for x in (there_BS, nats_BS, right_BS))
        loss = nats + output.loss * count
        terms = {"loss": loss, "cross_entropy": nats, "accuracy": right / model.config.head_size}
        return {name: Mean(total, count) for name, total in terms.items()} | dict(output.metrics)


def _by_example(logits_BTC: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """float32 [B, S] by segment: the sum over C of -log P(right), how many of the C best candidates are right, and whether any is.

    Each device scores its own tokens and its own part of C; only sums and maxima by segment are communicated.
    """
    T, C = logits_BTC.shape[1:]
    S = T * ways("sequence") + 1
    candidates_BT, segments_BT = batch["weights"] > 0, batch["segments"]
    hits_BTC = (batch["targets"][:, :, None] >> (index("vocab") * C + jnp.arange(C))[None, None]) & 1 == 1
    hits_BTC = hits_BTC & candidates_BT[:, :, None]
    scores_BTC = jnp.where(candidates_BT[:, :, None], logits_BTC, MASKED)
    over = lambda reduce, x_BTC: jax.vmap(lambda x, s: reduce(x, s, S))(x_BTC, segments_BT)  # noqa: E731
    largest = lambda x_BTC: all_max(jnp.maximum(over(jax.ops.segment_max, x_BTC), MASKED), "sequence")  # noqa: E731
    there_BSC = all_sum(over(jax.ops.segment_sum, hits_BTC.astype(jnp.float32)), "sequence") > 0

    def log_mass(x_BTC: Array) -> tuple[Array, Array]:
        """By segment the largest score, and the logarithm of the sum of exp(score), 0 where none is right; `MASKED` counts as 0."""
        top_BSC = largest(x_BTC)
        less_BTC = x_BTC - jnp.take_along_axis(top_BSC, segments_BT[:, :, None], axis=1)
        mass_BTC = jnp.where(x_BTC > MASKED, jnp.exp(less_BTC), 0.0)
        mass_BSC = all_sum(over(jax.ops.segment_sum, mass_BTC), "sequence")
        return top_BSC, jnp.where(there_BSC, top_BSC + jnp.log(jnp.where(there_BSC, mass_BSC, 1.0)), 0.0)

    top_BSC, all_BSC = log_mass(scores_BTC)
    right_top_BSC, right_BSC = log_mass(jnp.where(hits_BTC, scores_BTC, MASKED))
    nats_BS = all_sum(jnp.sum(all_BSC - right_BSC, axis=-1), "vocab")
    right_BS = all_sum(jnp.sum((right_top_BSC >= top_BSC) & there_BSC, axis=-1).astype(jnp.float32), "vocab")
    there_BS = all_max(jnp.any(there_BSC, axis=-1).astype(jnp.float32), "vocab")
    return nats_BS, right_BS, there_BS
