"""Batches as a pure function of the step, a split read once for evaluation, and batches made ahead in a thread."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.denoising import Rewrite
from lm_jax.data.mixture import Mixture, Stage, check_stages
from lm_jax.data.packing import Packing, Rows, Spans, cut_at_documents, fill, pad
from lm_jax.data.shuffle import permute
from lm_jax.data.store import TokenStore

FORMAT = 1  # raised whenever the same config would give other batches than before
_BLOCK_ROWS = 4096  # rows whose spans are worked out at once
_CHUNK_TOKENS = 16_384  # small batches are made together, up to this size

Batch = dict[str, np.ndarray]


class Source(NamedTuple):
    """One corpus of a loader."""

    name: str
    store: TokenStore


class Cut(NamedTuple):
    """A piece of a document in a row: its tokens `start` to `end` - 1, the last one of a document being end-of-text."""

    corpus: str
    document: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.corpus}: {self.document} tokens {self.start}-{self.end - 1}"


class Loader:
    """Training batches: `loader(step)` is a pure function, without end.

    Each corpus is an endless sequence of epochs; an epoch is all its rows, in an order drawn from (seed, epoch,
    corpus). The mixture deals the rows of training to the corpora, and a step is `batch_size` rows of training. How
    many processes read, and from which step, changes nothing.

    Attributes:
      sources: the corpora.
      num_rows: rows of an epoch, by corpus.
      weights: realised weights of each stage of the mixture.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stages: Sequence[Stage],
        packing: Packing,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        document_mask: bool = False,
        rows: slice = slice(None),
        rewrite: Rewrite | None = None,
    ):
        """A loader of which this process takes the given `rows` of every batch, after `rewrite` has made examples of them.

        Raises `ConfigError` for a batch that cannot be divided and for bad weights, `DataError` where there is too
        little data for a row of `length` tokens, or for a batch.
        """
        names = [source.name for source in sources]
        check_stages(stages, names)
        self.length, self.batch_size, self._seed = length, batch_size, seed
        self._segments = document_mask or packing.method == "pack"
        self.sources = list(sources)
        self._streams = [np.asarray(source.store.tokens) for source in sources]
        self._rows = [_rows(source, packing, length, seed, i) for i, source in enumerate(sources)]
        self.num_rows = {source.name: rows.num_rows for source, rows in zip(sources, self._rows, strict=True)}
        self._check_batch(stages)
        self._mixture = Mixture(stages, batch_size)
        self.weights = self._mixture.weights
        self._local, self._rewrite = rows, rewrite
        self._chunk = max(_CHUNK_TOKENS // (batch_size * length), 1)  # steps
        self._chunk_rows = self._chunk * batch_size
        self._block_rows = max(_BLOCK_ROWS // self._chunk_rows, 1) * self._chunk_rows
        # The last chunk and block used. Replaced by one assignment: another thread sees the old one or the new one.
        self._last_chunk: tuple[int, Batch] = (-1, {})
        self._last_block: tuple[int, Spans | None] = (-1, None)
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "corpora": {source.name: source.store.fingerprint for source in sources},
            "stages": [[stage.start_step, list(stage.weights)] for stage in stages],
            "packing": dict(vars(packing)),
            "document_mask": self._segments,
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
        }
        if rewrite is not None:
            self.fingerprint["denoise"] = rewrite.fingerprint

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0): the whole batch where there is one process."""
        return self.rows(step, self._local)

    def rows(self, step: int, rows: slice) -> Batch:
        """The given rows of the global batch `step`: read-only arrays [number of rows, length] (see `packing.fill`),
        or what `rewrite` makes of them."""
        start, stop, _ = rows.indices(self.batch_size)
        if self._chunk == 1:
            return self._fill(step * self.batch_size + start, stop - start)
        chunk, nth = divmod(step, self._chunk)
        number, batch = self._last_chunk
        if number != chunk:
            batch = self._fill(chunk * self._chunk_rows, self._chunk_rows)
            self._last_chunk = chunk, batch
        first = nth * self.batch_size
        return {name: value[first + start : first + stop] for name, value in batch.items()}

    def documents(self, step: int) -> list[list[Cut]]:
        """What each row of the global batch `step` was cut from."""
        return cuts(self._spans(step * self.batch_size, self.batch_size), self.sources, self.batch_size)

    def row_spans(self, corpus: int, rows: np.ndarray) -> Spans:
        """The spans of the given rows [R] of a corpus, counted from the start of training over all epochs."""
        table = self._rows[corpus]
        epoch, index = np.divmod(rows, table.num_rows)
        index = permute(index, table.num_rows, seed=self._seed, epoch=epoch, stream=corpus)
        spans = table.spans(index, epoch)
        return spans._replace(source=np.full_like(spans.source, corpus))

    def _fill(self, first: int, count: int) -> Batch:
        """The arrays of `count` rows of training; they lie in one block."""
        spans, eos = self._spans(first, count), self.sources[0].store.eos
        batch = fill(spans, self._streams, count, self.length, eos, segments=self._segments)
        if self._rewrite is not None:
            batch = self._rewrite(batch, np.arange(first, first + count))
        for value in batch.values():
            value.flags.writeable = False  # batches of one chunk share memory
        return batch

    def _spans(self, first: int, count: int) -> Spans:
        """The padded spans of `count` rows of training; they lie in one block."""
        block, within = divmod(first, self._block_rows)
        number, spans = self._last_block
        if number != block:
            spans = self._block(block)
            self._last_block = block, spans
        return spans.of_rows(within, within + count)

    def _block(self, block: int) -> Spans:
        """The padded spans of rows `block * block_rows` and on of training, numbered from 0."""
        corpora, rows = self._mixture(np.arange(block * self._block_rows, (block + 1) * self._block_rows))
        parts = []
        for corpus in np.unique(corpora).tolist():
            here = np.flatnonzero(corpora == corpus)
            part = self.row_spans(corpus, rows[here])
            parts.append(part._replace(row=here[part.row]))
        spans = Spans(*map(np.concatenate, zip(*parts, strict=True)))
        spans = Spans(*(field[np.argsort(spans.row, kind="stable")] for field in spans))
        if self._segments:
            spans, _ = cut_at_documents(spans, [source.store.offsets for source in self.sources])
        return pad(spans, self._block_rows, self.length)

    def _check_batch(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            used = [n for n, weight in zip(self.num_rows.values(), stage.weights, strict=True) if weight]
            if sum(used) < self.batch_size:
                raise DataError(
                    f"the training data has {sum(used)} rows of length={self.length}, fewer than one batch of "
                    f"batch_size={self.batch_size}: give more data, or a smaller length or batch_size"
                )


def _rows(source: Source, packing: Packing, length: int, seed: int, stream: int) -> Rows:
    """The rows of a training split; raises `DataError` where there is none, or too little text for one."""
    num_tokens = len(source.store.tokens)
    if num_tokens < length:
        raise DataError(
            f"corpus {source.name!r} has {num_tokens} training tokens, fewer than one row of length={length}: "
            "give more data or a smaller length"
        )
    rows = packing.build(source.store.offsets, length, seed=seed, stream=stream)
    if rows.num_rows == 0:
        raise DataError(f"corpus {source.name!r}: every document is longer than length={length} and packing.long='drop'")
    return rows


def cuts(spans: Spans, sources: Sequence[Source], num_rows: int) -> list[list[Cut]]:
    """What each of the rows filled by `spans` was cut from."""
    spans, documents = cut_at_documents(spans, [source.store.offsets for source in sources])
    found: list[list[Cut]] = [[] for _ in range(num_rows)]
    for row, corpus, start, length, document in zip(*(x.tolist() for x in (*spans, documents)), strict=True):
        if document < 0:
            continue
        name, store = sources[corpus]
        start -= int(store.offsets[document])
        found[row].append(Cut(name, store.names(document), start, start + length))
    return found


class EvalBatches:
    """The batches of whole splits, in order: every token is a target of weight 1 exactly once.

    A window of `length` tokens moves by `stride` (default `length`); the tokens that the window before had already are
    context, of weight 0. All batches have one shape: what the last one lacks is padding of weight 0. Iterating again
    starts again. `rewrite` makes examples of the windows, by their numbers: the same ones each time.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        length: int,
        batch_size: int,
        stride: int | None = None,
        document_mask: bool = False,
        rows: slice = slice(None),
        rewrite: Rewrite | None = None,
    ):
        """Batches over the splits of `sources` one after the other. Raises `ConfigError` for sizes that do not fit."""
        stride = length if stride is None else stride
        if not 0 < stride <= length:
            raise ConfigError(f"stride={stride} must be between 1 and length={length}, or tokens would be left out")
        self.sources, self.length, self.batch_size, self.stride = list(sources), length, batch_size, stride
        self._segments = document_mask
        sizes = [len(source.store.tokens) for source in sources]
        windows = [1 + -(-max(size - length, 0) // stride) for size in sizes]
        self._sizes, self._first = np.array(sizes), np.cumsum([0, *windows])
        self._local, self._rewrite = rows, rewrite

    def __len__(self) -> int:
        return -(-int(self._first[-1]) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        streams = [np.asarray(source.store.tokens) for source in self.sources]
        for number in range(len(self)):
            spans, context = self.spans(number)
            start, stop, _ = self._local.indices(self.batch_size)
            spans, eos = spans.of_rows(start, stop), self.sources[0].store.eos
            batch = fill(spans, streams, stop - start, self.length, eos, segments=self._segments)
            batch["weights"] *= np.arange(self.length) >= context[start:stop, None]
            first = number * self.batch_size
            yield batch if self._rewrite is None else self._rewrite(batch, np.arange(first + start, first + stop))

    def spans(self, number: int) -> tuple[Spans, np.ndarray]:
        """The spans of global batch `number`, and how many tokens at the start of each row [B] are context."""
        window = number * self.batch_size + np.arange(self.batch_size)
        row = np.flatnonzero(window < self._first[-1])
        source = np.searchsorted(self._first, window[row], side="right") - 1
        within = window[row] - self._first[source]
        start = within * self.stride
        spans = Spans(row, source, start, np.minimum(self.length, self._sizes[source] - start))
        if self._segments:
            spans, _ = cut_at_documents(spans, [source.store.offsets for source in self.sources])
        context = np.zeros(self.batch_size, np.int64)
        context[row[within > 0]] = self.length - self.stride
        return pad(spans, self.batch_size, self.length), context


class Prefetcher:
    """Makes the batches from `start_step` on, up to `depth` ahead, in one background thread; a context manager.

    `transfer` is applied there to each batch (putting it on the devices).
    """

    def __init__(
        self,
        loader: Callable[[int], Batch],
        start_step: int,
        *,
        depth: int = 2,
        transfer: Callable[[Batch], Any] = lambda batch: batch,
    ):
        self._loader, self._transfer = loader, transfer
        self._ready: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(start_step,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, start_step: int) -> None:
        for step in itertools.count(start_step):
            self._free.acquire()
            if self._closed.is_set():
                return
            try:
                batch = self._transfer(self._loader(step))
            except BaseException as error:  # it belongs to whoever waits for the batch
                self._ready.put((step, None, error))
                return
            self._ready.put((step, batch, None))

    def next(self) -> tuple[int, Any, float]:
        """(step, batch, seconds waited for it). Raises what the thread raised while making it, as often as asked."""
        assert not self._closed.is_set(), "the prefetcher is closed"
        if self._error is not None:
            raise self._error
        start = time.perf_counter()
        step, batch, self._error = self._ready.get()
        if self._error is not None:
            raise self._error
        self._free.release()
        return step, batch, time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, after the batch that it is making."""
        self._closed.set()
        self._free.release()
        self._thread.join()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
