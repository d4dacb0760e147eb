"""Which tokens of a split stand in which row, as tables of spans; and the arrays of a batch cut by them.

A split is one stream of tokens: documents, each followed by the end-of-text token. A row covers spans of it, whose
tokens are the row's *targets*; its inputs are the tokens one place before, and before the first document stands, as
before every other, an end-of-text token. So each token of the split is a target once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.data.shuffle import random_bits

PADDING = -1  # as the source of a span
_SHIFT = 1  # sets the draws of shifts apart from those of the shuffle


@dataclasses.dataclass(kw_only=True)
class Packing(Config):
    """How documents fill rows of fixed length.

    `method="stream"` cuts the whole stream every `length` tokens: nothing is lost, rows start within documents.
    `tail` says what becomes of the last, incomplete row of an epoch: "keep" pads it, "drop" leaves it out. With `shift`
    every epoch cuts at other places (the stream is read as a ring from a random start): long training sees new rows.

    `method="pack"` puts whole documents into rows, best fit decreasing; what stays free is padding. `long` says what
    becomes of documents longer than a row: "split" into full rows and a rest, "crop" to one row, or "drop".
    """

    method: str = "stream"
    tail: str = "keep"
    shift: bool = False
    long: str = "split"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown choice, or one that the method does not have."""
        check_choice("method", self.method, ("stream", "pack"))
        check_choice("tail", self.tail, ("keep", "drop"))
        check_choice("long", self.long, ("split", "crop", "drop"))
        for name in ("long",) if self.method == "stream" else ("tail", "shift"):
            value = getattr(self, name)
            if value != getattr(Packing, name):
                raise ConfigError(f"{name}={value!r} has no meaning with method={self.method!r}: leave it out")

    def build(self, offsets: np.ndarray, length: int, *, seed: int, stream: int) -> "Rows":
        """The rows of `length` tokens of a split whose documents start at `offsets` [num_documents + 1].

        `seed` and `stream` (which corpus) draw the shifts.
        """
        if self.method == "pack":
            return PackedRows(offsets, length, self.long)
        return StreamRows(offsets, length, self.tail, (seed, stream) if self.shift else None)


class Spans(NamedTuple):
    """Spans of token streams, in the order in which they fill rows; int64 [P] each.

    `source` is which stream, or `PADDING`; `start` its first target; those of one row stand together.
    """

    row: np.ndarray
    source: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def of_rows(self, first: int, stop: int) -> "Spans":
        """The spans of rows `first` to `stop` - 1, numbered from 0. `row` must be sorted."""
        low, high = np.searchsorted(self.row, (first, stop))
        return Spans(self.row[low:high] - first, self.source[low:high], self.start[low:high], self.length[low:high])


class StreamRows:
    """The stream of `offsets[-1]` tokens cut every `length` tokens."""

    def __init__(self, offsets: np.ndarray, length: int, tail: str, shift: tuple[int, int] | None):
        self.length, self._num_tokens, self._shift = length, int(offsets[-1]), shift
        whole, rest = divmod(self._num_tokens, length)
        self.num_rows = whole + (rest > 0 and tail == "keep")

    def spans(self, index: np.ndarray, epoch: np.ndarray) -> Spans:
        """The spans (of source 0) of the rows `index` [R] of the epochs `epoch` [R]; rows are numbered from 0."""
        begin = index * self.length
        size = np.minimum(self.length, self._num_tokens - begin)
        if self._shift is not None:
            seed, stream = self._shift
            shift = random_bits(seed, _SHIFT, stream, epoch) % np.uint64(self._num_tokens)
            begin = (begin + shift.astype(np.int64)) % self._num_tokens
        over = np.maximum(begin + size - self._num_tokens, 0)  # past the end of the ring: a second span, from 0
        row = np.arange(len(index))
        spans = Spans(row, np.zeros_like(row), begin, size - over)
        if not over.any():
            return spans
        wrapped = np.flatnonzero(over)
        zero = np.zeros_like(wrapped)
        return _join(spans, Spans(wrapped, zero, zero, over[wrapped]))


class PackedRows:
    """Whole documents packed into rows of `length` tokens; the same rows every epoch."""

    def __init__(self, offsets: np.ndarray, length: int, long: str):
        self.length = length
        start, size = _cut_documents(offsets, length, long)
        row = best_fit_decreasing(size, length)
        order = np.argsort(row, kind="stable")
        self._start, self._length = start[order], size[order]
        self._first = np.searchsorted(row[order], np.arange(int(row.max(initial=-1)) + 2))
        self.num_rows = len(self._first) - 1

    def spans(self, index: np.ndarray, epoch: np.ndarray) -> Spans:
        """The spans (of source 0) of the rows `index` [R]; rows are numbered from 0, `epoch` changes nothing."""
        counts = self._first[index + 1] - self._first[index]
        row, nth = _expand(counts)
        at = self._first[index][row] + nth
        return Spans(row, np.zeros_like(row), self._start[at], self._length[at])


Rows = StreamRows | PackedRows


def _cut_documents(offsets: np.ndarray, length: int, long: str) -> tuple[np.ndarray, np.ndarray]:
    """(start, length) of the pieces, of at most `length` tokens, of documents that are packed."""
    size = np.diff(offsets)
    if long == "split":
        document, nth = _expand(-(-size // length))
        start = offsets[document] + nth * length
        return start, np.minimum(offsets[document + 1] - start, length)
    kept = np.flatnonzero(size <= length) if long == "drop" else np.arange(len(size))
    return offsets[kept], np.minimum(size[kept], length)


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The bin [N] of every item: longest first, each into the fullest bin that still has room for it.

    At most 11/9 of the optimal number of bins, plus one (Johnson 1974). Items of one size are placed together, so the
    time is that of sorting plus, at most, `capacity` squared. Sizes [N] are between 1 and `capacity`.
    """
    bins = np.empty(len(sizes), np.int64)
    by_size = np.argsort(sizes, kind="stable")
    ends = np.searchsorted(sizes[by_size], np.arange(capacity + 2))
    room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # free space -> bins that have as much
    open_rooms = 0  # bit r: room[r] is not empty
    num_bins = 0
    for size in range(capacity, 0, -1):
        items = by_size[ends[size] : ends[size + 1]]
        while items.size:
            fitting = open_rooms >> size
            if fitting:
                free = size + (fitting & -fitting).bit_length() - 1
                found = room[free].pop()
                if not room[free]:
                    open_rooms ^= 1 << free
            else:
                free = capacity
                found = np.arange(num_bins, num_bins - (-len(items) // (capacity // size)))
                num_bins += len(found)
            per_bin = free // size
            used = min(len(found), -(-len(items) // per_bin))
            if used < len(found):
                room[free].append(found[used:])
                open_rooms |= 1 << free
                found = found[:used]
            placed, items = items[: used * per_bin], items[used * per_bin :]
            bins[placed] = np.repeat(found, per_bin)[: len(placed)]
            in_last = len(placed) - (used - 1) * per_bin
            for group, count in ((found[:-1], per_bin), (found[-1:], in_last)):
                left = free - count * size
                if len(group) and left:
                    room[left].append(group)
                    open_rooms |= 1 << left
    return bins


def cut_at_documents(spans: Spans, offsets: Sequence[np.ndarray]) -> tuple[Spans, np.ndarray]:
    """The spans cut so that each lies in one document, and the document [P] of each (-1: padding).

    `offsets[source]` are the document starts of a source.
    """
    first, last = np.full_like(spans.start, -1), np.full_like(spans.start, -1)
    for source in _sources(spans, len(offsets)):
        here = spans.source == source
        start = spans.start[here]
        first[here] = np.searchsorted(offsets[source], start, side="right") - 1
        last[here] = np.searchsorted(offsets[source], start + spans.length[here] - 1, side="right") - 1
    span, nth = _expand(last - first + 1)
    document = first[span] + nth
    begin, end = spans.start[span], (spans.start + spans.length)[span]
    for source in _sources(spans, len(offsets)):
        here = np.flatnonzero(spans.source[span] == source)
        begin[here] = np.maximum(begin[here], offsets[source][document[here]])
        end[here] = np.minimum(end[here], offsets[source][document[here] + 1])
    return Spans(spans.row[span], spans.source[span], begin, end - begin), document


def pad(spans: Spans, num_rows: int, length: int) -> Spans:
    """The spans, with one span of `PADDING` at the end of every row that they do not fill to `length`."""
    missing = np.full(num_rows, length)
    np.subtract.at(missing, spans.row, spans.length)
    assert missing.min(initial=0) >= 0, "a row is longer than its length"
    row = np.flatnonzero(missing)
    return _join(spans, Spans(row, np.full_like(row, PADDING), np.zeros_like(row), missing[row]))


def fill(spans: Spans, streams: Sequence[np.ndarray], num_rows: int, length: int, eos: int, *, segments: bool) -> dict[str, Any]:
    """The arrays [num_rows, length] of rows that `spans` fill completely (see `pad`).

    Returns int32 "tokens" (inputs) and "targets", and float32 "weights": 1, or 0 for padding, which is `eos`. With
    `segments` also int32 "segments" (1, 2, ... for the spans of a row, 0 for padding) and "positions" (from 0 in each
    span). `streams` are 1-D, one per source; the last token of each is `eos`.
    """
    size = num_rows * length
    places = np.arange(size)
    begin = np.cumsum(spans.length) - spans.length
    at = np.repeat(spans.start - begin, spans.length) + places
    tokens, targets = np.empty((2, size), np.int32)
    padded = spans.source.min(initial=0) == PADDING
    single = len(streams) == 1
    for source in _sources(spans, len(streams)):
        where = slice(None) if single else np.flatnonzero(np.repeat(spans.source == source, spans.length))
        stream = streams[source]
        targets[where] = stream.take(at[where], mode="wrap")
        tokens[where] = stream.take(at[where] - 1, mode="wrap")  # before place 0 stands the last token, `eos`
    weights = np.ones(size, np.float32)
    if padded:
        padding = np.repeat(spans.source == PADDING, spans.length)
        tokens[padding] = targets[padding] = eos
        weights[padding] = 0.0
    batch = {"tokens": tokens, "targets": targets, "weights": weights}
    if segments:
        batch |= _segments(spans, begin, places)
    return {name: value.reshape(num_rows, length) for name, value in batch.items()}


def _segments(spans: Spans, begin: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    count = np.arange(len(spans.row))
    nth = count - np.searchsorted(spans.row, spans.row) + 1  # rows are sorted: the first span of each row has 1
    nth = np.where(spans.source == PADDING, 0, nth).astype(np.int32)
    positions = (places - np.repeat(begin, spans.length)).astype(np.int32)
    return {"segments": np.repeat(nth, spans.length), "positions": positions}


def _sources(spans: Spans, num_sources: int) -> list[int]:
    """The sources that occur, without padding."""
    if num_sources == 1:
        return [0]
    counts = np.bincount(spans.source + 1, minlength=num_sources + 1)
    return np.flatnonzero(counts[1:]).tolist()


def _join(a: Spans, b: Spans) -> Spans:
    """Both, sorted by row; in one row those of `a` come first."""
    if not len(b.row):
        return a
    order = np.argsort(np.concatenate([a.row, b.row]), kind="stable")
    return Spans(*(np.concatenate(pair)[order] for pair in zip(a, b, strict=True)))


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 1): which one (0, 0, 1), and the place within it (0, 1, 0)."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
