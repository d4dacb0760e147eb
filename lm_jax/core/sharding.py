"""Logical axes, and the one place that turns names into PartitionSpecs.

Parameters and activations name their dimensions with logical axes; a `Layout` maps those to axes of the mesh. Model code asks
`spec(...)` for the sharding of a named array; outside `use_mesh` there is no mesh and `spec` is None, so the same code runs on
one device.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MESH_AXES
from lm_jax.core.types import Array, Batch


@dataclasses.dataclass(kw_only=True)
class Layout(Config):
    """Which mesh axes each logical axis is split over. The default is data parallelism with fully sharded parameters.

    `gather` names the dimensions of parameters that are stored in shards but gathered before use (fully sharded data parallelism,
    Zhao et al. 2023, arXiv:2304.11277): the gradient of the gather is the reduce-scatter. Their mesh axes must split the batch.

    `residual` splits the tokens of the residual stream, between the blocks, beyond `sequence` (sequence parallelism,
    Korthikanti et al. 2022, arXiv:2205.05198): gathered before a block's products, scattered by the sum after them.

    `experts` are those of a mixture, `expert_embed` and `expert_mlp` the widths within each; many small ones are better split
    whole, with experts=("ep", "tp") and expert_mlp=(). `router` is the experts as the router's outputs, `balance` as its biases.

    `inner` are widths that a layer makes and needs whole, such as the short vectors of latent attention; `recurrent` the state of
    an LSTM or GRU, all of which every step needs, and `gates` how often it is computed; `kernel` the places of a depthwise
    convolution; `patch` what a window of a frontend covers: pixels, frames and their channels.

    Where `layers` are split, the devices of a pipeline pass `micro_batches` on to each other (None: one for each row); for
    everything outside the stack they are one more axis of the batch. `gather_once`: each gathers its layers, in float32, once
    and not for every micro-batch, which takes memory for them and for their gradients.
    """

    batch: tuple[str, ...] = ("pp", "dp", "fsdp", "ep")
    sequence: tuple[str, ...] = ("cp",)
    residual: tuple[str, ...] = ("tp",)
    layers: tuple[str, ...] = ("pp",)
    vocab: tuple[str, ...] = ("tp",)
    positions: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp", "ep")
    mlp: tuple[str, ...] = ("tp",)
    heads: tuple[str, ...] = ("tp",)
    kv_heads: tuple[str, ...] = ("tp",)
    head_dim: tuple[str, ...] = ()
    rounds: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    kernel: tuple[str, ...] = ()
    patch: tuple[str, ...] = ()
    experts: tuple[str, ...] = ("ep",)
    expert_embed: tuple[str, ...] = ("fsdp",)
    expert_mlp: tuple[str, ...] = ("tp",)
    router: tuple[str, ...] = ()
    balance: tuple[str, ...] = ()
    gather: tuple[str, ...] = ("embed", "expert_embed")
    micro_batches: int | None = None
    gather_once: bool = True

    def validate(self) -> None:
        """Raises `ConfigError` for a mesh axis that does not exist, or one that is gathered over but does not split the batch."""
        dims = {name: value for name, value in vars(self).items() if isinstance(value, tuple) and name != "gather"}
        for name, axes in dims.items():
            for axis in axes:
                if axis not in MESH_AXES:
                    raise ConfigError(f"{name}={axis!r} is not a mesh axis; they are {', '.join(MESH_AXES)}")
        for name in self.gather:
            if name not in dims:
                raise ConfigError(f"gather={name!r} is not a dimension of arrays; they are {', '.join(dims)}")
            for axis in dims[name]:
                if axis not in self.batch:
                    raise ConfigError(
                        f"{name} is gathered over {axis!r}, which is not in batch={self.batch}: its devices would repeat work"
                    )
        for name in ("inner", "recurrent", "gates", "kernel", "patch"):
            if dims[name] and name not in self.gather:
                raise ConfigError(f"{name}={dims[name]}: layers need it whole; add {name!r} to gather, or leave it ()")
        if len(self.layers) > 1:
            raise ConfigError(f"layers={self.layers}: a pipeline runs along one mesh axis")
        if self.micro_batches is not None and self.micro_batches < 1:
            raise ConfigError(f"micro_batches={self.micro_batches} must be above 0; None: one for each row")
        if not set(self.residual) <= set(self.vocab):
            raise ConfigError(
                f"residual={self.residual} and vocab={self.vocab}: devices that split tokens between layers would score all of "
                "them again; have the same axes split the vocabulary, or leave them out of residual"
            )
        tokens = {*self.batch, *self.sequence, *self.residual}
        if 0 < len(tokens & set(self.experts)) < len(self.experts):
            raise ConfigError(f"experts={self.experts}: either all of these axes must split tokens (here {sorted(tokens)}) or none")

    def ways(self, name: str, mesh: Mesh | AbstractMesh) -> int:
        """Over how many devices of `mesh` the logical axis is split."""
        return math.prod(mesh.shape[axis] for axis in getattr(self, name))

    def spec(self, names: Sequence[str | None], mesh: Mesh | AbstractMesh | None = None) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions have these logical names (None: not split).

        Axes of one device in `mesh` are left out. Raises `ConfigError` when two dimensions land on one mesh axis.
        """
        parts, used = [], set()
        for name in names:
            axes = () if name is None else getattr(self, name)
            axes = tuple(axis for axis in axes if mesh is None or mesh.shape[axis] > 1)
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
    with use_layout(layout), enter(mesh):
        yield


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Inside, on the mesh that is in use, `spec` and the local view follow `layout`."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def spec(*names: str | None) -> PartitionSpec | None:
    """The current layout's PartitionSpec for these logical names on the current mesh; None outside `use_mesh`."""
    layout = _layout.get()
    return None if layout is None else layout.spec(names, jax.sharding.get_abstract_mesh())


def specs(axes: Any) -> Any:
    """`spec` of every tuple of logical names in a nested dict."""
    return {name: specs(value) if isinstance(value, dict) else spec(*value) for name, value in axes.items()}


def current_layout() -> Layout | None:
    """The layout of `use_mesh`; None outside."""
    return _layout.get()


def current_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of a logical axis in the current layout; () outside `use_mesh`."""
    layout = _layout.get()
    return () if layout is None else getattr(layout, name)


def token_order(length: int, num_parts: int) -> np.ndarray:
    """[length]: the tokens of a row in the order in which `num_parts` devices hold them.

    Part i has the i-th and the i-th last of 2 x `num_parts` slices: under a causal mask all then do the same work (Brandon
    et al. 2023, arXiv:2311.09431, in the zig-zag form).
    """
    if num_parts == 1:
        return np.arange(length)
    if length % (2 * num_parts):
        raise ConfigError(f"rows of {length} tokens do not split into 2 x {num_parts} slices of the sequence axes")
    slices = np.arange(length).reshape(2, num_parts, -1)
    return np.concatenate([slices[0], slices[1, ::-1]], axis=1).reshape(-1)


def local_rows(num_rows: int, mesh: Mesh, layout: Layout) -> slice:
    """Which rows of a global batch the devices of this process hold."""
    where = NamedSharding(mesh, layout.spec(("batch",), mesh)).addressable_devices_indices_map((num_rows,))
    bounds = [index[0].indices(num_rows) for index in where.values()]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def shard_batch(batch: Batch, mesh: Mesh, layout: Layout, num_rows: int | None = None) -> Batch:
    """Puts this process's `local_rows` of a batch (NumPy, [rows, T, ...]) on the mesh as global arrays [num_rows, T, ...].

    With `num_rows` None these are all rows. Where the layout splits rows, their tokens are put in `token_order`.
    """
    num_parts = layout.ways("sequence", mesh)

    def put(name: str, x: np.ndarray) -> Array:
        total = len(x) if num_rows is None else num_rows
        first = 0 if num_rows is None else local_rows(num_rows, mesh, layout).start
        if num_parts > 1 and not _is_whole(name):
            x = x[:, token_order(x.shape[1], num_parts)]

        def rows_of_a_device(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            return x[(slice(start - first, stop - first), *index[1:])]

        sharding = NamedSharding(mesh, layout.spec(_batch_names(name, x), mesh))
        return jax.make_array_from_callback((total, *x.shape[1:]), sharding, rows_of_a_device)

    return {name: put(name, value) for name, value in batch.items()}


def batch_specs(batch: Batch) -> dict[str, PartitionSpec | None]:
    """The sharding of every array [B, T, ...] of a batch on the current mesh. What an encoder reads is split by rows only."""
    return {name: spec(*_batch_names(name, x)) for name, x in batch.items()}


def _batch_names(name: str, x: Any) -> tuple[str | None, ...]:
    if _is_whole(name):
        return ("batch",) + (None,) * (x.ndim - 1)
    return ("batch", "sequence")[: x.ndim] + (None,) * (x.ndim - 2)


def _is_whole(name: str) -> bool:
    return name in ("images", "mels", "waves", "samples", "labels", "negatives") or name.startswith(("memory_", "pair_"))


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """Inside, the tokens of a row are not split: for encoders, whose rows every device of `sequence` and `residual` has whole."""
    layout = _layout.get()
    if layout is None:
        yield
        return
    with use_layout(dataclasses.replace(layout, sequence=(), residual=())):
        yield


@contextlib.contextmanager
def same_everywhere() -> Iterator[None]:
    """Inside, neither rows nor tokens are split: every device computes all of a batch."""
    layout = _layout.get()
    if layout is None:
        yield
        return
    with use_layout(dataclasses.replace(layout, batch=(), sequence=(), residual=())):
        yield


def check_divisible(sizes: Iterable[tuple[str, int, str]], layout: Layout, mesh: Mesh | AbstractMesh) -> None:
    """Raises one `ConfigError` for every size that the mesh axes of its logical axis do not divide.

    `sizes` yields (what has it, the size, the logical axis). The message gives both numbers and the nearest sizes that would do.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for what, size, name in sizes:
        if size % layout.ways(name, mesh):
            found.setdefault((name, size), []).append(what)
    problems = []
    for (name, size), owners in found.items():
        axes = "".join(f" {axis}={mesh.shape[axis]}" for axis in getattr(layout, name) if mesh.shape[axis] > 1)
        ways, more = layout.ways(name, mesh), f" and {len(owners) - 1} more" if len(owners) > 1 else ""
        near = [n for n in (size // ways * ways, -(-size // ways) * ways) if n]
        problems.append(
            f"{owners[0]}{more}: {name}={size} is not divisible by the {ways} devices of{axes}; {' or '.join(map(str, near))} is"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def parameter_sizes(shapes: Any, axes: Any) -> Iterator[tuple[str, int, str]]:
    """(path, size, logical axis) of every dimension of a nested dict of arrays; `axes` is the same tree of tuples of names."""
    for path, names in jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple)):
        where = [part.key for part in path]
        for size, name in zip(functools.reduce(dict.__getitem__, where, shapes).shape, names, strict=True):
            yield "/".join(where), size, name
