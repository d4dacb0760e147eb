"""Texts with a label each: classification."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive, nearest
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.examples import Example, ExampleBatches, ExampleLoader, Rows
from lm_jax.data.sources import Counts, FileSource, read_text
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import Tokenizer, TokenizerConfig


class Labelled(NamedTuple):
    """A text, its label and where it came from."""

    name: str
    text: str
    label: str


@dataclasses.dataclass(kw_only=True)
class LabelledLines(FileSource):
    """A line is a text and its label: the "first" or the "last" of what `separator` sets apart (the text may contain it too)."""

    label: str = "last"
    separator: str = "\t"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown place of the label or an empty separator."""
        super().validate()
        check_choice("label", self.label, ("first", "last"))
        if not self.separator:
            raise ConfigError("separator is empty; it sets text and label apart, such as '\\t'")

    def texts(self, counts: Counts) -> Iterator[Labelled]:
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
class LabelledText(Config):
    """Labelled texts in rows of `length` tokens, of which `batch_size` are a batch; several texts share a row, and no attention.

    `validation` and `test` are sources of their own; where `split` is given, what it holds out of `train` is added to them. A
    text is an end-of-document token, whose hidden state stands for it, and its tokens, cut to `length` in all (counted). The
    classes are the labels of `train`. In a batch "targets" and "weights" are those of the first token of a text, else 0.
    """

    train: LabelledLines
    validation: LabelledLines | None = None
    test: LabelledLines | None = None
    split: HashSplit | None = None
    tokenizer: TokenizerConfig
    length: int = 256
    batch_size: int = 8
    seed: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        check_positive(self, "length", "batch_size")

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions": always."""
        return True

    def prepare(self, progress: Callable[..., Any] | None = None) -> "PreparedLabelled":
        """Reads and tokenises the texts. Raises `DataError` for bad or missing data, or a label that `train` lacks."""
        counts: Counts = Counter()
        texts: dict[str, list[Labelled]] = {"train": [], "validation": [], "test": []}
        for split, text in (self.split or _All()).assign(self.train.texts(counts)):
            texts[split].append(text)
        for name, source in (("validation", self.validation), ("test", self.test)):
            texts[name] += [] if source is None else source.texts(counts)
        classes = tuple(sorted({text.label for text in texts["train"]}, key=lambda label: (len(label), label)))
        tokenizer = self.tokenizer.train(text.text for text in texts["train"])
        splits = {name: list(self._examples(found, tokenizer, classes, counts)) for name, found in texts.items() if found}
        if "train" not in splits:
            raise DataError(f"{', '.join(self.train.paths)}: there is no text to train on")
        prepared = PreparedLabelled(self, tokenizer, classes, splits, dict(counts))
        if progress is not None:
            progress(prepared.describe())
        return prepared

    def _examples(self, texts: list[Labelled], tokenizer: Tokenizer, classes: tuple[str, ...], counts: Counts) -> Iterator[Example]:
        numbers = {label: i for i, label in enumerate(classes)}
        for text, ids in zip(texts, tokenizer.encode_batch([text.text for text in texts]), strict=True):
            if text.label not in numbers:
                raise DataError(f"{text.name}: label {text.label!r} is not among those of the training texts: {', '.join(classes)}")
            counts["texts cut to a row"] += len(ids) >= self.length
            tokens = np.concatenate([[tokenizer.eos], ids])[: self.length].astype(np.int32)
            targets, weights = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.float32)
            targets[0], weights[0] = numbers[text.label], 1.0
            yield Example(text.name, {"tokens": tokens, "targets": targets, "weights": weights})


class _All:
    def assign(self, texts: Iterator[Labelled]) -> Iterator[tuple[str, Labelled]]:
        for text in texts:
            yield "train", text


@dataclasses.dataclass(frozen=True)
class PreparedLabelled:
    """Tokenised labelled texts, ready to be batched.

    Attributes:
      classes: the labels; a target is a place among them.
      examples: of each split.
      record: counts of what was changed or left out.
    """

    config: LabelledText
    tokenizer: Tokenizer
    classes: tuple[str, ...]
    examples: dict[str, list[Example]]
    record: dict[str, int]

    @property
    def num_outputs(self) -> int:
        """How many targets there are."""
        return len(self.classes)

    def require(self, split: str) -> list[Example]:
        """The examples of a split. Raises `DataError`, naming those that exist, where there is none."""
        if split not in self.examples:
            raise DataError(f"there is no split {split!r}{nearest(split, list(self.examples))}")
        return self.examples[split]

    def describe(self) -> str:
        """A line per split, and one for what was changed."""
        lines = [f"vocabulary of {self.tokenizer.vocab_size:,}; {self.num_outputs} classes: {', '.join(self.classes)}"]
        for name, examples in self.examples.items():
            tokens = sum(example.length() for example in examples)
            lines.append(f"{name}: {len(examples):,} texts, {tokens:,} tokens")
        return "\n".join(lines + [f"{what}: {number:,}" for what, number in self.record.items() if number])

    def train_loader(self, rows: slice = slice(None)) -> ExampleLoader:
        """Training batches, of which this process takes the given `rows`."""
        packed = Rows(self.require("train"), {"": self.config.length})
        return ExampleLoader(packed, batch_size=self.config.batch_size, seed=self.config.seed, local=rows)

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> ExampleBatches:
        """The whole split once; sizes default to those of training."""
        packed = Rows(self.require(split), {"": length or self.config.length})
        return ExampleBatches(packed, batch_size=batch_size or self.config.batch_size, local=rows)

    def num_bytes(self, split: str) -> int:
        """0: the labels are no text, of which bits per byte could be counted."""
        return 0
