"""Summaries made of sentences of a document, compared with those it should have."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.examples import logits_of_examples
from lm_jax.evals.text_metrics import METRICS, check_metrics
from lm_jax.models.base import ModelConfig


@dataclasses.dataclass(kw_only=True)
class ExtractionConfig(EvalConfig):
    """Yields `metric` ("rouge" or "rouge_words": see `evals/text_metrics.py`) of the summaries of a split, "accuracy" and "f1" of
    the sentences that are taken (of those that a row holds: documents are cut to it), and "num_examples".

    A summary is the sentences of its document that are more likely taken than left out, in order; at least the likeliest one. The
    first `show` appear beside what was expected.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"tags"})
    reads: ClassVar[tuple[str, ...]] = ("parts", "sources", "references")
    reads_batches: ClassVar[bool] = True

    metric: str = "rouge"
    batch_size: int = 8
    show: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1, a negative number to show, or another metric."""
        super().validate()
        if self.show < 0:
            raise ConfigError(f"show={self.show} must not be negative")
        check_choice("metric", self.metric, ("rouge", "rouge_words"))

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`."""
        check_metrics((self.metric,), data.references(self.split))
        super().check(model, data)

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows)
        logits, texts, true, found = dict(logits_of_examples(graph, params, batches, put)), [], [], []
        for number, (example, parts) in enumerate(zip(data.require(self.split), data.parts(self.split), strict=True)):
            heads = example.arrays["weights"] > 0
            taken = chosen(logits[number][heads, 1] - logits[number][heads, 0])
            texts.append(" ".join(parts[i] for i in np.flatnonzero(taken)))
            true.append(example.arrays["targets"][heads] > 0)
            found.append(taken)
        yield from METRICS[self.metric](texts, data.references(self.split))
        true_S, found_S = np.concatenate(true), np.concatenate(found)
        yield "accuracy", float(np.mean(true_S == found_S))
        yield "f1", float(2 * np.sum(true_S & found_S) / max(np.sum(true_S) + np.sum(found_S), 1))
        yield "num_examples", float(len(texts))
        shown = zip(data.sources(self.split), texts, data.references(self.split), strict=True)
        for source, text, known in itertools.islice(shown, self.show):
            yield Shown(f"{source}\n", text, {"eval": self.name, "reference": "\n".join(known)})


def chosen(advantages: np.ndarray) -> np.ndarray:
    """bool: which sentences are taken, given by how much the logit of "taken" is above that of "left out"."""
    taken = advantages > 0
    taken[np.argmax(advantages)] = True
    return taken
