"""Exact match and F1 of answers that are spans of a text, over a whole split."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.questions import PreparedQuestions
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.examples import logits_of_examples
from lm_jax.evals.text_metrics import is_answer, word_f1


@dataclasses.dataclass(kw_only=True)
class QuestionAnsweringConfig(EvalConfig):
    """Yields "f1" and "exact_match" (from 0 to 1) of the answers, as the script of SQuAD 1.1 scores them, and "num_questions"; and
    the first `shown` questions with their answers.

    The answer to a question is the span of at most `max_words` words with the greatest sum of the scores of its first and its last
    word, in any of the windows of the context.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"spans"})
    reads_batches: ClassVar[bool] = True

    batch_size: int = 16
    max_words: int = 20
    shown: int = 5

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "max_words")
        if self.shown < 0:
            raise ConfigError(f"shown={self.shown} must not be negative")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        if not isinstance(data, PreparedQuestions):
            raise ConfigError(f"a QuestionAnsweringConfig is for questions, and the data is a {type(data.config).__name__}")
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows)
        questions, examples, places = data.questions[self.split], data.require(self.split), data.places[self.split]
        best = [Answer(-np.inf, "")] * len(questions)
        for number, logits_TC in logits_of_examples(graph, params, batches, put):
            question, characters = places[number]
            score, first, last = best_span(logits_TC[examples[number].arrays["weights"] > 0], self.max_words)
            text = questions[question].context[characters[first, 0] : characters[last, 1]]
            best[question] = max(best[question], Answer(score, text), key=lambda answer: answer.score)
        references = [[text for text, _ in question.answers] for question in questions]
        pairs = list(zip(best, references, strict=True))
        yield "f1", float(np.mean([max(word_f1(found.text, text) for text in texts) for found, texts in pairs]))
        yield "exact_match", float(np.mean([max(is_answer(found.text, text) for text in texts) for found, texts in pairs]))
        yield "num_questions", float(len(questions))
        for question, (found, texts) in list(zip(questions, pairs, strict=True))[: self.shown]:
            reference = " / ".join(dict.fromkeys(texts))
            yield Shown(f"{question.context}\n\n{question.question}", found.text, {"reference": reference})


class Answer(NamedTuple):
    """A text and how good the model finds it."""

    score: float
    text: str


def best_span(scores_WC: np.ndarray, max_words: int) -> tuple[float, int, int]:
    """The score and the places of the first and the last word (at most `max_words` in all) of the best span, given the scores of
    words as first and as last [W, 2]; the earliest of equals."""
    totals_WW = scores_WC[:, None, 0] + scores_WC[None, :, 1]
    words = np.arange(len(scores_WC))
    length_WW = words[None] - words[:, None] + 1
    totals_WW = np.where((length_WW > 0) & (length_WW <= max_words), totals_WW, -np.inf)
    first, last = np.unravel_index(np.argmax(totals_WW), totals_WW.shape)
    return float(totals_WW[first, last]), int(first), int(last)
