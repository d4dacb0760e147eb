"""Logical axes, the mesh, and the one place that turns names into PartitionSpecs.

The mesh is explicit (`AxisType.Explicit`: shardings are part of array types) and always has all six axes. Parameters and
activations name their dimensions with logical axes; a `Layout` maps those to mesh axes. Model code asks `spec(...)` for the
sharding of a named array; outside `use_mesh` there is no mesh and `spec` is None, so the same code runs on one device.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array, Batch

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
        """An explicit mesh over the first devices (default: all). Raises `ConfigError` when too few are there."""
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        types = (AxisType.Explicit,) * len(MESH_AXES)
        return jax.make_mesh(sizes, MESH_AXES, types, devices=devices[: math.prod(sizes)])

    def abstract(self, num_devices: int) -> AbstractMesh:
        """The same mesh without devices, for sharding checks of any size on a laptop."""
        types = (AxisType.Explicit,) * len(MESH_AXES)
        return AbstractMesh(self.sizes(num_devices), MESH_AXES, axis_types=types)


@dataclasses.dataclass(kw_only=True)
class Layout(Config):
    """Which mesh axes each logical axis is split over. The default is data parallelism with fully sharded parameters.

    `gather` names the mesh axes over which parameters are stored in shards but gathered before use (fully sharded data
    parallelism, Zhao et al. 2023, arXiv:2304.11277): the gradient of the gather is the reduce-scatter.
    """

    batch: tuple[str, ...] = ("dp", "fsdp")
    sequence: tuple[str, ...] = ("cp",)
    layers: tuple[str, ...] = ("pp",)
    vocab: tuple[str, ...] = ("tp",)
    positions: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp",)
    mlp: tuple[str, ...] = ("tp",)
    heads: tuple[str, ...] = ("tp",)
    kv_heads: tuple[str, ...] = ("tp",)
    head_dim: tuple[str, ...] = ()
    experts: tuple[str, ...] = ("ep",)
    gather: tuple[str, ...] = ("fsdp",)

    def validate(self) -> None:
        """Raises `ConfigError` for a mesh axis that does not exist."""
        for field in dataclasses.fields(self):
            for axis in getattr(self, field.name):
                if axis not in MESH_AXES:
                    raise ConfigError(f"{field.name}={axis!r} is not a mesh axis; they are {', '.join(MESH_AXES)}")

    def spec(self, names: Sequence[str | None], *, gathered: bool = False) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions have these logical names (None: not split).

        Raises `ConfigError` when two dimensions land on one mesh axis.
        """
        parts, used = [], set()
        for name in names:
            axes = () if name is None else getattr(self, name)
            axes = tuple(axis for axis in axes if not (gathered and axis in self.gather))
            if used & set(axes):
                raise ConfigError(f"the layout puts two dimensions of {tuple(names)} on mesh axis {used & set(axes)}")
            used |= set(axes)
            parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
        return PartitionSpec(*parts)


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | AbstractMesh, layout: Layout) -> Iterator[None]:
    """Inside, arrays are typed with shardings on `mesh` and `spec` follows `layout`."""
    enter = jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else jax.set_mesh
    token = _layout.set(layout)
    try:
        with enter(mesh):
            yield
    finally:
        _layout.reset(token)


def spec(*names: str | None, gathered: bool = False) -> PartitionSpec | None:
    """The current layout's PartitionSpec for these logical names; None outside `use_mesh`."""
    layout = _layout.get()
    return None if layout is None else layout.spec(names, gathered=gathered)


def reshard(x: Array, target: PartitionSpec | None) -> Array:
    """`x` with the sharding `target`; `x` itself where there is no mesh (`target` None)."""
    return x if target is None else jax.sharding.reshard(x, target)


def shard_batch(batch: Batch, mesh: Mesh, layout: Layout) -> Batch:
    """Puts this process's rows of a batch (NumPy, [B_local, T, ...]) on the mesh as global arrays [B, T, ...]."""

    def put(x: np.ndarray) -> Array:
        names = ("batch", "sequence")[: x.ndim] + (None,) * (x.ndim - 2)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, layout.spec(names)), x)

    return {name: put(value) for name, value in batch.items()}


def check_divisible(shapes: Any, axes: Any, layout: Layout, mesh: Mesh | AbstractMesh) -> None:
    """Raises `ConfigError` naming every parameter dimension that its mesh axes do not divide.

    `shapes` is a nested dict of arrays or ShapeDtypeStructs, `axes` the same tree of tuples of logical names.
    """
    problems = []

    def check(path: Any, x: Any, names: tuple[str, ...]) -> None:
        for size, name in zip(x.shape, names, strict=True):
            ways = math.prod(mesh.shape[axis] for axis in getattr(layout, name))
            if size % ways:
                where = "/".join(str(part.key) for part in path)
                problems.append(f"{where}: dimension {name}={size} is not divisible by {ways} ({getattr(layout, name)})")

    jax.tree_util.tree_map_with_path(check, shapes, axes)
    if problems:
        raise ConfigError("; ".join(problems))
