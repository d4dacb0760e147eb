"""Pairs of texts: translation, summaries, answers."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch
from lm_jax.data.examples import Example
from lm_jax.data.sources import Counts, Document, Source
from lm_jax.data.supervised import ExampleData, PreparedExamples
from lm_jax.data.tokenizers import Tokenizer

_SHAPES = 16  # lengths that programs are compiled for are multiples of it


class Pair(NamedTuple):
    """A text, what to make of it, and where the first came from."""

    name: str
    source: str
    target: str


@dataclasses.dataclass(kw_only=True)
class Pairs(Config):
    """The documents of two sources, one to one: lines of aligned files, or two columns of a table.

    An `empty` document is an "error", or leads to "drop" its pair (counted).
    """

    source: Source
    target: Source
    empty: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy."""
        check_choice("empty", self.empty, ("error", "drop"))

    def read(self, counts: Counts) -> Iterator[Pair]:
        """Yields the pairs in order. Raises `DataError` where the sources differ in number, or a document is empty."""
        sides = [_by_place(side.documents(counts)) for side in (self.source, self.target)]
        alone = sorted(sides[0].keys() ^ sides[1].keys())
        if alone and self.empty == "error":
            sizes = [f"{len(side):,} of {where.files()[0]}" for side, where in zip(sides, (self.source, self.target), strict=True)]
            found = [side[alone[0]].name for side in sides if alone[0] in side]
            raise DataError(
                f"{' and '.join(sizes)} are no pairs: {found[0]} has nothing beside it, or white space only ({len(alone):,} such "
                "in all); align the files, or leave these out with empty='drop'"
            )
        counts["pairs dropped: a side is empty"] += len(alone)
        for number, source in sides[0].items():
            if number in sides[1]:
                yield Pair(source.name, source.text.strip(), sides[1][number].text.strip())


def _by_place(documents: Iterable[Document]) -> dict[tuple[int, int], Document]:
    """The documents by (number of the file, number in the file): empty ones, which sources leave out, leave a gap."""
    files: dict[str, int] = {}
    found = {}
    for document in documents:
        file, _, number = document.name.rpartition(":")
        found[files.setdefault(file or number, len(files)), int(number) if file else 0] = document
    return found


@dataclasses.dataclass(kw_only=True)
class PairedText(ExampleData):
    """Pairs of texts, for a model that reads the one and writes the other; see `ExampleData`.

    A row has room for `memory_length` tokens of sources and `length` of targets. A source ends with the end-of-document token; a
    target begins and ends with it. What is longer is cut (counted). One tokenizer is for both sides.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "memory_tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"next words"})

    train: Pairs
    validation: Pairs | None = None
    test: Pairs | None = None
    memory_length: int = 256

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "memory_length")

    def capacity(self) -> dict[str, int]:
        """See `ExampleData.capacity`."""
        return {"": self.length, "memory_": self.memory_length}

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: targets begin with the end-of-document token, an encoder reads the texts."""
        sources = [self._source(ids, tokenizer) for ids in tokenizer.encode_batch(texts)]
        longest = min(-(-max(map(len, sources)) // _SHAPES) * _SHAPES, self.memory_length)
        pad = lambda rows: np.stack([np.pad(row, (0, longest - len(row))) for row in rows])  # noqa: E731
        batch = {"memory_tokens": pad(sources), "memory_segments": pad([np.ones_like(source) for source in sources])}
        return [[tokenizer.eos] for _ in texts], batch

    def _source(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        return np.append(ids[: self.memory_length - 1], tokenizer.eos).astype(np.int32)

    def make(self, items: dict[str, list[Pair]], counts: Counts) -> "PreparedPairs":
        """See `ExampleData.make`."""
        sides = ((pair.source, pair.target) for pair in items["train"])
        tokenizer = self.tokenizer.train(itertools.chain.from_iterable(sides))
        examples = {split: list(self._examples(pairs, tokenizer, counts)) for split, pairs in items.items()}
        return PreparedPairs(config=self, tokenizer=tokenizer, examples=examples, pairs=items)

    def _examples(self, pairs: list[Pair], tokenizer: Tokenizer, counts: Counts) -> Iterator[Example]:
        sources = tokenizer.encode_batch([pair.source for pair in pairs])
        targets = tokenizer.encode_batch([pair.target for pair in pairs])
        for pair, source, target in zip(pairs, sources, targets, strict=True):
            counts["sources cut to a row"] += len(source) >= self.memory_length
            counts["targets cut to a row"] += len(target) >= self.length
            yield Example(
                pair.name,
                {
                    "memory_tokens": self._source(source, tokenizer),
                    **written(target, tokenizer.eos, self.length),
                },
            )


def written(ids: np.ndarray, eos: int, length: int) -> dict[str, np.ndarray]:
    """What a model learns to write a text from: "tokens", "targets" and "weights", cut to `length`."""
    whole = np.concatenate([[eos], ids, [eos]]).astype(np.int32)
    tokens, targets = whole[:-1][:length], whole[1:][:length]
    return {"tokens": tokens, "targets": targets, "weights": np.ones(len(tokens), np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPairs(PreparedExamples):
    """See `PreparedExamples`. `pairs` are the texts of the examples, by split."""

    pairs: dict[str, list[Pair]]

    def num_bytes(self, split: str) -> int:
        """See `PreparedExamples.num_bytes`."""
        return sum(len(pair.target.encode()) for pair in self.pairs[split])

    def references(self, split: str) -> list[list[str]]:
        """The texts that each example of a split may be answered with, in order."""
        self.require(split)
        return [[pair.target] for pair in self.pairs[split]]

    def sources(self, split: str) -> list[str]:
        """What they are answers to."""
        self.require(split)
        return [pair.source for pair in self.pairs[split]]
