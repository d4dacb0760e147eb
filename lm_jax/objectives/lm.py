"""Cross-entropy of the targets: the next token, a masked one, a class, or a tag."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import ahead, all_gather, all_max, all_sum, index, part, vary, varying, ways
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.text import TextModel
from lm_jax.nn.linear import merged
from lm_jax.objectives.base import ObjectiveConfig


@dataclasses.dataclass(kw_only=True)
class LMConfig(ObjectiveConfig):
    """Cross-entropy in nats per token, plus `z_loss` * log(Z)^2 (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5).

    With `label_smoothing` e the loss is that of a target that is right with 1 - e and any with e / V (Szegedy et al. 2015,
    arXiv:1512.00567). `class_weights` multiply the weights of tokens by their targets; there is one for each.

    Where the model predicts tokens after the next one, `multi_token` times the mean over modules of their cross-entropies is added,
    as far as they are in the same document; also a mean over all tokens (DeepSeek-V3, arXiv:2412.19437, eq. 24 and 25).

    `chunks` > 1 computes logits and loss in that many chunks of each row, one at a time (and again in the backward pass),
    so that only a chunk of the [B, T, V] logits ever exists. With `scored` only that share of the tokens of a row gets logits,
    those with the greatest weights: for masked words, of which no row may have more (else the loss is no number).
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words", "masked words", "classes", "tags"})

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    z_loss: float = 0.0
    multi_token: float = 0.3
    scored: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a negative weight, a smoothing outside [0, 1), no chunk or a bad share."""
        check_share(self.scored)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")
        if self.class_weights is not None and min(self.class_weights, default=-1) < 0:
            raise ConfigError(f"class_weights={self.class_weights} must not be negative, and one for each class")
        if self.z_loss < 0 or self.multi_token < 0 or self.chunks < 1:
            weights = f"z_loss={self.z_loss} and multi_token={self.multi_token}"
            raise ConfigError(f"{weights} must not be negative and chunks={self.chunks} must be at least 1")

    def build(self) -> "LM":
        """The objective."""
        return LM(self)


class LM:
    """See `LMConfig`. (model, batch, key) -> {"loss", "cross_entropy", "accuracy", ...}; "loss" is what is minimised."""

    def __init__(self, config: LMConfig):
        self.config = config

    def __call__(self, model: TextModel, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over all positions, weighted by `batch["weights"]`, with the sum of the weights as count."""
        smoothing = self.config.label_smoothing
        batch = self._weighted(batch, model.config.num_outputs)
        if self.config.chunks > 1 or model.config.reuses_head:
            model = model.with_whole_head(batch["weights"])
        output = model(batch, key=key)
        scored = most_weighted(output.hidden, batch, self.config.scored)
        sums = token_sums(model, *scored, self.config.chunks, smooth=smoothing > 0)
        count = all_sum(jnp.sum(batch["weights"]), "batch", "sequence")
        loss, metrics = sums["cross_entropy"] + self.config.z_loss * sums["z"] + output.loss * count, dict(output.metrics)
        if smoothing:
            loss = loss + smoothing * (sums["uniform"] - sums["cross_entropy"])
        for k, hidden in enumerate(output.further, start=1):
            later = _later(batch, k)
            further = Mean(
                token_sums(model, hidden, later, self.config.chunks)["cross_entropy"],
                all_sum(jnp.sum(later["weights"]), "batch", "sequence"),
            )
            loss = loss + self.config.multi_token / len(output.further) * further.sum
            metrics[f"cross_entropy_{k + 1}"] = further
        terms = {"loss": loss, "cross_entropy": sums["cross_entropy"], "accuracy": sums["correct"]}
        if self.config.z_loss:
            terms["z_loss"] = self.config.z_loss * sums["z"]
        return {name: Mean(total, count) for name, total in terms.items()} | metrics

    def _weighted(self, batch: Batch, num_outputs: int) -> Batch:
        weights = self.config.class_weights
        if weights is None:
            return batch
        if len(weights) != num_outputs:
            raise ConfigError(f"class_weights has {len(weights)} numbers, and the model scores {num_outputs} targets")
        return batch | {"weights": batch["weights"] * jnp.array(weights, jnp.float32)[batch["targets"]]}


def _later(batch: Batch, places: int) -> Batch:
    """Targets that stand `places` later. They have no weight where that is beyond the row or in another document, or where the next
    token is in a prefix that is seen both ways: what a module reads there holds the target."""
    weights = ahead(batch["weights"], places)
    if "prefix" in batch:
        weights = jnp.where(ahead(batch["prefix"], 1) > 0, 0.0, weights)
    if "segments" in batch:
        weights = jnp.where(ahead(batch["segments"], places) == batch["segments"], weights, 0.0)
    return {"targets": ahead(batch["targets"], places), "weights": weights}


def check_share(scored: float | None) -> None:
    """Raises `ConfigError` unless the share is in (0, 1], or None."""
    if scored is not None and not 0 < scored <= 1:
        raise ConfigError(f"scored={scored} must be in (0, 1]; None scores every token")


def most_weighted(hidden_BTD: Array, batch: Batch, share: float | None) -> tuple[Array, Batch]:
    """Hidden states, "targets" and "weights" of the `share` of the tokens of each row (on this device) with the greatest weights.

    All of them where `share` is None. The weights are no numbers where tokens of any weight are left out.
    """
    if share is None:
        return hidden_BTD, batch
    weights_BT, num_parts = batch["weights"], ways("residual")
    own = weights_BT.shape[1]
    number = min(math.ceil(share * own * ways("sequence")), own)  # all that a row may have can be on one device
    top, places = jax.lax.top_k(weights_BT, -(-number // num_parts) * num_parts)
    top = jnp.where(jnp.sum(top > 0, axis=1) < jnp.sum(weights_BT > 0, axis=1), jnp.nan, 1.0)[:, None] * top
    hidden = jnp.take_along_axis(all_gather(hidden_BTD, "residual", 1), places[:, :, None], axis=1)
    targets = jnp.take_along_axis(batch["targets"], places, axis=1)
    return part(hidden, "residual", 1), {"targets": targets, "weights": top}


def token_sums(model: TextModel, hidden_BTD: Array, batch: Batch, chunks: int, *, smooth: bool = False) -> dict[str, Array]:
    """Weighted float32 sums over the batch of "cross_entropy" (nats), "z" (log(Z)^2) and "correct" (greedy hits); with `smooth`
    also "uniform", the cross-entropy of a target that is any with the same probability.

    Each device scores its own part of the vocabulary; only sums and maxima over it are communicated, never the logits.
    """

    def sums(hidden, targets, weights):
        logits_NV, targets_N, weights_N = merged(model.logits(hidden)), targets.reshape(-1), weights.reshape(-1)
        top_N = all_max(jnp.max(logits_NV, axis=-1), "vocab")
        log_z_N = jnp.log(all_sum(jnp.sum(jnp.exp(logits_NV - top_N[:, None]), axis=-1), "vocab")) + top_N
        own = logits_NV.shape[-1]
        ids_V = index("vocab") * own + jnp.arange(own)
        # A select by comparison, whose gradient is no scatter.
        hit_NV = ids_V[None, :] == targets_N[:, None]
        target_logit_N = all_sum(jnp.sum(jnp.where(hit_NV, logits_NV, 0.0), axis=-1), "vocab")
        correct_N = (target_logit_N >= top_N).astype(jnp.float32)
        terms = {"cross_entropy": log_z_N - target_logit_N, "z": jnp.square(log_z_N), "correct": correct_N}
        if smooth:
            known_V = ids_V < model.config.num_outputs
            mean_N = all_sum(jnp.sum(jnp.where(known_V[None, :], logits_NV, 0.0), axis=-1), "vocab") / model.config.num_outputs
            terms["uniform"] = log_z_N - mean_N
        return {name: jnp.sum(term * weights_N) for name, term in terms.items()}

    if chunks == 1:
        total = sums(hidden_BTD, batch["targets"], batch["weights"])
    else:
        body = lambda total, cut: (jax.tree.map(jnp.add, total, sums(*cut)), None)  # noqa: E731
        cuts = (_cut(hidden_BTD, 1, chunks), *(_cut(batch[name], ways("residual"), chunks) for name in ("targets", "weights")))
        zero = vary(jnp.zeros((), jnp.float32), varying(batch["weights"]))
        start = {name: zero for name in ("cross_entropy", "z", "correct", *(["uniform"] if smooth else []))}
        total = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), start, cuts)[0]
    return all_sum(total, "batch", "sequence")


def _cut(x: Array, parts: int, chunks: int) -> Array:
    """[B, T, ...] to [chunks, B, T / chunks, ...], where T consists of `parts` parts that are each cut into chunks."""
    B, T = x.shape[:2]
    if T % (parts * chunks):
        raise ConfigError(f"objective chunks={chunks} does not divide the {T // parts} tokens of a row on a device")
    x = x.reshape(B, parts, chunks, T // parts // chunks, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0).reshape(chunks, B, T // chunks, *x.shape[4:])
