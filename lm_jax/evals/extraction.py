"""Summaries made of sentences of a document, compared with those it should have."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.extracts import PreparedExtracts, sentences
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.examples import logits_of_examples
from lm_jax.evals.text_metrics import METRICS


@dataclasses.dataclass(kw_only=True)
class ExtractionConfig(EvalConfig):
    """Yields ROUGE of the summaries of a split (see `evals/text_metrics.py`), "accuracy" and "f1" of the sentences that are taken,
    and "num_examples".

    A summary is the sentences of its document that are more likely taken than left out, in order; at least the likeliest one. The
    first `show` appear beside what was expected.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classes"})

    batch_size: int = 8
    show: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1, or a negative number to show."""
        super().validate()
        if self.show < 0:
            raise ConfigError(f"show={self.show} must not be negative")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        if not isinstance(data, PreparedExtracts):
            raise ConfigError(f"an ExtractionConfig is for documents and summaries, and the data is a {type(data.config).__name__}")
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows)
        logits, texts, true, found = dict(logits_of_examples(graph, params, batches, put)), [], [], []
        for number, (example, pair) in enumerate(zip(data.require(self.split), data.pairs[self.split], strict=True)):
            heads = example.arrays["weights"] > 0
            taken = chosen(logits[number][heads, 1] - logits[number][heads, 0])
            parts = sentences(pair.source)
            texts.append(" ".join(parts[i] for i in np.flatnonzero(taken)))
            true.append(example.arrays["targets"][heads] > 0)
            found.append(taken)
        yield from METRICS["rouge"](texts, data.references(self.split))
        true_S, found_S = np.concatenate(true), np.concatenate(found)
        yield "accuracy", float(np.mean(true_S == found_S))
        yield "f1", float(2 * np.sum(true_S & found_S) / max(np.sum(true_S) + np.sum(found_S), 1))
        yield "num_examples", float(len(texts))
        for text, pair in list(zip(texts, data.pairs[self.split], strict=True))[: self.show]:
            yield Shown(f"{pair.source}\n", text, {"eval": self.name, "reference": pair.target})


def chosen(advantages: np.ndarray) -> np.ndarray:
    """bool: which sentences are taken, given by how much the logit of "taken" is above that of "left out"."""
    taken = advantages > 0
    taken[np.argmax(advantages)] = True
    return taken
