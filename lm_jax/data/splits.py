"""Which text is trained on and which is held out."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator

from lm_jax.core.config import Config, check_one_group
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.sources import Document, find_one

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(kw_only=True)
class Split(Config):
    """Base of the rules. The rule itself: all documents are for training."""

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Yields ("train", "validation" or "test", document)."""
        for document in documents:
            yield "train", document


@dataclasses.dataclass(kw_only=True)
class Shares(Split):
    """Base of the rules that hold out shares of the text."""

    validation: float = 0.1
    test: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for shares that leave nothing to train on."""
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise ConfigError(f"validation={self.validation} and test={self.test} must be shares with a sum below 1")


@dataclasses.dataclass(kw_only=True)
class TailFraction(Shares):
    """The end of every document is held out: of n characters the first int(n (1 - validation - test)) are for training, those
    up to int(n (1 - test)) for validation, the rest for the test.
    """

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """See `Split.assign`."""
        for name, text in documents:
            # Rounded, so that 1 - 0.1 - 0.0 is 0.9 and the cut is the one people expect.
            first = int(len(text) * round(1 - self.validation - self.test, 12))
            second = int(len(text) * round(1 - self.test, 12))
            for split, part in zip(SPLITS, (text[:first], text[first:second], text[second:]), strict=True):
                if part:
                    yield split, Document(name, part)


@dataclasses.dataclass(kw_only=True)
class HashSplit(Shares):
    """A document's split follows from the SHA-256 of its name and `seed`: adding documents never moves another."""

    seed: int = 0

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """See `Split.assign`."""
        for document in documents:
            digest = hashlib.sha256(f"{self.seed}:{document.name}".encode()).digest()
            place = int.from_bytes(digest[:8], "big") / 2**64
            held = self.validation + self.test
            yield "test" if place < self.test else "validation" if place < held else "train", document


@dataclasses.dataclass(kw_only=True)
class NamedSplit(Split):
    """A document's split follows from its name: what the one group of the regular expression `pattern` finds in it is among those
    of `validation`, of `test`, or of neither."""

    pattern: str
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def validate(self) -> None:
        """Raises `ConfigError` for an expression without its one group, or what is held out twice."""
        check_one_group("pattern", self.pattern, "put ( ) around the part that says which split")
        if twice := set(self.validation) & set(self.test):
            raise ConfigError(f"{sorted(twice)} are in both validation and test")

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """See `Split.assign`. Raises `DataError` for a name in which the pattern finds nothing."""
        for document in documents:
            found = re.search(self.pattern, document.name)
            if found is None:
                raise DataError(f"split.pattern={self.pattern!r} finds nothing in the name {document.name!r}")
            yield "test" if found[1] in self.test else "validation" if found[1] in self.validation else "train", document


@dataclasses.dataclass(kw_only=True)
class ListedSplit(Split):
    """Splits by a JSON file {"train": [names], "validation": [names], "test": [names]} of the source's file names.

    Every file must be in the list, and in one split only.
    """

    path: str

    def assign(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """See `Split.assign`."""
        path = find_one(self.path)
        try:
            lists = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is no JSON object of lists of names by split: {error}") from error
        for split in lists:
            if split not in SPLITS:
                raise DataError(f"{path}: {split!r} is not one of {', '.join(SPLITS)}")
        place: dict[str, str] = {}
        for split, names in lists.items():
            for name in names:
                if name in place:
                    raise DataError(f"{path}: {name} is both in {place[name]} and in {split}")
                place[name] = split
        for document in documents:
            file = document.name.split(":")[0]
            if file not in place:
                raise DataError(f"{path} does not say in which split {file} is")
            yield place[file], document
