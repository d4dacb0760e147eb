"""Examples of unequal length, packed into rows of one shape: training batches as a pure function of the step, and a split once."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_jax.core.errors import DataError
from lm_jax.data.shuffle import permute

FORMAT = 1  # raised whenever the same examples would give other batches than before

Batch = dict[str, np.ndarray]


class Example(NamedTuple):
    """One example: arrays with an entry (or several: [n, ...]) for each token, by their names in a batch.

    "tokens", "targets" and "weights" are of one length; those whose names begin with "memory_" (what an encoder reads) of another.
    """

    name: str
    arrays: Batch

    def length(self, prefix: str = "") -> int:
        """Of the tokens, or of the memory."""
        return len(self.arrays[f"{prefix}tokens"])


def pack(lengths: np.ndarray, capacity: Sequence[int]) -> list[list[int]]:
    """Which examples share a row: each in the first row that has room, the long ones first.

    Args:
      lengths: integers [examples, kinds], such as of source and target.
      capacity: of a row, for each kind.

    Returns the numbers of the examples of every row. Raises `DataError` for an example that fits no row.
    """
    for number, size in enumerate(lengths):
        if any(size > capacity):
            raise DataError(f"example {number} has {size.tolist()} tokens, more than a row of {list(capacity)} holds")
    rows: list[list[int]] = [[] for _ in lengths]
    room = np.tile(np.array(capacity), (len(lengths), 1))  # a row for each example would always do
    used = 0
    for number in np.argsort(-lengths.sum(axis=1), kind="stable").tolist():
        row = int(np.argmax((room[: used + 1] >= lengths[number]).all(axis=1)))
        rows[row].append(number)
        room[row] -= lengths[number]
        used = max(used, row + 1)
    return rows[:used]


class Rows:
    """Examples packed into rows of `capacity` (tokens, by prefix: "" and "memory_"), which do not see each other within a row."""

    def __init__(self, examples: Sequence[Example], capacity: dict[str, int]):
        self.examples, self.capacity = list(examples), capacity
        lengths = np.array([[example.length(prefix) for prefix in capacity] for example in examples]).reshape(-1, len(capacity))
        self.rows = pack(lengths, tuple(capacity.values()))

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, rows: Sequence[int]) -> Batch:
        """Arrays [rows, length, ...] of these rows, with "segments" (1 is the first example of a row, 0 is padding) and "positions"
        for each kind; -1 is a row of padding only."""
        batch: Batch = {}
        for name, value in self.examples[0].arrays.items():
            batch[name] = np.zeros((len(rows), self.capacity[_kind(name)], *value.shape[1:]), value.dtype)
        for prefix, size in self.capacity.items():
            batch[f"{prefix}segments"] = np.zeros((len(rows), size), np.int32)
            batch[f"{prefix}positions"] = np.zeros((len(rows), size), np.int32)
        for at, row in enumerate(rows):
            for segment, (number, spans) in enumerate(self.spans(row), start=1):
                for name, value in self.examples[number].arrays.items():
                    batch[name][at, spans[_kind(name)]] = value
                for prefix, span in spans.items():
                    batch[f"{prefix}segments"][at, span] = segment
                    batch[f"{prefix}positions"][at, span] = np.arange(span.stop - span.start)
        return batch

    def spans(self, row: int) -> Iterator[tuple[int, dict[str, slice]]]:
        """Yields the number of each example of a row, and where its tokens stand there, by prefix. Nothing for a row of padding."""
        used = dict.fromkeys(self.capacity, 0)
        for number in self.rows[row] if 0 <= row < len(self.rows) else ():
            example = self.examples[number]
            spans = {prefix: slice(start, start + example.length(prefix)) for prefix, start in used.items()}
            used = {prefix: span.stop for prefix, span in spans.items()}
            yield number, spans

    @property
    def hash(self) -> str:
        """SHA-256 of all examples, in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            for name in sorted(example.arrays):
                value = example.arrays[name]
                digest.update(f"{name} {value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()


def _kind(name: str) -> str:
    return "memory_" if name.startswith("memory_") else ""


class ExampleLoader:
    """Training batches: `loader(step)` is a pure function, without end. Each epoch has all rows once, in another order."""

    def __init__(self, rows: Rows, *, batch_size: int, seed: int = 0, local: slice = slice(None)):
        """A loader of which this process takes the rows `local` of every batch. Raises `DataError` for less than a batch."""
        if len(rows) < batch_size:
            raise DataError(
                f"the {len(rows.examples)} training examples fill {len(rows)} rows of {rows.capacity} tokens, fewer than one batch "
                f"of batch_size={batch_size}: give more data, or a smaller length or batch_size"
            )
        self._rows, self.batch_size, self._seed, self._local = rows, batch_size, seed, local
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "examples": rows.hash,
            "capacity": dict(rows.capacity),
            "batch_size": batch_size,
            "seed": seed,
        }

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0)."""
        return self._rows.fill(self._numbers(step)[self._local])

    def documents(self, step: int) -> list[list[str]]:
        """The names of the examples in each row of the global batch `step`."""
        names = lambda row: [self._rows.examples[number].name for number in self._rows.rows[row]]  # noqa: E731
        return [names(row) for row in self._numbers(step)]

    def _numbers(self, step: int) -> list[int]:
        epoch, index = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self._rows))
        return permute(index, len(self._rows), seed=self._seed, epoch=epoch).tolist()


class ExampleBatches:
    """All examples of a split once, in batches of one shape: the last one is filled with rows of padding."""

    def __init__(self, rows: Rows, *, batch_size: int, local: slice = slice(None)):
        self.rows, self.batch_size, self._local = rows, batch_size, local

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), self.batch_size):
            numbers = [row if row < len(self.rows) else -1 for row in range(first, first + self.batch_size)]
            yield self.rows.fill(numbers[self._local])
