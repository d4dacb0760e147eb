"""Perplexity and bits per byte over a whole split, every token exactly once."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum, local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.data.text import PreparedText
from lm_jax.evals.base import EvalConfig
from lm_jax.models.base import ModelConfig
from lm_jax.objectives.lm import check_share, most_weighted, token_sums


@dataclasses.dataclass(kw_only=True)
class PerplexityConfig(EvalConfig):
    """Rows start every `stride` tokens (None: their length, so that they do not overlap).

    With a smaller stride each row scores only its last `stride` tokens, with the ones before as context: slower, and a
    better model of the text (a sliding window). `scored` is as in `LMConfig`.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words", "masked words"})
    reads_batches: ClassVar[bool] = True

    stride: int | None = None
    scored: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1 or a bad share."""
        super().validate()
        check_share(self.scored)
        if self.stride is not None:
            check_positive(self, "stride")

    def check_rows(self, length: int) -> None:
        """See `EvalConfig.check_rows`; the tokens that are `scored` are cut in chunks too."""
        super().check_rows(length)
        number = math.ceil((self.scored or 1.0) * length)
        if number % self.chunks:
            raise ConfigError(f"the {number} tokens of a row that are scored are not divisible by its chunks={self.chunks}")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`."""
        if self.stride is not None and not isinstance(data, PreparedText):
            raise ConfigError(f"stride={self.stride} is for running text; examples of other data are read once each")
        super().check(model, data)
        if self.stride is not None:
            data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, stride=self.stride)

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float]]:
        """See `EvalConfig.scores`."""
        slide = {} if self.stride is None else {"stride": self.stride}
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows, **slide)
        return perplexity(from_logits(graph, params, self.chunks, self.scored), map(put, batches), data.num_bytes(self.split))


Score = Callable[[Batch], Mean]  # of a batch: the sum of -log p of its targets in nats, and their number, both by "weights"


def from_logits(graph: nnx.GraphDef, params: Params, chunks: int = 1, scored: float | None = None) -> Score:
    """How a neural model scores; `chunks` and `scored` are as in `LMConfig`. Sums are float32, on the device."""
    return lambda batch: _batch_sums(params, batch, graph=graph, chunks=chunks, scored=scored)


def from_log_probs(log_probs: Callable[[Batch], np.ndarray]) -> Score:
    """How a model scores that says the natural logarithms [B, T] of the probabilities of a batch's targets."""

    def score(batch: Batch) -> Mean:
        weights = np.asarray(batch["weights"], np.float64)
        return Mean(-np.sum(log_probs(batch) * weights), np.sum(weights))

    return score


@functools.partial(jax.jit, static_argnames=("graph", "chunks", "scored"))
def _batch_sums(params: Params, batch: Batch, *, graph: nnx.GraphDef, chunks: int, scored: float | None) -> Mean:
    def local(params: Params, batch: Batch) -> Mean:
        model = nnx.merge(graph, params)
        if chunks > 1:
            model = model.with_whole_head(batch["weights"])
        sums = token_sums(model, *most_weighted(model(batch).hidden, batch, scored), chunks)
        return Mean(sums["cross_entropy"], all_sum(jnp.sum(batch["weights"]), "batch", "sequence"))

    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec())(params, batch)


def perplexity(score: Score, batches: Iterable[Batch], num_bytes: int) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of a model's score on `batches`, which cover a split of `num_bytes` bytes of UTF-8 text.

    "loss" and "bits_per_token" are means over the tokens, in nats and bits; "perplexity" is exp(loss); "num_tokens" is their
    number; "bits_per_byte" is the total in bits over `num_bytes`, comparable between tokenizers that lose nothing of the text.
    The sums of the batches are added in float64 here.
    """
    pending: list[Mean] = []
    total, count = 0.0, 0.0
    for batch in batches:
        pending.append(score(batch))
        if len(pending) > 2:  # read behind the device, so that it never waits
            total, count = _add(total, count, pending.pop(0))
    for term in pending:
        total, count = _add(total, count, term)
    if count == 0:
        raise ConfigError("the split holds no token to evaluate")
    nats = total / count
    yield "loss", nats
    yield "perplexity", math.inf if nats >= 700 else math.exp(nats)
    yield "bits_per_token", nats / math.log(2)
    if num_bytes:
        yield "bits_per_byte", total / math.log(2) / num_bytes
    yield "num_tokens", count


def _add(total: float, count: float, term: Mean) -> tuple[float, float]:
    value: tuple[Array, Array] = jax.device_get((term.sum, term.count))
    return total + float(np.float64(value[0])), count + float(value[1])
