"""Pairs of texts to be compared: translations of each other, paraphrases, questions and what answers them."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from lm_jax.core.errors import ConfigError
from lm_jax.data.buckets import BucketBatches, BucketLoader, Buckets
from lm_jax.data.pairs import PairData, PreparedPairs
from lm_jax.data.sources import Counts
from lm_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(kw_only=True)
class TextPairs(PairData):
    """Pairs of texts, one in each row: "tokens" are the source, "memory_tokens" the target; see `PairData`.

    A text is an end-of-document token and its tokens, cut to `length` in all (counted). A batch holds pairs of about one length,
    and is as wide as the least of `buckets`, ascending, that has room for both texts (None: always `length`). In training batches
    are full: of the pairs of a bucket that fill no batch, others are left out in every epoch.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "memory_tokens"})

    buckets: tuple[int, ...] | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range, or buckets that do not ascend to `length`."""
        super().validate()
        sizes = self.sizes
        if list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.length:
            raise ConfigError(
                f"buckets={self.buckets} must be ascending numbers of tokens, of which length={self.length} is the last"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """How wide batches are."""
        return (self.length,) if not self.buckets else self.buckets

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`: of the widest batch."""
        rows = jax.ShapeDtypeStruct((self.batch_size, self.length), np.int32)
        return dict.fromkeys(("tokens", "segments", "memory_tokens", "memory_segments"), rows)

    def capacity(self) -> dict[str, int]:
        """See `ExampleData.capacity`."""
        return {"": self.length, "memory_": self.length}

    def arrays(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray]:
        """See `PairData.arrays`."""
        found = {}
        for prefix, ids in (("", source), ("memory_", target)):
            counts["texts cut to a row"] += len(ids) >= self.length
            tokens = np.append([tokenizer.eos], ids)[: self.length].astype(np.int32)
            found |= {f"{prefix}tokens": tokens, f"{prefix}segments": np.ones_like(tokens)}
        return found

    def make(self, items: dict, counts: Counts) -> "PreparedTextPairs":
        """See `ExampleData.make`."""
        made = super().make(items, counts)
        return PreparedTextPairs(config=self, tokenizer=made.tokenizer, examples=made.examples, pairs=made.pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTextPairs(PreparedPairs):
    """See `PreparedExamples`."""

    config: TextPairs

    def train_loader(self, rows: slice = slice(None)) -> BucketLoader:
        """Training batches, of which this process takes the given `rows`."""
        buckets = Buckets(self.require("train"), self.config.sizes)
        return BucketLoader(buckets, batch_size=self.config.batch_size, seed=self.config.seed, local=rows, full=True)

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> BucketBatches:
        """The whole split once: the number in the split of the pair of every row (-1: none), and this process's rows."""
        sizes = self.config.sizes if length is None else (length,)
        return BucketBatches(Buckets(self.require(split), sizes), batch_size=batch_size or self.config.batch_size, local=rows)
