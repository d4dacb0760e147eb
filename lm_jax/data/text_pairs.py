"""Pairs of texts to be compared: translations of each other, paraphrases, questions and what answers them."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from lm_jax.core.errors import ConfigError
from lm_jax.data.buckets import Buckets, PreparedBuckets
from lm_jax.data.pairs import Pair, PairData
from lm_jax.data.sources import Counts
from lm_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(kw_only=True)
class TextPairs(PairData):
    """Pairs of texts, one in each row: "pair_tokens" [B, T, 2] are the source and the target; see `PairData`.

    A text is an end-of-document token and its tokens, cut to `length` in all (counted). A batch holds pairs of about one length,
    and is as wide as the least of `buckets`, ascending, that has room for both texts (None: always `length`). In training batches
    are full: of the pairs of a bucket that fill no batch, others are left out in every epoch.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    inputs: ClassVar[frozenset[str]] = frozenset({"pair_tokens"})

    texts_per_row: ClassVar[int] = 2

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
        return dict.fromkeys(("pair_tokens", "pair_segments"), jax.ShapeDtypeStruct((self.batch_size, self.length, 2), np.int32))

    def row(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """int32 [T]: the tokens of a text, given its ids."""
        return np.append([tokenizer.eos], ids)[: self.length].astype(np.int32)

    def arrays(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray]:
        """See `PairData.arrays`."""
        counts["texts cut to a row"] += sum(len(ids) >= self.length for ids in (source, target))
        sides = [self.row(ids, tokenizer) for ids in (source, target)]
        tokens, segments = np.zeros((2, max(map(len, sides)), 2), np.int32)
        for side, text in enumerate(sides):
            tokens[: len(text), side], segments[: len(text), side] = text, 1
        return {"pair_tokens": tokens, "pair_segments": segments}

    def make(self, items: dict[str, list[Pair]], counts: Counts) -> "PreparedTextPairs":
        """See `SplitData.make`."""
        made = super().make(items, counts)
        return PreparedTextPairs(config=self, tokenizer=made.tokenizer, examples=made.examples, pairs=items)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTextPairs(PreparedBuckets):
    """See `PreparedBuckets`. `pairs` are the texts of the examples, by split."""

    full: ClassVar[bool] = True

    config: TextPairs
    pairs: dict[str, list[Pair]]

    def buckets(self, split: str, length: int | None = None) -> Buckets:
        """See `PreparedBuckets.buckets`."""
        return Buckets(self.require(split), self.config.sizes if length is None else (length,))

    @property
    def tokens_per_row(self) -> float:
        """See `Prepared.tokens_per_row`: of both texts."""
        return self.config.texts_per_row * self.buckets("train").mean_size(self.config.batch_size, full=True)

    def sizes(self, split: str) -> str:
        """See `PreparedSplits.sizes`."""
        tokens = sum(int(example.arrays["pair_segments"].sum()) for example in self.examples[split])
        return f"{len(self.examples[split]):,} pairs, {tokens:,} tokens"
