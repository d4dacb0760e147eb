"""Rows: every token in one place, whole documents kept whole, and the arrays against a loop over the tokens."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.packing import (
    PADDING,
    Packing,
    Spans,
    best_fit_decreasing,
    cut_at_documents,
    fill,
    pad,
)
from tests.data.token_stores import EOS, make_store

sizes_lists = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def all_spans(rows, epoch=0):
    return rows.spans(np.arange(rows.num_rows), np.full(rows.num_rows, epoch))


def coverage(spans, num_tokens):
    count = np.zeros(num_tokens, int)
    for start, length in zip(spans.start, spans.length, strict=True):
        count[start : start + length] += 1
    return count


@settings(max_examples=200, deadline=None)
@given(sizes=sizes_lists, length=st.integers(1, 50), epoch=st.integers(0, 5), shift=st.booleans())
def test_stream_rows_cover_every_token_once(sizes, length, epoch, shift):
    offsets = make_store(sizes).offsets
    rows = Packing(shift=shift).build(offsets, length, seed=0, stream=0)
    spans = all_spans(rows, epoch)
    np.testing.assert_array_equal(coverage(spans, offsets[-1]), 1)
    filled = np.bincount(spans.row, weights=spans.length)
    assert len(filled) == rows.num_rows and np.all(filled[:-1] == length) and 0 < filled[-1] <= length


def test_dropping_the_tail_leaves_out_less_than_a_row():
    offsets = make_store([7, 16]).offsets
    rows = Packing(tail="drop").build(offsets, 10, seed=0, stream=0)
    np.testing.assert_array_equal(coverage(all_spans(rows), 23), [1] * 20 + [0] * 3)


def test_shift_cuts_every_epoch_elsewhere():
    offsets = make_store([500, 501]).offsets
    rows = Packing(shift=True).build(offsets, 10, seed=0, stream=0)
    starts = {int(rows.spans(np.array([0]), np.array([epoch])).start[0]) for epoch in range(50)}
    assert len(starts) > 40


@settings(max_examples=200, deadline=None)
@given(sizes=sizes_lists, length=st.integers(1, 50), long=st.sampled_from(["split", "crop", "drop"]))
def test_packed_rows_conserve_tokens(sizes, length, long):
    offsets = make_store(sizes).offsets
    spans = all_spans(Packing(method="pack", long=long).build(offsets, length, seed=0, stream=0))
    expected = np.ones(offsets[-1], int)
    for start, end in itertools.pairwise(offsets):
        if end - start > length and long == "drop":
            expected[start:end] = 0
        if end - start > length and long == "crop":
            expected[start + length : end] = 0
    np.testing.assert_array_equal(coverage(spans, offsets[-1]), expected)
    cut, _ = cut_at_documents(spans, [offsets])
    assert len(cut.row) == len(spans.row), "a span holds more than one document"
    whole = np.flatnonzero(np.diff(offsets) <= length)
    assert set(offsets[whole]) <= set(spans.start), "a document that fits is not whole"
    if len(spans.row):
        assert np.bincount(spans.row, weights=spans.length).max() <= length
        assert np.all(np.diff(spans.row) >= 0)


def one_by_one(sizes, capacity):
    """Best fit decreasing as the textbook says it: the free space left in each bin."""
    free = []
    for size in sorted(sizes, reverse=True):
        fitting = [(space, i) for i, space in enumerate(free) if space >= size]
        if fitting:
            free[min(fitting)[1]] -= size
        else:
            free.append(capacity - size)
    return free


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=200))
def test_best_fit_equals_the_textbook(sizes):
    bins = best_fit_decreasing(np.array(sizes), 60)
    free = 60 - np.bincount(bins, weights=sizes)
    assert sorted(free) == sorted(one_by_one(sizes, 60))


def test_packing_a_million_documents_takes_seconds():
    sizes = np.clip(np.random.default_rng(0).lognormal(5.5, 1.2, 1_000_000).astype(int), 2, 2048)
    start = time.process_time()
    bins = best_fit_decreasing(sizes, 2048)
    assert time.process_time() - start < 5
    assert sizes.sum() / ((bins.max() + 1) * 2048) > 0.99


def by_hand(spans, stores, num_rows, length):
    """`fill` as a loop over tokens."""
    batch = {name: np.zeros((num_rows, length)) for name in ("tokens", "targets", "weights", "segments", "positions")}
    place, segment = [0] * num_rows, [0] * num_rows
    for row, source, start, size in zip(*spans, strict=True):
        segment[row] += 1
        for i in range(size):
            stream = None if source == PADDING else stores[source].tokens
            values = (EOS, EOS, 0, 0)
            if stream is not None:
                values = (stream[start + i - 1] if start + i else EOS, stream[start + i], 1, segment[row])
            for name, value in zip(("tokens", "targets", "weights", "segments"), values, strict=True):
                batch[name][row, place[row]] = value
            batch["positions"][row, place[row]] = i
            place[row] += 1
    return batch


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_arrays_equal_a_loop_over_tokens(dtype):
    stores = [
        make_store([5, 1, 9], dtype=dtype),
        make_store([3, 20], seed=1, dtype=dtype, vocab_size=70_000 if dtype is np.uint32 else 5000),
    ]
    spans = Spans(
        np.array([0, 0, 1, 1, 2]),
        np.array([0, 1, 0, 1, 1]),
        np.array([0, 3, 4, 0, 15]),
        np.array([5, 4, 8, 2, 8]),
    )
    spans, documents = cut_at_documents(pad(spans, 4, 10), [store.offsets for store in stores])
    streams = [store.tokens for store in stores]
    batch = fill(spans, streams, 4, 10, EOS, segments=True)
    for name, expected in by_hand(spans, stores, 4, 10).items():
        np.testing.assert_array_equal(batch[name], expected, err_msg=name)
        assert batch[name].dtype == (np.float32 if name == "weights" else np.int32)
    assert documents.tolist() == [0, 1, -1, 0, 1, 2, 0, 1, -1, -1]


def test_segments_are_the_documents_of_the_targets():
    store = make_store([4, 3, 6])
    rows = Packing().build(store.offsets, 8, seed=0, stream=0)
    spans, documents = cut_at_documents(pad(all_spans(rows), 2, 8), [store.offsets])
    batch = fill(spans, [store.tokens], 2, 8, EOS, segments=True)
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch["positions"][:, :5].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert documents.tolist() == [0, 1, 2, 2, -1]
    assert batch["tokens"][0, 0] == EOS and batch["tokens"][0, 4] == EOS
    assert batch["targets"][0, 3] == EOS
    np.testing.assert_array_equal(batch["tokens"][1, :5], store.tokens[7:12])


@pytest.mark.parametrize("settings", [{"long": "crop"}, {"method": "pack", "tail": "drop"}])
def test_choices_of_the_other_method_are_refused(settings):
    with pytest.raises(ConfigError, match="has no meaning with method"):
        validate_tree(Packing(**settings))


@pytest.mark.parametrize("field", ["method", "tail", "long"])
def test_unknown_choices_are_named(field):
    with pytest.raises(ConfigError, match="'splat' is not one of"):
        validate_tree(Packing(**{field: "splat"}))
