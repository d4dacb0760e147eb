"""Documents and summaries made of some of their sentences: which ones to take."""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lm_jax.data.examples import Example
from lm_jax.data.pairs import Pair, PairData, PreparedPairs
from lm_jax.data.sources import Counts
from lm_jax.data.tokenizers import Tokenizer, encode_named

CLASSES = ("left out", "taken")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n+")


def sentences(text: str) -> list[str]:
    """Sentences of an English text: up to a sign that ends one, before a capital letter or a number, or to the end of a line."""
    ends = [match.end() for match in _END.finditer(text)]
    return [part for part in (text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)], strict=True)) if part]


@dataclasses.dataclass(kw_only=True)
class ExtractedSentences(PairData):
    """Documents (the sources of pairs) and their summaries (the targets), for a tagger of sentences; see `ExampleData`.

    A document is its sentences, each after an end-of-document token whose hidden state stands for it (Liu and Lapata 2019,
    arXiv:1908.08345, section 3.2, with one sign for two). Its target is the tag "taken" where the sentence stands in the summary,
    else "left out"; other tokens have weight 0. Documents are cut to `length` tokens (counted): what is beyond is not seen.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"tags"})

    def make(self, items: dict[str, list[Pair]], counts: Counts) -> "PreparedExtracts":
        """See `ExampleData.make`."""
        tokenizer = self.tokenizer.train(pair.source for pair in items["train"])
        examples = {split: [self.example(pair, tokenizer, counts) for pair in pairs] for split, pairs in items.items()}
        return PreparedExtracts(config=self, tokenizer=tokenizer, examples=examples, pairs=items)

    def example(self, pair: Pair, tokenizer: Tokenizer, counts: Counts) -> Example:
        """The example of a document and its summary."""
        parts, summary = sentences(pair.source), _words(pair.target)
        ids = [np.append([tokenizer.eos], found) for found in encode_named(tokenizer, [(pair.name, part) for part in parts])]
        tokens = np.concatenate(ids)[: self.length].astype(np.int32)
        starts = np.cumsum([0, *map(len, ids[:-1])])
        starts = starts[starts < len(tokens)]
        counts["documents cut to a row"] += sum(map(len, ids)) > self.length
        targets, weights = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.float32)
        targets[starts] = [_words(part) in summary for part in parts[: len(starts)]]
        weights[starts] = 1.0
        return Example(pair.name, {"tokens": tokens, "targets": targets, "weights": weights})


def _words(text: str) -> str:
    """The text without white space, which summaries may lack between sentences."""
    return re.sub(r"\s+", "", text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedExtracts(PreparedPairs):
    """See `PreparedExamples`."""

    classes: Sequence[str] = CLASSES

    @property
    def num_outputs(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def parts(self, split: str) -> list[list[str]]:
        """The sentences of each document of a split."""
        self.require(split)
        return [sentences(pair.source) for pair in self.pairs[split]]

    def num_bytes(self, split: str) -> int:
        """See `PreparedExamples.num_bytes`: none, as tags are no text."""
        return 0
