"""Words as tokens."""

import collections
import dataclasses
import functools
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_jax.core.config import check_choice, check_positive
from lm_jax.data.tokenizers.base import END, UNKNOWN, Tokenizer, TokenizerConfig

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\U00020000-\U0003ffff"
CJK = re.compile(f"[{_CJK}]")  # characters of scripts without spaces: Chinese and Japanese
_LINES = re.compile(r"\n|\S+")


@functools.cache
def _word() -> re.Pattern[str]:
    """Characters of `CJK` are words of their own; then runs of letters and digits; then single other signs. Marks (accents and the
    vowels of Indic scripts, which `\\w` leaves out) go on with what they stand on."""
    marks = "".join(re.escape(c) for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"[{_CJK}][{marks}]*|[^\W{_CJK}]+(?:[{marks}]+[^\W{_CJK}]*)*|[^\w\s]|\n")


class WordTokenizer(Tokenizer):
    """One token a word, from a fixed list. Ids 0 and 1 are the end of document and unknown words. White space other than
    line ends is not kept: decoding puts one space between words, none between characters of `CJK`.
    """

    kind, eos, unknown = "words", 0, 1

    def __init__(self, words: list[str], lowercase: bool, split: str):
        self._words, self._lowercase, self._split = words, lowercase, split
        self._symbols = [END, UNKNOWN, *words]
        self._ids = {word: i for i, word in enumerate(self._symbols) if i > 1}
        self.vocab_size = len(self._symbols)

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        words = split_words(text, self._lowercase, self._split)
        return np.fromiter((self._ids.get(word, 1) for word in words), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        text = " ".join(self._symbols[i] for i in map(int, ids))
        return re.sub(rf" ?(\n) ?|(?<=[{_CJK}]) (?=[{_CJK}])", r"\1", text)

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": self.kind, "words": self._words, "lowercase": self._lowercase, "split": self._split}


def split_words(text: str, lowercase: bool, split: str) -> list[str]:
    """The words of `text`, as `Words.split` says."""
    text = text.lower() if lowercase else text
    if split == "whitespace":
        return text.split()
    return (_word() if split == "words" else _LINES).findall(text)


def word_places(text: str) -> list[tuple[int, int]]:
    """The characters (first, end) of the words of `text` (see `split_words`), line ends left out."""
    return [match.span() for match in _word().finditer(text) if match[0] != "\n"]


@dataclasses.dataclass(kw_only=True)
class Words(TokenizerConfig):
    """Words that occur in the training text at least `min_count` times, at most `max_words` of them, the frequent first.

    `split` is "words" (letters and digits, single signs, single characters of Chinese and Japanese, line ends); or for text whose
    words are set apart already "whitespace", or "lines", where line ends are words too.
    """

    min_count: int = 2
    max_words: int | None = None
    lowercase: bool = False
    split: str = "words"

    def validate(self) -> None:
        """Raises `ConfigError` for numbers out of range or an unknown way to split."""
        check_positive(self, "min_count")
        check_choice("split", self.split, ("words", "whitespace", "lines"))
        if self.max_words is not None:
            check_positive(self, "max_words")

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        counts = collections.Counter()
        for text in documents:
            counts.update(split_words(text, self.lowercase, self.split))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, n in ranked if n >= self.min_count][: self.max_words]
        return WordTokenizer(words, self.lowercase, self.split)
