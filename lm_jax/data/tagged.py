"""Sentences of words with a tag each, such as the names in them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import check_choice, check_one_group, check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.examples import Example
from lm_jax.data.sources import Counts, FileSource, read_text
from lm_jax.data.supervised import ExampleData, PreparedExamples
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.data.words import aligned, word_features

OUTSIDE = "O"
# What letters of other schemes are in BIO: the first word of a span, or another one.
SCHEMES = {"BIO": {"B": "B", "I": "I"}, "BMES": {"B": "B", "S": "B", "M": "I", "E": "I"}}


class Sentence(NamedTuple):
    """Words and their BIO tags: "B-TYPE" at the first word of a span, "I-TYPE" at the others, "O" outside of spans."""

    name: str  # the file and its line of the first word, set apart by ":"; each word has a line of its own
    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclasses.dataclass(kw_only=True)
class TaggedLines(FileSource):
    """A line is a word and its tag, set apart by the last `separator`; a blank line ends a sentence.

    `word` is a regular expression of what stands before the separator, whose one group is the word: "en:(.+)" leaves the prefix
    of WikiANN out. `scheme` is that of the tags: "BIO" (Ramshaw and Marcus 1995, as in CoNLL 2003), or "BMES" (begin, middle,
    end, single), which are turned into BIO. A tag that goes on with a span (I, M, E) where none of its type is before it is an
    "error", or with `invalid` "repair" begins one (counted).
    """

    separator: str = "\t"
    word: str = "(.+)"
    scheme: str = "BIO"
    invalid: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown scheme or policy, or an expression without one group."""
        super().validate()
        check_choice("scheme", self.scheme, tuple(SCHEMES))
        check_choice("invalid", self.invalid, ("error", "repair"))
        if not self.separator:
            raise ConfigError("separator is empty; it sets word and tag apart, such as '\\t'")
        check_one_group("word", self.word, "it is the word, such as in 'en:(.+)'")

    def read(self, counts: Counts) -> Iterator[Sentence]:
        """Yields the sentences in order. Raises `DataError` with file and line for one without a word and a valid tag."""
        for path in self.files():
            words: list[str] = []
            tags: list[str] = []
            closed = True
            for number, line in enumerate([*read_text(path, self.encoding_errors, counts).split("\n"), ""], start=1):
                if line.strip():
                    word, tag, closes = self._split(line.removesuffix("\r"), path, number)
                    words.append(word)
                    tags.append(self._continued(tag, tags[-1] if tags else OUTSIDE, closed, f"{path}:{number}", counts))
                    closed = closes
                elif words:
                    yield Sentence(f"{path.name}:{number - len(words)}", tuple(words), tuple(tags))
                    words, tags = [], []

    def _split(self, line: str, path: Path, number: int) -> tuple[str, str, bool]:
        """The word, its tag in BIO, which may not fit the one before, and whether a span ends with it for certain."""
        left, _, tag = line.rpartition(self.separator)
        word = re.fullmatch(self.word, left)
        if word is None or not (word[1] or "").strip():
            raise DataError(f"{path}:{number} is no word {self.word!r} with a tag after {self.separator!r}: {line[:60]!r}")
        letter, dash, kind = tag.partition("-")
        if tag == OUTSIDE:
            return word[1], tag, True
        if letter not in SCHEMES[self.scheme] or not dash or not kind:
            letters = ", ".join(f"{letter}-TYPE" for letter in SCHEMES[self.scheme])
            raise DataError(f"{path}:{number}: tag {tag!r} is none of {OUTSIDE}, {letters} (scheme={self.scheme!r}): {line[:60]!r}")
        return word[1], f"{SCHEMES[self.scheme][letter]}-{kind}", letter in ("S", "E")

    def _continued(self, tag: str, before: str, closed: bool, where: str, counts: Counts) -> str:
        """The tag, where what it goes on with is there and not `closed`."""
        if not tag.startswith("I-") or (before[1:] == tag[1:] and not closed):
            return tag
        if self.invalid == "error":
            tag = repr(tag) if self.scheme == "BIO" else f"{tag!r} (in BIO)"
            raise DataError(
                f"{where}: tag {tag} goes on with a span, and none of its type is open after {before!r}; correct it, "
                "or begin a span there with invalid='repair'"
            )
        counts["tags repaired: a span that had no beginning"] += 1
        return f"B-{tag[2:]}"


@dataclasses.dataclass(kw_only=True)
class TaggedText(ExampleData):
    """Tagged sentences; see `ExampleData`.

    Each word is cut into tokens on its own. In a batch "targets" and "weights" are those of the first token of a word, else 0;
    "features" [B, T, 2 * affixes + 2] are those of its word (see `word_features`). A sentence longer than `length` is cut into
    several examples, between words (counted). The classes are the tags of `train`, "O" first.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "features"})
    optional: ClassVar[frozenset[str]] = ExampleData.optional | {"features"}
    targets: ClassVar[frozenset[str]] = frozenset({"tags"})

    train: TaggedLines
    validation: TaggedLines | None = None
    test: TaggedLines | None = None
    affixes: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "affixes")

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `ExampleData.shapes`."""
        features = (self.batch_size, self.length, 2 * self.affixes + 2)
        return super().shapes() | {"features": jax.ShapeDtypeStruct(features, np.int32)}

    def make(self, items: dict[str, list[Sentence]], counts: Counts) -> "PreparedTagged":
        """See `ExampleData.make`. Raises `DataError` for a tag that `train` lacks."""
        tags = {tag for sentence in items["train"] for tag in sentence.tags} - {OUTSIDE}
        classes = (OUTSIDE, *sorted(tags, key=lambda tag: (tag[2:], tag)))
        tokenizer = self.tokenizer.train(" ".join(sentence.words) for sentence in items["train"])
        examples = {split: list(self._examples(found, tokenizer, classes, counts)) for split, found in items.items()}
        return PreparedTagged(config=self, tokenizer=tokenizer, examples=examples, classes=classes, sentences=items)

    def _examples(
        self, sentences: list[Sentence], tokenizer: Tokenizer, classes: tuple[str, ...], counts: Counts
    ) -> Iterator[Example]:
        numbers = {tag: i for i, tag in enumerate(classes)}
        words = list(dict.fromkeys(word for sentence in sentences for word in sentence.words))
        tokens = dict(zip(words, tokenizer.encode_batch(words), strict=True))
        for sentence in sentences:
            ids, targets = [], []
            for place, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
                if tag not in numbers or not len(tokens[word]):
                    file, _, line = sentence.name.rpartition(":")
                    problem = f"tag {tag!r} is not among those of the training sentences: {', '.join(classes)}"
                    if tag in numbers:
                        problem = f"the tokenizer makes no token of the word {word!r}"
                    raise DataError(f"{file}:{int(line) + place}: {problem}")
                counts["words cut to a row"] += len(tokens[word]) > self.length
                ids.append(tokens[word][: self.length])
                targets.append(numbers[tag])
            begins = _cut([len(part) for part in ids], self.length)
            counts["sentences cut into several"] += len(begins) > 1
            for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
                features = np.stack([word_features(word, self.affixes) for word in sentence.words[begin:end]])
                yield Example(sentence.name, aligned(ids[begin:end], targets[begin:end], features))


def _cut(sizes: list[int], length: int) -> list[int]:
    """The first words of the pieces of at most `length` tokens that words of `sizes` tokens are cut into."""
    begins, room = [], 0
    for place, size in enumerate(sizes):
        if size > room:
            begins.append(place)
            room = length
        room -= size
    return begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTagged(PreparedExamples):
    """See `PreparedExamples`. `classes` are the tags, a target is a place among them; `sentences` are those of each split.

    The words of a split are, in order, the tokens of its examples that have a weight.
    """

    classes: tuple[str, ...]
    sentences: dict[str, list[Sentence]]

    @property
    def num_outputs(self) -> int:
        """How many tags there are."""
        return len(self.classes)

    def outputs(self) -> str:
        """See `PreparedExamples.outputs`."""
        return f"{super().outputs()}; {self.num_outputs} tags: {', '.join(self.classes)}"
