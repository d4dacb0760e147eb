"""The mesh: devices in an array of six named axes.

It is explicit (`AxisType.Explicit`: shardings are part of array types) and always has all six axes.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError

MESH_AXES = ("pp", "dp", "fsdp", "ep", "cp", "tp")


@dataclasses.dataclass(kw_only=True)
class MeshShape(Config):
    """How many devices each mesh axis has. At most one axis may be -1: all the devices that the others leave."""

    pp: int = 1
    dp: int = -1
    fsdp: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for a size of 0 or below -1, or for two free axes."""
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ConfigError(f"mesh sizes {sizes} for {MESH_AXES} must be positive, with at most one -1 (the rest)")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The six sizes on `num_devices` devices. Raises `ConfigError` when they do not fit."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        free = [axis for axis, size in sizes.items() if size == -1]
        if fixed > num_devices or (free and num_devices % fixed):
            raise ConfigError(
                f"the mesh {sizes} needs {'a multiple of ' if free else ''}{fixed} devices, but {num_devices} are here"
                f" (on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count={fixed} gives more)"
            )
        for axis in free:
            sizes[axis] = num_devices // fixed
        return tuple(sizes.values())

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """An explicit mesh over the first devices (default: all). Raises `ConfigError` when too few are there.

        Neighbours along the last axes have the fastest links. Where devices are in several slices (TPU pods, or racks of GPUs
        that are one NVLink domain), as few axes as possible cross from one to another: see `across_slices`.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        devices = devices[: math.prod(sizes)]
        types = (AxisType.Explicit,) * len(MESH_AXES)
        num_slices = len({getattr(device, "slice_index", 0) for device in devices})
        if num_slices == 1:
            array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        else:
            outer = across_slices(sizes, num_slices)
            inner = [size // n for size, n in zip(sizes, outer, strict=True)]
            array = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
        return Mesh(array, MESH_AXES, axis_types=types)

    def abstract(self, num_devices: int) -> AbstractMesh:
        """The same mesh without devices, for sharding checks of any size on a laptop."""
        types = (AxisType.Explicit,) * len(MESH_AXES)
        return AbstractMesh(self.sizes(num_devices), MESH_AXES, axis_types=types)


def across_slices(sizes: Sequence[int], num_slices: int) -> tuple[int, ...]:
    """Into how many parts each mesh axis is cut so that each part is within a slice: "dp" first, then "pp", then "fsdp".

    So gradients cross between slices once a step, and nothing else where the slices divide "dp". Raises `ConfigError` where they
    do not divide the product of the three.
    """
    outer, left = dict.fromkeys(MESH_AXES, 1), num_slices
    for axis in ("dp", "pp", "fsdp"):
        outer[axis] = math.gcd(sizes[MESH_AXES.index(axis)], left)
        left //= outer[axis]
    if left > 1:
        named = dict(zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(f"the devices are in {num_slices} slices, into which dp, pp and fsdp of the mesh {named} do not split")
    return tuple(outer.values())
