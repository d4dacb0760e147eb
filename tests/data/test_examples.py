"""Packed examples: nothing is lost, nothing is mixed up, and a batch is a pure function of its step."""

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.examples import Example, ExampleBatches, ExampleLoader, Rows, pack
from lm_jax.data.labelled import LabelledLines, LabelledText
from lm_jax.data.splits import TailFraction
from lm_jax.data.tokenizers import Bytes


def examples(number=57, seed=0, memory=False):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        t, s = rng.integers(1, 17, 2)
        tokens = rng.integers(1, 100, t).astype(np.int32)
        arrays = {"tokens": tokens, "targets": (tokens + 1) % 7, "weights": rng.random(t).astype(np.float32)}
        if memory:
            arrays["memory_tokens"] = rng.integers(1, 100, s).astype(np.int32)
        made.append(Example(f"example {i}", arrays))
    return made


def unpack(batch):
    """The examples of a batch, row by row and segment by segment, as tuples of bytes."""
    found = []
    kinds = [prefix for prefix in ("", "memory_") if f"{prefix}segments" in batch]
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            own = {}
            for prefix in kinds:
                here = batch[f"{prefix}segments"][row] == segment
                assert np.flatnonzero(np.diff(here.astype(int))).size <= 2  # of one piece
                np.testing.assert_array_equal(batch[f"{prefix}positions"][row, here], np.arange(here.sum()))
                names = [n for n in batch if n.startswith("memory_") == bool(prefix) and n.rpartition("_")[2] not in SET_BY_ROWS]
                own |= {name: batch[name][row, here].tobytes() for name in names}
            found.append(tuple(sorted(own.items())))
    return found


SET_BY_ROWS = ("segments", "positions")


def plain(made):
    return [tuple(sorted((name, value.tobytes()) for name, value in example.arrays.items())) for example in made]


@pytest.mark.parametrize("memory", [False, True])
def test_an_epoch_has_every_example_once_and_inverts(memory):
    made = examples(memory=memory)
    rows = Rows(made, {"": 20, "memory_": 24} if memory else {"": 20})
    loader = ExampleLoader(rows, batch_size=1, seed=3)
    one, two = ([example for step in range(len(rows)) for example in unpack(loader(step + first))] for first in (0, len(rows)))
    assert sorted(one) == sorted(two) == sorted(plain(made))
    assert one != two


def test_a_batch_is_a_function_of_its_step_and_processes_share_it():
    rows = Rows(examples(), {"": 20})
    loader, again = (ExampleLoader(rows, batch_size=6, seed=1) for _ in range(2))
    halves = [ExampleLoader(rows, batch_size=6, seed=1, local=local) for local in (slice(0, 3), slice(3, 6))]
    for step in (4, 0, 31):
        batch = loader(step)
        for name, value in again(step).items():
            np.testing.assert_array_equal(value, batch[name])
            np.testing.assert_array_equal(np.concatenate([half(step)[name] for half in halves]), value)
        names = [name for row in loader.documents(step) for name in row]
        by_name = {example.name: example for example in rows.examples}
        assert unpack(batch) == plain([by_name[name] for name in names])
    assert loader.fingerprint == again.fingerprint
    assert ExampleLoader(Rows(examples(seed=1), {"": 20}), batch_size=6).fingerprint != loader.fingerprint


def test_a_split_is_read_once_with_padding_in_the_last_batch():
    made = examples()
    batches = ExampleBatches(Rows(made, {"": 20}), batch_size=5)
    read = list(batches)
    assert len(read) == len(batches) and {batch["tokens"].shape for batch in read} == {(5, 20)}
    assert sorted(example for batch in read for example in unpack(batch)) == sorted(plain(made))
    for batch in read:
        assert (batch["weights"][batch["segments"] == 0] == 0).all()


def test_packing_fills_rows():
    lengths = np.random.default_rng(0).integers(1, 30, (2000, 1))
    rows = pack(lengths, (128,))
    assert sorted(i for row in rows for i in row) == list(range(2000))
    assert all(lengths[row].sum() <= 128 for row in rows)
    assert len(rows) <= 1.02 * -(-lengths.sum() // 128)


def test_a_rule_that_cuts_texts_is_refused():
    files = LabelledLines(paths=("x",))
    data = LabelledText(train=files, split=TailFraction(), tokenizer=Bytes(), length=8, batch_size=1)
    with pytest.raises(ConfigError, match=r"split=TailFraction\(...\) cuts every document in two"):
        validate_tree(data)


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"example 1 has \[21\] tokens, more than a row of \[20\] holds"):
        pack(np.array([[3], [21]]), (20,))
    with pytest.raises(DataError, match="fewer than one batch of batch_size=99"):
        ExampleLoader(Rows(examples(), {"": 20}), batch_size=99)
