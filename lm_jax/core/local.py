"""The local view: model code runs on every device at once, on that device's part of every array.

Outside it (the optimizer, checkpoints) arrays are global and carry their shardings in their types. A forward and backward pass
runs inside `local_view`, a `jax.shard_map` over the whole mesh: a layer sees the rows, tokens and heads of its own device, and
what it communicates stands in its code, by logical axis: `all_gather(x, "residual", 1)`. JAX types every value with the mesh axes
along which it may differ between devices, and from these types derives the communication of the backward pass; a forgotten
sum is a type error. Without a mesh, or where the axes have one device, everything here is the identity.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lm_jax.core.sharding import current_axes, token_order
from lm_jax.core.types import Array


def local_view(fn: Callable, in_specs: Any, out_specs: Any, *, check: bool = True) -> Callable:
    """`fn` of global arrays, computed by running it on every device's parts.

    The specs are pytrees (or prefixes) of PartitionSpec; arguments are brought to `in_specs` first. A result whose spec leaves a
    mesh axis out must be the same along it, which JAX proves from types; `check=False` trusts instead (and is wrong under
    differentiation).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return fn
    mapped = jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, check_vma=check)

    def run(*args):
        is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        place = lambda spec, part: jax.tree.map(lambda x: jax.sharding.reshard(x, spec), part)  # noqa: E731
        return mapped(*jax.tree.map(place, in_specs, args, is_leaf=is_spec))

    return run


def mesh_axes(*names: str) -> tuple[str, ...]:
    """The mesh axes, of more than one device, that these logical axes are split over in this local view; () outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes:
        return ()
    return tuple(dict.fromkeys(axis for name in names for axis in current_axes(name) if mesh.shape[axis] > 1))


def ways(*names: str) -> int:
    """Into how many parts these logical axes are split here."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in mesh_axes(*names))


def index(*names: str) -> Array:
    """int32 []: which of the `ways(*names)` parts is this device's."""
    axes = mesh_axes(*names)
    return jax.lax.axis_index(axes) if axes else jnp.int32(0)


def all_gather(x: Array, name: str, dim: int) -> Array:
    """All parts of `x` along logical axis `name`, concatenated in dimension `dim`. The derivative is `reduce_scatter`."""
    axes = mesh_axes(name)
    return jax.lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x


def gather_for(x: Array, name: str, dim: int, *split: str) -> Array:
    """`x` whole in `dim` along those axes of the logical axes `split` that split `name` too: what `sum_into` undoes."""
    axes = _both(name, *split)
    return jax.lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x


def exchange(x: Array, name: str, split_dim: int, concat_dim: int) -> Array:
    """Part i of `x` in `split_dim` sent to device i of those of `name`; what comes in is concatenated in `concat_dim`."""
    axes = mesh_axes(name)
    return jax.lax.all_to_all(x, axes, split_dim, concat_dim, tiled=True) if axes else x


def all_sum(x: Any, *names: str) -> Any:
    """The sum over the devices that these logical axes are split over."""
    axes = mesh_axes(*names)
    return jax.lax.psum(x, axes) if axes else x


def all_max(x: Array, *names: str) -> Array:
    """The elementwise maximum over the devices that these logical axes are split over; not differentiable."""
    axes = mesh_axes(*names)
    return jax.lax.pmax(jax.lax.stop_gradient(x), axes) if axes else jax.lax.stop_gradient(x)


def part(x: Array, name: str, dim: int) -> Array:
    """This device's part of an `x` that is whole in dimension `dim`."""
    size = x.shape[dim] // ways(name)
    return jax.lax.dynamic_slice_in_dim(x, index(name) * size, size, dim) if mesh_axes(name) else x


def _both(name: str, *names: str) -> tuple[str, ...]:
    return tuple(axis for axis in mesh_axes(name) if axis in mesh_axes(*names))


def overlap(name: str, *names: str) -> int:
    """Over how many devices both `name` and any of `names` are split."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in _both(name, *names))


def sum_into(x: Array, name: str, dim: int, *into: str) -> Array:
    """The sum of `x` over the axes of `name`; those that split any of `into` too leave each device its part of `dim` only."""
    scatter = _both(name, *into)
    rest = tuple(axis for axis in mesh_axes(name) if axis not in scatter)
    if scatter:
        x = jax.lax.psum_scatter(x, scatter, scatter_dimension=dim, tiled=True)
    return jax.lax.psum(x, rest) if rest else x


def to_residual(x: Array, name: str) -> Array:
    """This device's part of the residual stream, of its term `x` [B, T, ...], with all tokens, of a sum over the axes of `name`."""
    if set(mesh_axes("residual")) <= set(mesh_axes(name)):
        return sum_into(x, name, 1, "residual")
    return part(all_sum(x, name), "residual", 1)


def token_index(num_tokens: int, *, residual: bool = False) -> Array:
    """int32 [num_tokens]: where in their row this device's tokens stand, of an activation or of the `residual` stream."""
    if residual:
        return part(token_index(num_tokens * ways("residual")), "residual", 0)
    num_parts = ways("sequence")
    order = jnp.asarray(token_order(num_tokens * num_parts, num_parts), jnp.int32)
    return part(order, "sequence", 0)


def whole_row(x: Array) -> Array:
    """All tokens of the rows [B, T, ...] that `x` has a part of, in order."""
    num_parts = ways("sequence")
    if num_parts == 1:
        return x
    return all_gather(x, "sequence", 1)[:, np.argsort(token_order(x.shape[1] * num_parts, num_parts))]


def own_tokens(x: Array) -> Array:
    """This device's tokens of whole rows [B, T, ...]: what `whole_row` undoes."""
    num_parts = ways("sequence")
    return x if num_parts == 1 else x[:, token_index(x.shape[1] // num_parts)]


def ahead(x_BT: Array, places: int) -> Array:
    """For each of this device's tokens, the value of the token that stands `places` later in the row; 0 beyond its end."""
    whole = whole_row(jnp.asarray(x_BT))
    return whole.at[:, token_index(x_BT.shape[1]) + places].get(mode="fill", fill_value=0)


def varying(x: Any) -> frozenset[str]:
    """The mesh axes along which `x` may differ between devices, by its type."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: Array, axes: frozenset[str]) -> Array:
    """`x`, typed as one that may differ along `axes` too. The derivative is the sum over them."""
    missing = tuple(sorted(axes - varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def settle(x: Array, axes: frozenset[str]) -> Array:
    """The sum of `x` over all axes along which it differs, but for `axes`: a cotangent of something that differs along these."""
    extra = tuple(sorted(varying(x) - axes))
    return jax.lax.psum(x, extra) if extra else x


def unchecked(fn: Callable, *args: Any, constant: Any = None) -> Any:
    """`fn(*args, constant)` for a kernel that does not say in types what may differ between devices, as the local view asks.

    All results are typed as differing along every axis that any argument differs along. Differentiable in `args`.
    """
    axes = frozenset().union(*map(varying, jax.tree.leaves((args, constant))))
    if not axes:
        return fn(*args, constant)
    typed = lambda tree: jax.tree.map(lambda x: vary(x, axes), tree)  # noqa: E731

    def untyped(fn: Callable) -> Callable:
        # A view of no axes within this one, where nothing is checked and results of arithmetic have no such type.
        bare = lambda *args: fn(*jax.tree.map(lambda x: x * jnp.ones((), x.dtype), args))  # noqa: E731
        return jax.shard_map(bare, in_specs=PartitionSpec(), out_specs=PartitionSpec(), axis_names=set(), check_vma=False)

    @jax.custom_vjp
    def run(constant, *args):
        return typed(untyped(lambda constant, *args: fn(*args, constant))(constant, *args))

    def forward(constant, *args):
        both = lambda constant, *args: jax.vjp(lambda *args: fn(*args, constant), *args)  # noqa: E731
        return typed(untyped(both)(constant, *args))

    def backward(pull, g):
        return None, *typed(untyped(lambda pull, g: pull(g))(pull, g))

    run.defvjp(forward, backward)
    return run(typed(constant), *typed(args))
