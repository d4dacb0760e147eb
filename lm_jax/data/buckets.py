"""Examples of unequal length, one to a row, batched with others of about their length: loaders, and data that has them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch
from lm_jax.data.examples import Example
from lm_jax.data.shuffle import permute
from lm_jax.data.supervised import PreparedSplits

FORMAT = 1  # raised whenever the same examples would give other batches than before


class Buckets:
    """Rows of one example each, padded with 0 to one of few lengths.

    Attributes:
      examples: arrays [n, ...], or scalars.
      sizes: the lengths of arrays in a batch, ascending: an example is in the first bucket that has room for the longest of them.
      lengths: in a batch, of arrays whose length decides nothing.
    """

    def __init__(self, examples: Sequence[Example], sizes: tuple[int, ...], lengths: dict[str, int] | None = None):
        self.examples, self.sizes, self.lengths = list(examples), sizes, lengths or {}
        self.by = [name for name, value in self.examples[0].arrays.items() if value.ndim and name not in self.lengths]
        own = np.array([[len(example.arrays[name]) for name in self.by] for example in self.examples])
        if own.max() > sizes[-1]:
            number, which = np.unravel_index(own.argmax(), own.shape)
            what = f"{self.examples[number].name} has {own.max()} {self.by[which]}"
            raise DataError(f"{what}, more than the largest bucket of {sizes[-1]} holds")
        for name, length in self.lengths.items():
            for example in self.examples:
                if name in example.arrays and len(example.arrays[name]) > length:
                    raise DataError(f"{example.name} has {len(example.arrays[name])} {name}, more than the {length} of a row")
        place = np.searchsorted(sizes, own.max(axis=1))
        self.members = [np.flatnonzero(place == bucket) for bucket in range(len(sizes))]

    def batches(self, batch_size: int, *, full: bool = False) -> list[tuple[int, int]]:
        """(bucket, number within it) of all batches. The last one of a bucket is filled with rows of padding, or with `full` left
        out."""
        more = 0 if full else batch_size - 1
        return [(b, i) for b, members in enumerate(self.members) for i in range((len(members) + more) // batch_size)]

    def mean_size(self, batch_size: int, *, full: bool = False) -> float:
        """The length of a batch, a mean over an epoch."""
        return float(np.mean([self.sizes[bucket] for bucket, _ in self.batches(batch_size, full=full)]))

    def fill(self, numbers: Sequence[int], bucket: int) -> Batch:
        """Arrays [rows, ...] of these examples; -1 is a row of padding only."""
        batch: Batch = {}
        for name, value in self.examples[0].arrays.items():
            size = self.lengths.get(name, self.sizes[bucket])
            batch[name] = np.zeros((len(numbers), *(() if value.ndim == 0 else (size, *value.shape[1:]))), value.dtype)
        for row, number in enumerate(numbers):
            for name, value in self.examples[number].arrays.items() if number >= 0 else ():
                batch[name][(row, slice(len(value))) if value.ndim else row] = value
        return batch

    @property
    def hash(self) -> str:
        """SHA-256 of all examples, in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            for name in sorted(example.arrays):
                value = np.asarray(example.arrays[name])
                digest.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
        return digest.hexdigest()


def _places(batch: int, batch_size: int) -> np.ndarray:
    return np.arange(batch * batch_size, (batch + 1) * batch_size)


class BucketLoader:
    """Training batches: `loader(step)` is a pure function, without end. Each epoch has all examples once, in other batches and
    another order of them; with `full` only those that fill batches, which are others in every epoch."""

    def __init__(self, buckets: Buckets, *, batch_size: int, seed: int = 0, local: slice = slice(None), full: bool = False):
        """A loader of which this process takes the rows `local` of every batch. Raises `DataError` where `full` leaves out all
        examples of a bucket."""
        self._buckets, self._batch_size, self._seed, self._local = buckets, batch_size, seed, local
        self._batches = buckets.batches(batch_size, full=full)
        few = [(size, len(own)) for size, own in zip(buckets.sizes, buckets.members, strict=True) if 0 < len(own) < batch_size]
        if full and few:
            size, number = few[0]
            rest = [known for known in buckets.sizes if known != (size if size != buckets.sizes[-1] else buckets.sizes[-2:][0])]
            raise DataError(
                f"the bucket of {size} has {number:,} training examples, fewer than one batch of batch_size={batch_size}: take "
                f"smaller batches{f', or the buckets {rest}' if rest else ''}"
            )
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "examples": buckets.hash,
            "buckets": {"by": ",".join(buckets.by), "sizes": list(buckets.sizes), "lengths": dict(buckets.lengths)},
            "batch_size": batch_size,
            "seed": seed,
        } | ({"full": True} if full else {})

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0)."""
        bucket, numbers = self._numbers(step)
        return self._buckets.fill(numbers[self._local], bucket)

    def documents(self, step: int) -> list[list[str]]:
        """The name of the example in each row of the global batch `step`; none in a row of padding."""
        return [[self._buckets.examples[number].name] if number >= 0 else [] for number in self._numbers(step)[1]]

    def _numbers(self, step: int) -> tuple[int, list[int]]:
        epoch, at = divmod(step, len(self._batches))
        draw = functools.partial(permute, seed=self._seed, epoch=epoch)
        bucket, batch = self._batches[int(draw(np.array([at]), len(self._batches))[0])]
        members, places = self._buckets.members[bucket], _places(batch, self._batch_size)
        places = places[places < len(members)]
        numbers = members[draw(places, len(members), stream=1 + bucket)].tolist()  # an order of its own for each bucket
        return bucket, numbers + [-1] * (self._batch_size - len(numbers))


class BucketBatches:
    """All examples once, bucket by bucket: iterating gives (numbers of the examples, -1 for padding; this process's rows)."""

    def __init__(self, buckets: Buckets, *, batch_size: int, local: slice = slice(None)):
        self._buckets, self._batch_size, self._local = buckets, batch_size, local

    def __len__(self) -> int:
        return len(self._buckets.batches(self._batch_size))

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        for bucket, batch in self._buckets.batches(self._batch_size):
            members, places = self._buckets.members[bucket], _places(batch, self._batch_size)
            numbers = [int(members[place]) if place < len(members) else -1 for place in places]
            yield numbers, self._buckets.fill(numbers[self._local], bucket)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedBuckets(PreparedSplits):
    """See `PreparedSplits`; each example has a row of its own. With `full` training batches have no padding rows."""

    full: ClassVar[bool] = False

    def buckets(self, split: str, length: int | None = None) -> Buckets:
        """The examples of a split; `length` is that of tokens, where it is not as in training."""
        raise NotImplementedError

    def train_loader(self, rows: slice = slice(None)) -> BucketLoader:
        """Training batches, of which this process takes the given `rows`."""
        config = self.config
        return BucketLoader(self.buckets("train"), batch_size=config.batch_size, seed=config.seed, local=rows, full=self.full)

    def numbered_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> BucketBatches:
        """The whole split once: the number in the split of the example of every row (-1: none), and this process's rows."""
        return BucketBatches(self.buckets(split, length), batch_size=batch_size or self.config.batch_size, local=rows)

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> Iterator[Batch]:
        """The whole split once, in batches of as many shapes as there are buckets; sizes default to those of training."""
        return (batch for _, batch in self.numbered_batches(split, batch_size, length, rows))
