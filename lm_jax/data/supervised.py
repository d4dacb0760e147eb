"""What all data has in common that is made of examples: its splits, and the batches of them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from lm_jax.core.config import nearest
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.base import DataConfig
from lm_jax.data.examples import Example, ExampleBatches, ExampleLoader, Rows
from lm_jax.data.sources import Counts
from lm_jax.data.splits import Split, TailFraction
from lm_jax.data.tokenizers import Tokenizer, TokenizerConfig


@dataclasses.dataclass(kw_only=True)
class SplitData(DataConfig):
    """Base of the data whose splits are sources of their own: `validation` and `test` are such, as `train` is (which a subclass
    says); where `split` is given, what it holds out of `train`, by name, is added to them.
    """

    train: Any
    validation: Any = None
    test: Any = None
    split: Split | None = None
    tokenizer: TokenizerConfig

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions": always."""
        return True

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1, or a rule that cuts texts, which examples are not."""
        super().validate()
        if isinstance(self.split, TailFraction):
            raise ConfigError("split=TailFraction(...) cuts every document in two, and examples are whole; use HashSplit")

    def items(self, counts: Counts) -> dict[str, list[Any]]:
        """What the sources read, by split; only splits that have any. Raises `DataError` where there is nothing to train on."""
        found: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
        for split, item in (self.split or Split()).assign(self.train.read(counts)):
            found[split].append(item)
        for name, source in (("validation", self.validation), ("test", self.test)):
            found[name] += [] if source is None else source.read(counts)
        if not found["train"]:
            raise DataError(f"{type(self).__name__}.train has nothing to train on: {self.train}")
        return {name: items for name, items in found.items() if items}

    def prepare(self, progress: Callable[..., Any] | None = None) -> "PreparedSplits":
        """Reads and tokenises what the sources hold. Raises `DataError` for bad or missing data."""
        counts: Counts = Counter()
        prepared = self.make(self.items(counts), counts)
        prepared.record.update(counts)
        if progress is not None:
            progress(prepared.describe())
        return prepared

    def make(self, items: dict[str, list[Any]], counts: Counts) -> "PreparedSplits":
        """The examples of what was read."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class ExampleData(SplitData):
    """Base of the data made of examples, several of which share a row. See `SplitData`."""

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens"})

    def capacity(self) -> dict[str, int]:
        """Of a row, by the prefix of what it is the capacity for (see `Rows`)."""
        return {"": self.length}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSplits:
    """Examples of any kind, ready to be batched.

    Attributes:
      config: what they were made from.
      tokenizer: that of their text.
      examples: of each split.
      record: counts of what was changed or left out.
    """

    config: SplitData
    tokenizer: Tokenizer
    examples: dict[str, list[Any]]
    record: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """See `Prepared.vocab_size`."""
        return self.tokenizer.vocab_size

    @property
    def num_outputs(self) -> int:
        """See `Prepared.num_outputs`: the tokens, where a subclass does not say otherwise."""
        return self.vocab_size

    @property
    def tokens_per_row(self) -> float:
        """See `Prepared.tokens_per_row`."""
        return self.config.row_length()

    def require(self, split: str) -> list[Any]:
        """The examples of a split. Raises `DataError`, naming those that exist, where there is none."""
        if split not in self.examples:
            raise DataError(f"there is no split {split!r}{nearest(split, list(self.examples))}")
        return self.examples[split]

    def describe(self) -> str:
        """A line of the vocabulary, one per split, and one for each thing that was changed."""
        lines = [self.outputs(), *(f"{split}: {self.sizes(split)}" for split in self.examples)]
        return "\n".join(lines + [f"{what}: {number:,}" for what, number in self.record.items() if number])

    def outputs(self) -> str:
        """What there is to predict, in words."""
        return f"vocabulary of {self.tokenizer.vocab_size:,}"

    def sizes(self, split: str) -> str:
        """How much a split holds, in words."""
        raise NotImplementedError

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the text that the targets spell, of which bits per byte are counted; 0 where they are no text."""
        return 0


def scored_bytes(text: str, row: Batch, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of what a row predicts of `text`: all of them, or where its tokens were cut, the same share as of the tokens."""
    scored = row["targets"][row["weights"] > 0]
    size = len(text.encode())
    whole = len(scored) > 0 and scored[-1] == tokenizer.eos
    return size if whole else round(size * len(scored) / len(tokenizer.encode(text)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedExamples(PreparedSplits):
    """See `PreparedSplits`; several examples share a row."""

    config: ExampleData
    examples: dict[str, list[Example]]

    def sizes(self, split: str) -> str:
        """See `PreparedSplits.sizes`."""
        examples = self.examples[split]
        sizes = [f"{sum(e.length(prefix) for e in examples):,} {prefix}tokens" for prefix in self.config.capacity()]
        return f"{len(examples):,} examples, {', '.join(sizes)}"

    def train_loader(self, rows: slice = slice(None)) -> ExampleLoader:
        """Training batches, of which this process takes the given `rows`."""
        packed = Rows(self.require("train"), self.config.capacity())
        return ExampleLoader(packed, batch_size=self.config.batch_size, seed=self.config.seed, local=rows)

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> ExampleBatches:
        """The whole split once; sizes default to those of training."""
        packed = Rows(self.require(split), self.config.capacity() | ({"": length} if length else {}))
        return ExampleBatches(packed, batch_size=batch_size or self.config.batch_size, local=rows)


def numbered(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in order: short ones first, so that numbers stand in theirs."""
    return tuple(sorted(set(labels), key=lambda label: (len(label), label)))
