"""Data says what its batches will be: the experiments that make examples, where their data is on this machine."""

import pytest

from lm_jax.config import load_experiment
from lm_jax.core.errors import DataError
from lm_jax.data.text import TextData
from tests.test_experiments import FOLDER, NAMES

DATA = {name: load_experiment([f"--config={FOLDER}/{name}.py:smoke"]).data for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, data in DATA.items() if not isinstance(data, TextData)])
def test_shapes_are_those_of_the_first_batch(name):
    data = DATA[name]
    try:
        batch = data.prepare().train_loader()(0)
    except DataError as error:
        pytest.skip(str(error))
    expected = {name: (tuple(x.shape), x.dtype) for name, x in data.shapes().items()}
    got = {name: (x.shape, x.dtype) for name, x in batch.items()}
    # Where examples are in buckets these are the shapes of the longest.
    buckets = {"waves": getattr(data, "samples", ()), **dict.fromkeys(("pair_tokens", "pair_segments"), getattr(data, "sizes", ()))}
    for array in buckets.keys() & got.keys():
        shape, dtype = got[array]
        assert shape[1] in buckets[array]
        got[array] = ((shape[0], buckets[array][-1], *shape[2:]), dtype)
    assert got == expected
