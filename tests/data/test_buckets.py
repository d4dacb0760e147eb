"""Batches of about one length: every example once an epoch, from every process, and as a pure function of the step."""

import collections

import numpy as np
import pytest

from lm_jax.core.errors import DataError
from lm_jax.data.buckets import BucketBatches, BucketLoader, Buckets
from lm_jax.data.examples import Example


def buckets(number=23, sizes=(4, 8, 20), tokens=5):
    rng = np.random.default_rng(0)
    examples = []
    for i in range(number):
        n = int(rng.integers(1, 21))
        arrays = {
            "waves": np.full(n, i + 1, np.float32),
            "samples": np.int32(n),
            "tokens": np.arange(1 + i % 3, dtype=np.int32) + 7,
        }
        examples.append(Example(f"e{i}", arrays))
    return Buckets(examples, sizes, {"tokens": tokens})


def who(batch):
    """Which examples the rows are, -1 for none, after a look at the rows."""
    for wave, n, tokens in zip(batch["waves"], batch["samples"], batch["tokens"], strict=True):
        assert len(set(wave[:n])) == (n > 0) and not wave[n:].any()
        i = int(wave[0]) - 1
        assert tokens.tolist() == ([7, 8, 9][: 1 + i % 3] + [0] * 5)[:5] if n else not tokens.any()
    return (batch["waves"][:, 0].astype(int) - 1).tolist()


def test_an_epoch_has_every_example_once_in_the_least_bucket():
    loader = BucketLoader(buckets(), batch_size=4, seed=3)
    steps = len(buckets().batches(4))
    orders = []
    for epoch in range(3):
        batches = [loader(epoch * steps + i) for i in range(steps)]
        for batch in batches:
            rows, size = batch["waves"].shape
            assert rows == 4 and all(size == min(s for s in (4, 8, 20) if s >= n) for n in batch["samples"] if n)
        seen = [row for batch in batches for row in who(batch)]
        assert collections.Counter(row for row in seen if row >= 0) == collections.Counter(range(23))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    again = BucketLoader(buckets(), batch_size=4, seed=3)
    assert who(again(steps + 1)) == who(loader(steps + 1)) and again.fingerprint == loader.fingerprint
    assert BucketLoader(buckets(22), batch_size=4, seed=3).fingerprint != loader.fingerprint
    assert loader.documents(0) == [[f"e{i}"] if i >= 0 else [] for i in who(loader(0))]


def test_processes_share_the_rows_of_a_batch():
    whole = BucketLoader(buckets(), batch_size=4)
    halves = [BucketLoader(buckets(), batch_size=4, local=rows) for rows in (slice(0, 2), slice(2, 4))]
    for step in range(7):
        assert who(whole(step)) == [row for half in halves for row in who(half(step))]


def test_a_split_is_read_once():
    batches = BucketBatches(buckets(), batch_size=4)
    found = [numbers for numbers, batch in batches if who(batch) == numbers]
    assert len(found) == len(batches) and sorted(n for row in found for n in row if n >= 0) == list(range(23))
    parts = [rows for numbers, rows in BucketBatches(buckets(), batch_size=4, local=slice(1, 3))]
    assert [who(rows) for rows in parts] == [numbers[1:3] for numbers in found]


def test_what_fits_no_bucket_is_named():
    with pytest.raises(DataError, match=r"e\d+ has 20 waves, more than the largest bucket of 8 holds"):
        buckets(sizes=(4, 8))
    with pytest.raises(DataError, match="e2 has 3 tokens, more than the 2 of a row"):
        buckets(tokens=2)
