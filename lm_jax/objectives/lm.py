"""The causal language-modelling objective: cross-entropy of the next token."""

import dataclasses

import jax
import jax.numpy as jnp

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.decoder import Decoder


@dataclasses.dataclass(kw_only=True)
class LMConfig(Config):
    """Cross-entropy in nats per token, plus `z_loss` * log(Z)^2 (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5).

    `chunks` > 1 computes logits and loss in that many chunks of each row, one at a time (and again in the backward pass),
    so that only a chunk of the [B, T, V] logits ever exists.
    """

    z_loss: float = 0.0
    chunks: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for a negative weight or no chunk."""
        if self.z_loss < 0 or self.chunks < 1:
            raise ConfigError(f"z_loss={self.z_loss} must not be negative and chunks={self.chunks} must be at least 1")

    def build(self) -> "LM":
        """The objective."""
        return LM(self)


class LM:
    """See `LMConfig`. (model, batch, key) -> {"loss", "cross_entropy", "accuracy", ...}; "loss" is what is minimised."""

    def __init__(self, config: LMConfig):
        self.config = config

    def __call__(self, model: Decoder, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over all positions, weighted by `batch["weights"]`, with the sum of the weights as count."""
        hidden = model(batch, key=key).hidden
        sums = token_sums(model, hidden, batch, self.config.chunks)
        count = jnp.sum(batch["weights"])
        loss = sums["cross_entropy"] + self.config.z_loss * sums["z"]
        terms = {"loss": loss, "cross_entropy": sums["cross_entropy"], "accuracy": sums["correct"]}
        if self.config.z_loss:
            terms["z_loss"] = self.config.z_loss * sums["z"]
        return {name: Mean(total, count) for name, total in terms.items()}


def token_sums(model: Decoder, hidden_BTD: Array, batch: Batch, chunks: int) -> dict[str, Array]:
    """Weighted float32 sums over the batch of "cross_entropy" (nats), "z" (log(Z)^2) and "correct" (greedy hits)."""

    def sums(hidden, targets, weights):
        logits = model.logits(hidden)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        # A one-hot select keeps a vocabulary-sharded axis where it is, and its gradient is no scatter.
        hit = jnp.arange(logits.shape[-1])[None, None, :] == targets[:, :, None]
        target_logit = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        correct = (target_logit >= jnp.max(logits, axis=-1)).astype(jnp.float32)
        terms = {"cross_entropy": log_z - target_logit, "z": jnp.square(log_z), "correct": correct}
        return {name: jnp.sum(term * weights) for name, term in terms.items()}

    T = hidden_BTD.shape[1]
    if chunks == 1:
        return sums(hidden_BTD, batch["targets"], batch["weights"])
    if T % chunks:
        raise ConfigError(f"objective chunks={chunks} does not divide the row length {T}")

    def body(total, start):
        cut = [
            jax.lax.dynamic_slice_in_dim(x, start, T // chunks, axis=1) for x in (hidden_BTD, batch["targets"], batch["weights"])
        ]
        return jax.tree.map(jnp.add, total, sums(*cut)), None

    zero = {name: jnp.zeros((), jnp.float32) for name in ("cross_entropy", "z", "correct")}
    starts = jnp.arange(0, T, T // chunks)
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), zero, starts)[0]
