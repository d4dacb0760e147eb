"""Precision, recall and F1 of spans, such as names, over a whole split."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import nnx

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.tagged import PreparedTagged, Sentence
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.examples import logits_of_examples


@dataclasses.dataclass(kw_only=True)
class TaggingConfig(EvalConfig):
    """Yields "f1", "precision" and "recall" of spans (micro-averages), "f1/TYPE", "precision/TYPE" and "recall/TYPE" of each type,
    "accuracy" and "loss" (nats) of words, and "num_spans"; and the first `shown` sentences with their spans.

    A span is right where its first word, its last and its type are (CoNLL 2003, Tjong Kim Sang and De Meulder). `decoding`: each
    word's tag is the best one ("argmax"), or the tags of a sentence are the best sequence in which no I- goes on with nothing
    ("viterbi").
    """

    targets: ClassVar[frozenset[str]] = frozenset({"tags"})
    reads: ClassVar[tuple[str, ...]] = ("sentences",)
    reads_batches: ClassVar[bool] = True

    batch_size: int = 16
    decoding: str = "argmax"
    shown: int = 5

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown decoding or a negative number of sentences."""
        super().validate()
        check_choice("decoding", self.decoding, ("argmax", "viterbi"))
        if self.shown < 0:
            raise ConfigError(f"shown={self.shown} must not be negative")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows)
        logits_WC, true_W = _words(data, self.split, dict(logits_of_examples(graph, params, batches, put)))
        logits_WC = logits_WC[:, : len(data.classes)]
        log_probs_WC = logits_WC - np.logaddexp.reduce(logits_WC, axis=1, keepdims=True)
        begins_W = _begins(data.sentences[self.split])
        found_W = np.argmax(log_probs_WC, axis=1)
        if self.decoding == "viterbi":
            sentences = np.split(log_probs_WC, np.flatnonzero(begins_W)[1:])
            found_W = np.concatenate([best_valid(scores, data.classes) for scores in sentences])
        true, found = (spans(tags, begins_W, data.classes) for tags in (true_W, found_W))
        yield from span_scores(true, found)
        yield "accuracy", float(np.mean(true_W == found_W))
        yield "loss", -float(np.mean(np.take_along_axis(log_probs_WC, true_W[:, None], axis=1)))
        yield "num_spans", float(len(true))
        yield from _shown(data.sentences[self.split][: self.shown], true, found)


def _words(data: PreparedTagged, split: str, logits: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [W, C] and the true tags [W] of all words of a split, in order."""
    scores, tags = [], []
    for number, example in enumerate(data.require(split)):
        heads = example.arrays["weights"] > 0
        scores.append(logits[number][heads])
        tags.append(example.arrays["targets"][heads])
    return np.concatenate(scores).astype(np.float64), np.concatenate(tags)


def _begins(sentences: Sequence[Sentence]) -> np.ndarray:
    """bool [W]: which words are the first of their sentence."""
    sizes = [len(sentence.words) for sentence in sentences]
    begins = np.zeros(sum(sizes), bool)
    begins[np.cumsum([0, *sizes[:-1]])] = True
    return begins


class Span(NamedTuple):
    """Words `first` to `last`, both in it, counted through all sentences."""

    first: int
    last: int
    kind: str


def spans(tags_W: np.ndarray, begins_W: np.ndarray, classes: Sequence[str]) -> list[Span]:
    """The spans of BIO tags (places among `classes`), in order; `begins_W` says where sentences begin.

    As conlleval reads them: an I- that goes on with nothing of its type begins a span.
    """
    letters, kinds = (np.array(part)[tags_W] for part in zip(*(_parts(name) for name in classes), strict=True))
    inside = letters != "O"
    goes_on = np.zeros(len(tags_W), bool)  # with the span of the word before
    goes_on[1:] = (letters[1:] == "I") & inside[:-1] & (kinds[1:] == kinds[:-1]) & ~begins_W[1:]
    first = np.flatnonzero(inside & ~goes_on)
    last = np.flatnonzero(inside & ~np.append(goes_on[1:], False))
    return [Span(*ends, str(kind)) for *ends, kind in zip(first.tolist(), last.tolist(), kinds[first], strict=True)]


def _parts(name: str) -> tuple[str, str]:
    letter, _, kind = name.partition("-")
    return letter, kind


def span_scores(true: Sequence[Span], found: Sequence[Span]) -> Iterator[tuple[str, float]]:
    """Yields F1, precision and recall of all spans, then of each type; 0 where nothing was to find or was found."""
    yield from _f1("", set(true), set(found))
    for kind in sorted({span.kind for span in true} | {span.kind for span in found}):
        yield from _f1(f"/{kind}", *({span for span in some if span.kind == kind} for some in (true, found)))


def _f1(suffix: str, true: set[Span], found: set[Span]) -> Iterator[tuple[str, float]]:
    right = len(true & found)
    yield f"f1{suffix}", 2 * right / max(len(true) + len(found), 1)
    yield f"precision{suffix}", right / max(len(found), 1)
    yield f"recall{suffix}", right / max(len(true), 1)


def best_valid(scores_WC: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """[W]: the tags of a sentence with the greatest sum of scores among those in which every I- goes on with a span of its type.

    Viterbi 1967.
    """
    parts = [_parts(name) for name in classes]
    # [tag before, tag]; a sentence begins as after an "O".
    allowed = np.array([[now[0] != "I" or (before[0] != "O" and before[1] == now[1]) for now in parts] for before in parts])
    moves_CC = np.where(allowed, 0.0, -np.inf)
    best_C = scores_WC[0] + np.where([letter == "I" for letter, _ in parts], -np.inf, 0.0)
    back = []
    for scores_C in scores_WC[1:]:
        totals_CC = best_C[:, None] + moves_CC
        back.append(np.argmax(totals_CC, axis=0))
        best_C = np.max(totals_CC, axis=0) + scores_C
    tags = [int(np.argmax(best_C))]
    for step in reversed(back):
        tags.append(int(step[tags[-1]]))
    return np.array(tags[::-1])


def _shown(sentences: Sequence[Sentence], true: Sequence[Span], found: Sequence[Span]) -> Iterator[Shown]:
    first = 0
    for sentence in sentences:
        texts = [_named(sentence.words, first, some) for some in (found, true)]
        yield Shown(" ".join(sentence.words), texts[0], {"reference": texts[1]})
        first += len(sentence.words)


def _named(words: Sequence[str], first: int, found: Sequence[Span]) -> str:
    """The spans among the words of a sentence, the first of which is word `first` of all."""
    own = [span for span in found if first <= span.first < first + len(words)]
    return "; ".join(f"{' '.join(words[s.first - first : s.last + 1 - first])} [{s.kind}]" for s in own) or "no span"
