"""Scores of written texts against references, by the libraries that the field quotes. They are the extra `metrics`."""

import collections
import importlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError

Scores = Iterator[tuple[str, float]]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this metric needs the package {name.split('.')[0]}: pip install 'lm_jax[metrics]'") from error


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Corpus BLEU from 0 to 100 (Papineni et al. 2002), by sacrebleu (arXiv:1804.08771): tokenisation 13a, lower case."""
    found = _library("sacrebleu").corpus_bleu(list(texts), _columns(references), lowercase=True)
    yield "bleu", found.score
    yield "brevity_penalty", found.bp


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Corpus chrF from 0 to 100 (Popovic 2015), by sacrebleu."""
    yield "chrf", _library("sacrebleu").corpus_chrf(list(texts), _columns(references)).score


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The k-th reference of every text, as sacrebleu wants them; None where a text has fewer."""
    most = max(map(len, references))
    return [[known[k] if k < len(known) else None for known in references] for k in range(most)]


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """F-measures of ROUGE-1, -2 and -L from 0 to 100 (Lin 2004), by rouge-score with stemming: means over the texts of the best
    reference of each."""
    names = ("rouge1", "rouge2", "rougeL")
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(names, use_stemmer=True)
    found = [scorer.score_multi(list(known), text) for text, known in zip(texts, references, strict=True)]
    for name in names:
        yield name, 100 * sum(score[name].fmeasure for score in found) / len(found)


def exact(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Share of the texts that are, normalised, one of their references (SQuAD 1.1, Rajpurkar et al. 2016, arXiv:1606.05250)."""
    hits = [any(is_answer(text, one) for one in known) for text, known in zip(texts, references, strict=True)]
    yield "exact", sum(hits) / len(hits)


def f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Mean F1 of the words of each text and of its best reference, normalised as in `exact` (SQuAD 1.1)."""
    best = [max(word_f1(text, one) for one in known) for text, known in zip(texts, references, strict=True)]
    yield "f1", sum(best) / len(best)


def is_answer(text: str, reference: str) -> bool:
    """Whether both are the same but for what `normalised` leaves out."""
    return normalised(text) == normalised(reference)


def word_f1(text: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalised words of `text`, each as often as it occurs; 0 without a common
    one."""
    words = [normalised(one).split() for one in (text, reference)]
    common = sum((collections.Counter(words[0]) & collections.Counter(words[1])).values())
    return 2 * common / sum(map(len, words)) if common else 0.0


def normalised(text: str) -> str:
    """The text without case, punctuation, the articles a, an, the and extra white space: evaluate-v1.1.py of SQuAD."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def check_metrics(names: Sequence[str]) -> None:
    """Raises `ConfigError` for a metric of `METRICS` whose library is not installed, or for an unknown one."""
    for name in names:
        check_choice("metrics", name, tuple(METRICS))
        if name in _LIBRARIES:
            _library(_LIBRARIES[name])


_LIBRARIES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score.rouge_scorer"}

METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Scores]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "exact": exact,
    "f1": f1,
}
