"""Meshes, layouts and specs."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm_jax.core.errors import ConfigError
from lm_jax.core.sharding import Layout, MeshShape, shard_batch, spec, use_mesh


def test_free_axis_takes_the_rest():
    assert MeshShape(dp=-1, fsdp=4).sizes(8) == (1, 2, 4, 1, 1, 1)
    assert MeshShape(dp=2, tp=2).build().size == 4


@pytest.mark.parametrize("shape", [MeshShape(dp=16), MeshShape(dp=-1, fsdp=3), MeshShape(dp=3, tp=3)])
def test_a_mesh_that_does_not_fit_names_both_numbers(shape):
    with pytest.raises(ConfigError, match=r"needs (a multiple of )?\d+ devices, but 8 are here"):
        shape.build()


def test_two_free_axes_and_unknown_axes_are_errors():
    with pytest.raises(ConfigError, match="at most one -1"):
        MeshShape(dp=-1, fsdp=-1).validate()
    with pytest.raises(ConfigError, match="'data' is not a mesh axis"):
        Layout(batch=("data",)).validate()
    with pytest.raises(ConfigError, match="either all of these axes must split tokens"):
        Layout(experts=("ep", "tp"), residual=()).validate()


def test_spec_follows_the_layout():
    assert spec("batch", None) is None
    assert Layout().spec(("batch", "sequence", None)) == P(("pp", "dp", "fsdp", "ep"), "cp", None)
    with use_mesh(MeshShape(fsdp=4, tp=2).build(), Layout()):  # axes of one device are left out
        assert spec("batch", "sequence", None) == P("fsdp", None, None)
        assert spec("embed", "mlp") == P("fsdp", "tp")
    assert spec("batch") is None


def test_two_dimensions_on_one_mesh_axis_are_an_error():
    with pytest.raises(ConfigError, match="two dimensions"):
        Layout(mlp=("fsdp",)).spec(("embed", "mlp"))


def test_a_batch_is_split_over_the_data_axes():
    mesh = MeshShape(dp=2, fsdp=4).build()
    x = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    sharded = shard_batch({"tokens": x}, mesh, Layout())["tokens"]
    assert sharded.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(jax.device_get(sharded), x)
