"""Meshes of devices."""

import types

import numpy as np
import pytest

from lm_jax.core import mesh as module
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MESH_AXES, MeshShape, across_slices


def test_free_axis_takes_the_rest():
    assert MeshShape(dp=-1, fsdp=4).sizes(8) == (1, 2, 4, 1, 1, 1)
    assert MeshShape(dp=2, tp=2).build().size == 4


@pytest.mark.parametrize("shape", [MeshShape(dp=16), MeshShape(dp=-1, fsdp=3), MeshShape(dp=3, tp=3)])
def test_a_mesh_that_does_not_fit_names_both_numbers(shape):
    with pytest.raises(ConfigError, match=r"needs (a multiple of )?\d+ devices, but 8 are here"):
        shape.build()


@pytest.mark.parametrize(
    ("shape", "num_slices", "crossing"),
    [
        (MeshShape(dp=2, fsdp=2, tp=2), 2, {"dp"}),
        (MeshShape(dp=1, pp=2, fsdp=2, tp=2), 2, {"pp"}),
        (MeshShape(dp=2, fsdp=4), 4, {"dp", "fsdp"}),
        (MeshShape(dp=1, fsdp=8), 2, {"fsdp"}),
    ],
)
def test_only_outer_axes_cross_slices(shape, num_slices, crossing, monkeypatch):
    # Slices take turns in the order of the devices, as processes of several slices may.
    devices = [types.SimpleNamespace(id=i, slice_index=i % num_slices, platform="fake", device_kind="fake") for i in range(8)]
    monkeypatch.setattr(module, "Mesh", lambda devices, axes, axis_types: devices)
    mesh = shape.build(devices)
    assert sorted(device.id for device in mesh.flat) == list(range(8))
    for dim, axis in enumerate(MESH_AXES):
        lines = np.moveaxis(mesh, dim, -1).reshape(-1, mesh.shape[dim])
        crosses = any(len({device.slice_index for device in line}) > 1 for line in lines)
        assert crosses == (axis in crossing), axis


def test_slices_that_do_not_fit_the_outer_axes_are_refused():
    with pytest.raises(ConfigError, match="in 3 slices, into which dp, pp and fsdp"):
        across_slices((1, 2, 2, 1, 1, 2), 3)


def test_two_free_axes_are_an_error():
    with pytest.raises(ConfigError, match="at most one -1"):
        MeshShape(dp=-1, fsdp=-1).validate()
