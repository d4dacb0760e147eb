"""Scores of written texts against references, by the libraries that the field quotes. They are the extra `metrics`."""

import collections
import importlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.data.tokenizers import CJK, split_words

Scores = Iterator[tuple[str, float]]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this metric needs the package {name.split('.')[0]}: pip install 'lm_jax[metrics]'") from error


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Corpus BLEU from 0 to 100 (Papineni et al. 2002), by sacrebleu (arXiv:1804.08771): tokenisation 13a, lower case."""
    yield from _bleu(texts, references, "", tokenize="13a")


def bleu_zh(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """`bleu` of Chinese, whose characters sacrebleu then counts as words (its tokenisation zh)."""
    yield from _bleu(texts, references, "_zh", tokenize="zh")


def _bleu(texts: Sequence[str], references: Sequence[Sequence[str]], suffix: str, **options: Any) -> Scores:
    found = _library("sacrebleu").corpus_bleu(list(texts), _columns(references), lowercase=True, **options)
    yield f"bleu{suffix}", found.score
    yield f"brevity_penalty{suffix}", found.bp


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Corpus chrF from 0 to 100 (Popovic 2015), by sacrebleu."""
    yield "chrf", _library("sacrebleu").corpus_chrf(list(texts), _columns(references)).score


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The k-th reference of every text, as sacrebleu wants them; None where a text has fewer."""
    most = max(map(len, references))
    return [[known[k] if k < len(known) else None for known in references] for k in range(most)]


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """F-measures of ROUGE-1, -2 and -L from 0 to 100 (Lin 2004), by rouge-score with stemming: means over the texts of the best
    reference of each. Its words are runs of a to z and digits; other scripts need `rouge_words`."""
    yield from _rouge(texts, references, "", use_stemmer=True)


def rouge_words(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """`rouge` in any script, without stemming: words are those of `split_words`, in lower case; Chinese characters are words."""
    yield from _rouge(texts, references, "_words", tokenizer=_UnicodeWords())


def _rouge(texts: Sequence[str], references: Sequence[Sequence[str]], suffix: str, **options: Any) -> Scores:
    names = ("rouge1", "rouge2", "rougeL")
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(names, **options)
    found = [scorer.score_multi(list(known), text) for text, known in zip(texts, references, strict=True)]
    for name in names:
        yield f"{name}{suffix}", 100 * sum(score[name].fmeasure for score in found) / len(found)


class _UnicodeWords:
    """What rouge-score calls a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return split_words(text, lowercase=True, split="words")


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
    one. Chinese characters are words of their own, as in CMRC 2018 (arXiv:1810.07366)."""
    words = [CJK.sub(r" \g<0> ", normalised(one)).split() for one in (text, reference)]
    common = sum((collections.Counter(words[0]) & collections.Counter(words[1])).values())
    return 2 * common / sum(map(len, words)) if common else 0.0


def normalised(text: str) -> str:
    """The text without case, punctuation, the articles a, an, the and extra white space: evaluate-v1.1.py of SQuAD."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def check_metrics(names: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises `ConfigError` for a metric of `METRICS` whose library is not installed, for an unknown one, and for "rouge" where a
    reference has no word that it knows."""
    known = (reference for texts in references for reference in texts)
    strange = next((text for text in known if text.strip() and not re.search("[a-z0-9]", text.lower())), None)
    if "rouge" in names and strange is not None:
        raise ConfigError(f"rouge reads the letters a to z and digits, and {strange[:60]!r} has none; take rouge_words")
    for name in names:
        check_choice("metrics", name, tuple(METRICS))
        if name in _LIBRARIES:
            _library(_LIBRARIES[name])


_LIBRARIES = {"bleu": "sacrebleu", "bleu_zh": "sacrebleu", "chrf": "sacrebleu"} | dict.fromkeys(
    ("rouge", "rouge_words"), "rouge_score.rouge_scorer"
)

METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Scores]] = {
    "bleu": bleu,
    "bleu_zh": bleu_zh,
    "chrf": chrf,
    "rouge": rouge,
    "rouge_words": rouge_words,
    "exact": exact,
    "f1": f1,
}
