"""Layouts and specs."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout, shard_batch, spec, use_mesh


def test_layouts_that_cannot_be_are_errors():
    with pytest.raises(ConfigError, match="'data' is not a mesh axis"):
        Layout(batch=("data",)).validate()
    with pytest.raises(ConfigError, match="embed is gathered over 'tp', which is not in batch"):
        Layout(embed=("tp",), mlp=()).validate()
    with pytest.raises(ConfigError, match="gather='weights' is not a dimension"):
        Layout(gather=("weights",)).validate()
    with pytest.raises(ConfigError, match=r"residual=\('tp',\) and vocab=\(\): devices that split tokens"):
        Layout(vocab=()).validate()
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
