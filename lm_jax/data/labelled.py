"""Texts with a label each: classification."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.examples import Example, ExampleLoader, Rows
from lm_jax.data.shuffle import permute, random_bits
from lm_jax.data.sources import Counts, FileSource, read_text
from lm_jax.data.supervised import ExampleData, PreparedExamples, numbered
from lm_jax.data.tokenizers import Tokenizer, encode_named


class Labelled(NamedTuple):
    """A text, its label and where it came from."""

    name: str
    text: str
    label: str


@dataclasses.dataclass(kw_only=True)
class LabelledLines(FileSource):
    """A line is a text and its label: the "first" or the "last" of what `separator` sets apart (the text may contain it too).

    With `first` only so many texts are read.
    """

    label: str = "last"
    separator: str = "\t"
    first: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown place of the label or an empty separator."""
        super().validate()
        check_choice("label", self.label, ("first", "last"))
        if self.first is not None:
            check_positive(self, "first")
        if not self.separator:
            raise ConfigError("separator is empty; it sets text and label apart, such as '\\t'")

    def read(self, counts: Counts) -> Iterator[Labelled]:
        """Yields the first `first` labelled texts in order; see `lines`."""
        return itertools.islice(self.lines(counts), self.first)

    def lines(self, counts: Counts) -> Iterator[Labelled]:
        """Yields the labelled texts in order; blank lines are left out and counted. Raises `DataError` for a line without both."""
        for path in self.files():
            for number, line in enumerate(read_text(path, self.encoding_errors, counts).split("\n"), start=1):
                line = line.removesuffix("\r")
                if not line.strip():
                    counts["lines dropped: blank"] += bool(line)
                    continue
                one, _, other = line.partition(self.separator) if self.label == "first" else line.rpartition(self.separator)
                label, text = (one, other) if self.label == "first" else (other, one)
                if not label.strip() or not text.strip():
                    raise DataError(
                        f"{path}:{number} is no text with its label {self.label} after {self.separator!r}: {line[:60]!r}"
                    )
                yield Labelled(f"{path.name}:{number}", text.strip(), label.strip())


@dataclasses.dataclass(kw_only=True)
class LabelledText(ExampleData):
    """Labelled texts; see `ExampleData`.

    A text is an end-of-document token, whose hidden state stands for it, and its tokens, cut to `length` in all (counted). The
    classes are the labels of `train`. In a batch "targets" and "weights" are those of the first token of a text, else 0.

    With `ngrams` > 1 a batch has "features" [B, T, `ngrams` - 1] too: see `ngram_features`.

    With `balanced` all classes are equally frequent in training: an epoch has as many examples of each as the largest class has,
    so that each example of a small class comes several times.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classes"})

    train: LabelledLines
    validation: LabelledLines | None = None
    test: LabelledLines | None = None
    ngrams: int = 1
    balanced: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "ngrams")

    @property
    def inputs(self) -> frozenset[str]:  # type: ignore[override]
        """See `DataConfig`."""
        return frozenset({"tokens", "features"} if self.ngrams > 1 else {"tokens"})

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        features = jax.ShapeDtypeStruct((self.batch_size, self.length, self.ngrams - 1), np.int32)
        return super().shapes() | ({"features": features} if self.ngrams > 1 else {})

    def make(self, items: dict[str, list[Labelled]], counts: Counts) -> "PreparedLabelled":
        """See `ExampleData.make`. Raises `DataError` for a label that `train` lacks."""
        classes = numbered(text.label for text in items["train"])
        tokenizer = self.tokenizer.train(text.text for text in items["train"])
        examples = {split: list(self._examples(found, tokenizer, classes, counts)) for split, found in items.items()}
        return PreparedLabelled(config=self, tokenizer=tokenizer, examples=examples, classes=classes)

    def _examples(self, texts: list[Labelled], tokenizer: Tokenizer, classes: tuple[str, ...], counts: Counts) -> Iterator[Example]:
        numbers = {label: i for i, label in enumerate(classes)}
        for text, ids in zip(texts, encode_named(tokenizer, [(text.name, text.text) for text in texts]), strict=True):
            if text.label not in numbers:
                raise DataError(f"{text.name}: label {text.label!r} is not among those of the training texts: {', '.join(classes)}")
            counts["texts cut to a row"] += len(ids) >= self.length
            tokens = np.concatenate([[tokenizer.eos], ids])[: self.length].astype(np.int32)
            targets, weights = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.float32)
            targets[0], weights[0] = numbers[text.label], 1.0
            features = {"features": ngram_features(tokens, self.ngrams)} if self.ngrams > 1 else {}
            yield Example(text.name, {"tokens": tokens, "targets": targets, "weights": weights, **features})


def ngram_features(tokens: np.ndarray, longest: int) -> np.ndarray:
    """int32 [T, longest - 1], not negative: hashes of the n-grams, n = 2 ... `longest`, that end at each token (the classifier of
    fastText, Joulin et al. 2016, arXiv:1607.01759, section 2.2). Before the first token stand copies of it."""
    before = [np.concatenate([np.repeat(tokens[:1], back), tokens])[: len(tokens)] for back in range(longest)]
    columns = [random_bits(n, *before[:n]) >> np.uint64(33) for n in range(2, longest + 1)]
    return np.stack(columns, axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedLabelled(PreparedExamples):
    """See `PreparedExamples`. `classes` are the labels; a target is a place among them."""

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def outputs(self) -> str:
        """See `PreparedExamples.outputs`."""
        return f"{super().outputs()}; {self.num_outputs} classes: {', '.join(self.classes)}"

    def train_loader(self, rows: slice = slice(None)) -> ExampleLoader:
        """See `Prepared.train_loader`."""
        if not self.config.balanced:
            return super().train_loader(rows)
        examples = self.require("train")
        packed = Rows(balanced(examples, self.config.seed), self.config.capacity())
        return ExampleLoader(packed, batch_size=self.config.batch_size, seed=self.config.seed, local=rows)


def balanced(examples: list[Example], seed: int) -> list[Example]:
    """As many examples of each class (the target of the first token) as the largest has: those of smaller ones in turn, in an order
    that `seed` draws, so that their numbers differ by one at most."""
    members: dict[int, list[Example]] = {}
    for example in examples:
        members.setdefault(int(example.arrays["targets"][0]), []).append(example)
    size = max(map(len, members.values()))
    chosen = []
    for target, own in sorted(members.items()):
        order = permute(np.arange(len(own)), len(own), seed=seed, epoch=target)
        chosen += [own[i] for i in np.resize(order, size).tolist()]
    return chosen
