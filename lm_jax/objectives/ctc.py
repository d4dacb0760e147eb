"""Connectionist temporal classification: transcripts without alignment."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax.numpy as jnp
import optax

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, all_sum, mesh_axes, unchecked, vary, ways, whole_row
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.speech_encoder import SpeechEncoder
from lm_jax.objectives.base import ObjectiveConfig


@dataclasses.dataclass(kw_only=True)
class CTCConfig(ObjectiveConfig):
    """-log of the probability of all alignments that spell the transcript (Graves et al. 2006, eq. 8), in nats per label.

    Labels are the targets of a row that have weight and are not the model's blank, as the end of a text is. An utterance that has
    fewer positions than its labels need (one each, and a blank between equal neighbours) cannot be spelled: it has no part in the
    loss, and the term "impossible" is the share of such utterances.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"transcripts"})

    def validate(self) -> None:
        """Raises `ConfigError` for `chunks`: an utterance is scored as a whole."""
        check_positive(self, "chunks")
        if self.chunks != 1:
            raise ConfigError(f"chunks={self.chunks}: an utterance is scored as a whole; leave it 1")

    def remarks(self, terms: dict[str, float]) -> Iterator[str]:
        """See `ObjectiveConfig.remarks`."""
        if terms["impossible"] > 0:
            yield (
                f"{100 * terms['impossible']:.2g}% of the first utterances have fewer positions than their labels need, and no "
                "part in the loss; take a smaller stride or hop, or longer tokens"
            )

    def build(self) -> "CTC":
        """The objective."""
        return CTC()


class CTC:
    """See `CTCConfig`. (model, batch, key) -> {"loss", "impossible", ...}."""

    def __call__(self, model: SpeechEncoder, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over all utterances; the count of "loss" is that of the labels."""
        output, heard_BS = model.hear(batch, key=key)
        logits_BSV = all_gather(model.logits(output.hidden), "vocab", 2)
        labels_BL, present_BL = labels(batch, model.config.blank)
        nats_B, possible_B = ctc_loss(logits_BSV, heard_BS, labels_BL, present_BL, model.config.blank)
        spoken_B = jnp.any(present_BL, axis=1)

        def total(x_B: Array) -> Array:
            # Devices that split the vocabulary or the tokens of a row have all of the row here, and so the same numbers.
            over = ("batch", "vocab", "sequence")
            own = jnp.sum(x_B.astype(jnp.float32)) / (ways("vocab") * ways("sequence"))
            return all_sum(vary(own, frozenset(mesh_axes(*over))), *over)

        num_labels = total(jnp.sum(present_BL & possible_B[:, None], axis=1))
        loss = Mean(total(nats_B) + output.loss * num_labels, num_labels)
        return {"loss": loss, "impossible": Mean(total(spoken_B & ~possible_B), total(spoken_B))} | output.metrics


def labels(batch: Batch, blank: int) -> tuple[Array, Array]:
    """The labels of whole rows, int32 [B, L], and bool [B, L]: which of them there are, the first ones of a row."""
    targets_BL, weights_BL = whole_row(jnp.asarray(batch["targets"])), whole_row(jnp.asarray(batch["weights"]))
    return targets_BL, (weights_BL > 0) & (targets_BL != blank)


def ctc_loss(logits_BSV: Array, heard_BS: Array, labels_BL: Array, present_BL: Array, blank: int) -> tuple[Array, Array]:
    """float32 [B], nats, and bool [B]: whether the positions that are no padding suffice; where they do not, or where there is no
    label, nats are 0."""
    needed_B = jnp.sum(present_BL, axis=1)
    needed_B = needed_B + jnp.sum(present_BL[:, 1:] & (labels_BL[:, 1:] == labels_BL[:, :-1]), axis=1)
    possible_B = needed_B <= jnp.sum(heard_BS > 0, axis=1)
    absent = lambda x: 1.0 - x.astype(bool).astype(jnp.float32)  # noqa: E731

    def nats(logits: Array, constant: tuple[Array, Array, Array]) -> Array:
        heard, labels, present = constant
        return optax.ctc_loss(logits, absent(heard), labels, absent(present), blank_id=blank)

    nats_B = unchecked(nats, logits_BSV, constant=(heard_BS, labels_BL, present_BL))
    return jnp.where(possible_B & jnp.any(present_BL, axis=1), nats_B, 0.0), possible_B
