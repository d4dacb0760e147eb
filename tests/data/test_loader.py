"""Batches: pure in the step, the same for any number of hosts; each row once an epoch; evaluation, each token once."""

import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.loader import EvalBatches, Loader, Prefetcher, Source
from lm_jax.data.mixture import Stage
from lm_jax.data.packing import Packing
from tests.data.token_stores import EOS, make_store

PACKINGS = [Packing(), Packing(shift=True), Packing(tail="drop"), Packing(method="pack")]


ALONE = (Stage(weights=(1.0,)),)


def make_loader(sizes=(30, 7, 90, 14, 55), *, stages=ALONE, packing=None, **settings):
    names = "abc"[: len(stages[0].weights)]
    sources = [Source(name, make_store(sizes, seed=i, prefix=name)) for i, name in enumerate(names)]
    settings = {"length": 8, "batch_size": 4} | settings
    return Loader(sources, stages, packing or Packing(), **settings)


MIXED = (Stage(weights=(0.3, 0.7)), Stage(start_step=9, weights=(0.8, 0.2)))


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("stages", [ALONE, MIXED])
@pytest.mark.parametrize("scale", [1, 1000])
def test_a_batch_is_a_function_of_the_step(packing, stages, scale):
    steps = [*range(12), 2000, 5000, 1, 10**9]
    settings = dict(sizes=[30 * scale, 7 * scale, 159 * scale], length=8 * scale, packing=packing, stages=stages)
    batches = {step: make_loader(**settings)(step) for step in steps}
    loader = make_loader(**settings)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        equal(loader(step), batches[step])
    assert not np.array_equal(batches[0]["tokens"], batches[1]["tokens"])


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=20).filter(lambda sizes: sum(sizes) >= 28),
    packing=st.sampled_from([*PACKINGS, Packing(method="pack", long="crop")]),
    seed=st.integers(0, 10),
)
def test_every_epoch_covers_every_row_once(sizes, packing, seed):
    loader = make_loader(sizes, packing=packing, seed=seed, length=7, batch_size=1)
    count = loader.num_rows["a"]
    rows = [row for step in range(6 * count) for row in loader.documents(step)]
    epochs = [sorted(map(tuple, rows[i * count : (i + 1) * count])) for i in range(6)]
    assert all(len(set(epoch)) == count for epoch in epochs)
    if not packing.shift:
        assert all(epoch == epochs[0] for epoch in epochs)


def test_epochs_have_different_orders():
    loader = make_loader()
    rows = [row for step in range(20) for row in loader.documents(step)]
    count = loader.num_rows["a"]
    assert rows[:count] != rows[count : 2 * count]
    assert rows[:count] != sorted(rows[:count])


def share(batch_size, index, parts):
    """The rows of one of so many processes."""
    return slice(index * batch_size // parts, (index + 1) * batch_size // parts)


@settings(max_examples=30, deadline=None)
@given(
    packing=st.sampled_from(PACKINGS),
    parts=st.sampled_from([1, 2, 3, 4, 6, 12]),
    step=st.integers(0, 10_000),
    mask=st.booleans(),
    scale=st.sampled_from([1, 600]),  # small batches are made several at a time, large ones alone
)
def test_host_slices_concatenate_to_the_global_batch(packing, parts, step, mask, scale):
    sizes = [scale * size for size in (30, 7, 90, 14, 55)]
    settings = dict(packing=packing, stages=MIXED, batch_size=12, length=8 * scale, document_mask=mask)
    whole = make_loader(sizes, **settings)(step)
    loaders = [make_loader(sizes, **settings, rows=share(12, i, parts)) for i in range(parts)]
    slices = [loader(step) for loader in loaders]
    equal({name: np.concatenate([part[name] for part in slices]) for name in whole}, whole)
    equal(loaders[-1].rows(step, slice(3, 5)), {name: value[3:5] for name, value in whole.items()})
    assert loaders[-1].fingerprint == loaders[0].fingerprint


def test_batches_are_the_documents_they_name():
    stores = {name: make_store((30, 7, 90, 14, 55), seed=i, prefix=name) for i, name in enumerate("ab")}
    for packing in PACKINGS:
        loader = make_loader(stages=MIXED, packing=packing, document_mask=True)
        for step in (0, 1, 77):
            batch = loader(step)
            for row, cuts in enumerate(loader.documents(step)):
                text = []
                for cut in cuts:
                    store = stores[cut.corpus]
                    begin = store.offsets[int(cut.document.removeprefix(cut.corpus))]
                    text += store.tokens[begin + cut.start : begin + cut.end].tolist()
                real = batch["weights"][row] == 1
                assert batch["targets"][row][real].tolist() == text
                lengths = np.bincount(batch["segments"][row])[1:]
                assert lengths.tolist() == [cut.end - cut.start for cut in cuts]


def test_batches_cannot_be_overwritten():
    with pytest.raises(ValueError, match="read-only"):
        make_loader()(0)["tokens"][0, 0] = 1


def test_segments_only_where_asked_or_packed():
    plain = {"tokens", "targets", "weights"}
    assert make_loader()(0).keys() == plain
    assert make_loader(document_mask=True)(0).keys() == plain | {"segments", "positions"}
    assert make_loader(packing=Packing(method="pack"))(0).keys() == plain | {"segments", "positions"}


def test_inputs_are_the_targets_one_place_before():
    store = make_store((30, 7, 90, 14, 55))
    loader = make_loader()
    before = dict(zip(range(196), [EOS, *store.tokens[:-1].tolist()], strict=True))
    names = [f"a{i}" for i in range(5)]
    for step in range(7):
        batch = loader(step)
        for row, cuts in enumerate(loader.documents(step)):
            begin = int(store.offsets[names.index(cuts[0].document)]) + cuts[0].start
            size = int(batch["weights"][row].sum())
            assert batch["tokens"][row][:size].tolist() == [before[begin + i] for i in range(size)]


def test_mixture_follows_its_stages():
    loader = make_loader(stages=MIXED, batch_size=10)
    share = [sum(row[0].corpus == "a" for row in loader.documents(step)) for step in range(20)]
    assert share == [3] * 9 + [8] * 11
    assert loader.weights == [[0.3, 0.7], [0.8, 0.2]]


def test_fingerprint_is_json_and_tells_what_makes_batches():
    first = make_loader(stages=MIXED).fingerprint
    assert json.loads(json.dumps(first)) == first
    others = [
        make_loader(stages=MIXED, seed=1),
        make_loader(stages=MIXED, length=7),
        make_loader(stages=MIXED, batch_size=2),
        make_loader(stages=MIXED[:1]),
        make_loader(stages=MIXED, packing=Packing(tail="drop")),
        make_loader(stages=MIXED, document_mask=True),
        make_loader((30, 7, 90, 14, 56), stages=MIXED),
    ]
    for other in others:
        assert other.fingerprint != first


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (DataError, "'a' has 196 training tokens, fewer than one row of length=197", {"length": 197}),
        (
            DataError,
            "has 4 rows of length=50, fewer than one batch of batch_size=8",
            {"length": 50, "batch_size": 8},
        ),
        (
            DataError,
            "every document is longer than length=5",
            {"length": 5, "packing": Packing(method="pack", long="drop")},
        ),
    ],
)
def test_what_does_not_fit_is_named(error, message, settings):
    with pytest.raises(error, match=message):
        make_loader(**settings)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=3),
    length=st.integers(1, 20),
    batch_size=st.integers(1, 6),
    data=st.data(),
)
def test_evaluation_covers_every_token_once(sizes, length, batch_size, data):
    stride = data.draw(st.integers(1, length))
    mask = data.draw(st.booleans())
    stores = [make_store(s, seed=i) for i, s in enumerate(sizes)]
    sources = [Source(str(i), store) for i, store in enumerate(stores)]
    batches = EvalBatches(sources, length=length, batch_size=batch_size, stride=stride, document_mask=mask)
    seen, previous = [], []
    rows = list(batches)
    assert len(rows) == len(batches)
    for batch in rows:
        assert all(value.shape == (batch_size, length) for value in batch.values())
        counted = batch["weights"] == 1
        seen += batch["targets"][counted].tolist()
        previous += batch["tokens"][counted].tolist()
    assert seen == [token for store in stores for token in store.tokens.tolist()]
    assert previous == [token for store in stores for token in [EOS, *store.tokens[:-1].tolist()]]
    assert len(list(batches)) == len(batches)


def test_a_sliding_window_gives_each_token_its_context():
    store = make_store([25])
    for batch in EvalBatches([Source("a", store)], length=10, batch_size=2, stride=3):
        for tokens, weights in zip(batch["targets"], batch["weights"], strict=True):
            if weights.sum() and tokens[0] != store.tokens[0]:
                assert np.all(weights[:7] == 0) and weights[7:].sum() <= 3


def test_evaluation_is_divided_among_processes():
    sources = [Source("a", make_store([25, 31]))]
    settings = dict(length=4, batch_size=6, stride=3, document_mask=True)
    whole = list(EvalBatches(sources, **settings))
    parts = [list(EvalBatches(sources, **settings, rows=share(6, i, 3))) for i in range(3)]
    for batch, *slices in zip(whole, *parts, strict=True):
        equal({name: np.concatenate([part[name] for part in slices]) for name in batch}, batch)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(ConfigError, match=f"stride={stride} must be between 1 and length=8"):
        EvalBatches([Source("a", make_store([25]))], length=8, batch_size=2, stride=stride)


def test_prefetcher_gives_the_loaders_batches_in_order():
    loader, before = make_loader(), threading.active_count()
    with Prefetcher(loader, 5, transfer=lambda batch: batch | {"moved": True}) as batches:
        for expected in range(5, 50):
            step, batch, waited = batches.next()
            assert step == expected and batch.pop("moved") and waited >= 0
            equal(batch, loader(step))
    assert threading.active_count() == before


def test_prefetcher_stays_within_its_depth_and_closes_while_full():
    made = []
    prefetcher = Prefetcher(made.append, 0, depth=3)
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2]
    prefetcher.close()
    prefetcher.close()
    assert made == [0, 1, 2]


def test_prefetcher_raises_what_the_thread_raised():
    def load(step):
        if step == 2:
            raise DataError("step 2 is broken")
        return step

    before = threading.active_count()
    with Prefetcher(load, 0) as batches:
        assert [batches.next()[0] for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(DataError, match="step 2 is broken"):
                batches.next()
    assert threading.active_count() == before


def test_prefetcher_measures_the_wait():
    with Prefetcher(lambda step: time.sleep(0.05), 0) as batches:
        assert batches.next()[2] > 0.02
