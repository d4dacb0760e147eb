"""Sampled softmax: the next word told from part of a large vocabulary."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum, part
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.text import TextConfig, TextModel
from lm_jax.nn.linear import merged
from lm_jax.objectives.base import ObjectiveConfig
from lm_jax.objectives.lm import LMConfig


@dataclasses.dataclass(kw_only=True)
class SampledSoftmaxConfig(ObjectiveConfig):
    """An estimate of the cross-entropy, in nats per token, that scores fewer words than there are (Bengio and Senecal 2008,
    doi:10.1109/TNN.2007.912312; Jean et al. 2015, arXiv:1412.2007).

    log Z is taken of the target, of the first `common` words, and of `samples` of the others, drawn anew for each batch, which
    stand for all of these: word k with probability log((k + 2) / (k + 1)) / log((V + 1) / (common + 1)), about as often as words
    occur (Zipf), and exp(logit) counts 1 / (samples x probability) times. Z is so without bias, and the loss, by its logarithm,
    below that of all words; a model that is trained for long learns to make it so: compare with an eval, which scores all words.

    It is for tokenizers that number words by frequency, the most frequent first (`Words` does).
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words", "masked words"})

    common: int = 2048
    samples: int = 4096

    def validate(self) -> None:
        """Raises `ConfigError` for no sample, a negative number of common words, or chunks, which it has none of."""
        if self.chunks != 1:
            raise ConfigError(f"chunks={self.chunks}: sampled logits are not computed in chunks of a row; leave it 1")
        if self.common < 0 or self.samples < 1:
            raise ConfigError(f"common={self.common} must not be negative, and samples={self.samples} must be at least 1")

    def check(self, model: TextConfig) -> None:
        """Raises `ConfigError` where the samples are all words, or modules would not be trained."""
        if self.common + self.samples >= model.num_outputs:
            raise ConfigError(
                f"objective: common={self.common} and samples={self.samples} are all {model.num_outputs:,} words; take an LMConfig"
            )
        if getattr(model, "multi_token", None) is not None:
            raise ConfigError("objective: a sampled softmax trains no module of model.multi_token: leave that out")

    def build(self) -> "SampledSoftmax":
        """The objective."""
        return SampledSoftmax(self)


class SampledSoftmax:
    """See `SampledSoftmaxConfig`. "loss" is a mean over tokens by their weights. Without a key all words are scored."""

    def __init__(self, config: SampledSoftmaxConfig):
        self.config = config

    def __call__(self, model: TextModel, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over all positions, weighted by `batch["weights"]`, with the sum of the weights as count."""
        config, V = self.config, model.config.num_outputs
        if key is None:
            return LMConfig().build()(model, batch)
        model = model.with_whole_head(batch["weights"])
        output = model(batch, key=jax.random.fold_in(key, 0))
        others_S, times_S = drawn(jax.random.fold_in(key, 1), config.common, V, config.samples)
        ids_S = jnp.concatenate([jnp.arange(config.common), others_S])
        stands_for_S = jnp.concatenate([jnp.ones(config.common), times_S])
        targets_BT, weights_BT = (part(batch[name], "residual", 1) for name in ("targets", "weights"))
        logits_NS = merged(model.logits_of(output.hidden, ids_S)) + jnp.log(stands_for_S)[None, :]
        target_N = model.logits_of(output.hidden, batch["targets"]).reshape(-1)
        others_NS = jnp.where(ids_S[None, :] == targets_BT.reshape(-1, 1), -jnp.inf, logits_NS)
        log_z_N = jnp.logaddexp(jax.nn.logsumexp(others_NS, axis=-1), target_N)
        sums = jnp.sum((log_z_N - target_N) * weights_BT.reshape(-1)), jnp.sum(weights_BT)
        total, count = (all_sum(x, "batch", "sequence", "residual") for x in sums)
        return {"loss": Mean(total + output.loss * count, count)} | output.metrics


def drawn(key: Array, first: int, end: int, number: int) -> tuple[Array, Array]:
    """int32 and float32 [number]: ids from `first` to below `end`, with replacement, by the law of `SampledSoftmaxConfig`, and for
    how many words each of them stands."""
    reach = math.log((end + 1) / (first + 1))
    x = jnp.exp(jax.random.uniform(key, (number,)) * reach) * (first + 1)
    ids = jnp.clip(x.astype(jnp.int32) - 1, first, end - 1)
    return ids, reach / (number * jnp.log1p(1 / (ids + 1).astype(jnp.float32)))
