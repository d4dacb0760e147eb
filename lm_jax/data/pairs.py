"""Pairs of texts: translation, summaries, answers."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch
from lm_jax.data.examples import Example
from lm_jax.data.questions import SquadFiles
from lm_jax.data.sources import Counts, Source
from lm_jax.data.supervised import ExampleData, PreparedExamples, scored_bytes
from lm_jax.data.tokenizers import Tokenizer, encode_named

_SHAPES = 16  # lengths that programs are compiled for are multiples of it


class Pair(NamedTuple):
    """A text, what to make of it, where the first came from, and what else would be right to make of it."""

    name: str
    source: str
    target: str
    others: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True)
class Pairs(Config):
    """The documents of two sources, one to one: lines of aligned files, or two columns of a table.

    An `empty` document beside one that is not is an "error", or leads to "drop" its pair. Pairs of two empty ones are always
    dropped. Both are counted.
    """

    source: Source
    target: Source
    empty: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy."""
        check_choice("empty", self.empty, ("error", "drop"))

    def read(self, counts: Counts) -> Iterator[Pair]:
        """Yields the pairs in order. Raises `DataError` where the sources differ in number, or a document is empty."""
        sources, targets = ([list(file) for file in side.by_file(counts)] for side in (self.source, self.target))
        files = [side.files() for side in (self.source, self.target)]
        if len(sources) != len(targets):
            raise DataError(
                f"{len(sources)} files of sources ({files[0][0]}, ...) and {len(targets)} of targets are no pairs of files"
            )
        for one, other, *names in zip(sources, targets, *files, strict=False):
            if len(one) != len(other):
                raise DataError(f"{len(one):,} of {names[0]} and {len(other):,} of {names[1]} are no pairs; align the files")
        pairs = [pair for both in zip(sources, targets, strict=True) for pair in zip(*both, strict=True)]
        blank = [[not document.text.strip() for document in pair] for pair in pairs]
        halves = [pair[sides.index(True)] for pair, sides in zip(pairs, blank, strict=True) if any(sides) and not all(sides)]
        if halves and self.empty == "error":
            raise DataError(
                f"{halves[0].name} is white space only, and what stands beside it is not ({len(halves):,} such pairs in all); "
                "write it, or leave these out with empty='drop'"
            )
        counts["pairs dropped: a side is empty"] += sum(map(any, blank))
        for (source, target), sides in zip(pairs, blank, strict=True):
            if not any(sides):
                yield Pair(source.name, source.text.strip(), target.text.strip())


@dataclasses.dataclass(kw_only=True)
class AnswerPairs(Config):
    """Questions to answer in words: the source is the question, `between`, and the text that holds the answer; the target is the
    first answer, other ones are right too."""

    questions: SquadFiles
    between: str = "\n"

    def read(self, counts: Counts) -> Iterator[Pair]:
        """Yields the pairs in order. Raises `DataError` as the source does."""
        for question in self.questions.read(counts):
            target, *others = dict.fromkeys(text for text, _ in question.answers)
            yield Pair(question.name, f"{question.question}{self.between}{question.context}", target, tuple(others))


@dataclasses.dataclass(kw_only=True)
class PairData(ExampleData):
    """Base of the data made of pairs; one tokenizer is for both sides."""

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})

    train: Pairs | AnswerPairs
    validation: Pairs | AnswerPairs | None = None
    test: Pairs | AnswerPairs | None = None

    def shown_prompt(self, prompt: str) -> str:
        """See `DataConfig.shown_prompt`: on a line of its own."""
        return f"{prompt}\n"

    def make(self, items: dict[str, list[Pair]], counts: Counts) -> "PreparedPairs":
        """See `ExampleData.make`."""
        sides = ((pair.source, pair.target) for pair in items["train"])
        tokenizer = self.tokenizer.train(itertools.chain.from_iterable(sides))
        examples = {}
        for split, pairs in items.items():
            sources, targets = (encode_named(tokenizer, [(pair.name, pair[side]) for pair in pairs]) for side in (1, 2))
            ids = zip(pairs, sources, targets, strict=True)
            examples[split] = [Example(pair.name, self.arrays(*sides, tokenizer, counts)) for pair, *sides in ids]
        return PreparedPairs(config=self, tokenizer=tokenizer, examples=examples, pairs=items)

    def arrays(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray]:
        """The example of a pair, given as token ids."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class PairedText(PairData):
    """Pairs of texts for a model that reads the one and writes the other; see `ExampleData`.

    A row has room for `memory_length` tokens of sources and `length` of targets. A source ends with the end-of-document token; a
    target begins and ends with it. What is longer is cut (counted).
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "memory_tokens"})

    memory_length: int = 256

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "memory_length")

    def capacity(self) -> dict[str, int]:
        """See `ExampleData.capacity`."""
        return {"": self.length, "memory_": self.memory_length}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        memory = jax.ShapeDtypeStruct((self.batch_size, self.memory_length), np.int32)
        return super().shapes() | {f"memory_{name}": memory for name in ("tokens", "segments", "positions")}

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: targets begin with the end-of-document token, an encoder reads the texts."""
        sources = [self._source(ids, tokenizer) for ids in tokenizer.encode_batch(texts)]
        longest = min(-(-max(map(len, sources)) // _SHAPES) * _SHAPES, self.memory_length)
        pad = lambda rows: np.stack([np.pad(row, (0, longest - len(row))) for row in rows])  # noqa: E731
        batch = {"memory_tokens": pad(sources), "memory_segments": pad([np.ones_like(source) for source in sources])}
        return [[tokenizer.eos] for _ in texts], batch

    def _source(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        return np.append(ids[: self.memory_length - 1], tokenizer.eos).astype(np.int32)

    def arrays(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray]:
        """See `PairData.arrays`."""
        counts["sources cut to a row"] += len(source) >= self.memory_length
        counts["targets cut to a row"] += len(target) >= self.length
        return {"memory_tokens": self._source(source, tokenizer), **written(target, tokenizer.eos, self.length)}


@dataclasses.dataclass(kw_only=True)
class PromptedText(PairData):
    """Pairs of texts for a model of the next word: it reads the source as a prompt and learns to go on with the target.

    An example is a document: `before`, the source, `between`, the target. Only the target and the end of the document have
    weight. A source that leaves less than half of a row to the target is cut to that; then what is longer than a row is cut (both
    counted). `before` and `between` are the template of a chat: who speaks.
    """

    before: str = ""
    between: str = "\n"

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: the documents up to where the targets begin."""
        return [self._prompt(ids, tokenizer)[0].tolist() for ids in tokenizer.encode_batch(texts)], {}

    def _prompt(self, source: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, bool]:
        """The tokens of a prompt, and whether its source was cut."""
        before, between = tokenizer.encode(self.before), tokenizer.encode(self.between)
        room = self.length // 2 - len(before) - len(between) - 1
        if room < 1:
            raise DataError(
                f"before={self.before!r} and between={self.between!r}, {len(before) + len(between)} tokens, leave no room for a "
                f"source in half a row of length={self.length}; give a greater length"
            )
        prompt = np.concatenate([[tokenizer.eos], before, source[:room], between]).astype(np.int32)
        return prompt, len(source) > room

    def arrays(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray]:
        """See `PairData.arrays`."""
        prompt, cut = self._prompt(source, tokenizer)
        counts["sources cut to half a row"] += cut
        counts["targets cut to a row"] += len(prompt) + len(target) > self.length
        example = written(np.concatenate([prompt[1:], target]), tokenizer.eos, self.length)
        example["weights"][: len(prompt) - 1] = 0.0
        return example


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
        both = zip(self.pairs[split], self.examples[split], strict=True)
        return sum(scored_bytes(pair.target, example.arrays, self.tokenizer) for pair, example in both)

    def references(self, split: str) -> list[list[str]]:
        """The texts that each example of a split may be answered with, in order."""
        self.require(split)
        return [[pair.target, *pair.others] for pair in self.pairs[split]]

    def sources(self, split: str) -> list[str]:
        """What they are answers to."""
        self.require(split)
        return [pair.source for pair in self.pairs[split]]
