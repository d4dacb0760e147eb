"""Parameters: the only way to make one, to read one in a layer, and to see a model as a tree of arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.local import mesh_axes, settle, vary, varying
from lm_jax.core.sharding import current_layout, spec, specs
from lm_jax.core.types import Array

# Modules are trees of parameters only (STYLE.md, D1): no shared references, plain jax transforms.
nnx.set_graph_mode(False)

Params = dict[str, Any]  # nested dicts of arrays
Shards = tuple[tuple[int, tuple[str, ...]], ...]  # (dimension, mesh axes that it is gathered over)


def param(
    rngs: nnx.Rngs,
    init: Callable[..., Array],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: Any = jnp.float32,
) -> nnx.Param:
    """A parameter drawn by `init(key, shape, dtype)`, split as the layout says for its logical `axes`."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(rngs.params(), shape, dtype, out_sharding=spec(*axes)), axes=axes)


def weight(parameter: nnx.Param, like: Array, dtype: Any = None) -> Array:
    """The parameter for use beside the activation `like`: in its dtype (or `dtype`), whole in the layout's `gather` dimensions.

    The gradient is summed in float32 and leaves each device the shard that it stores.
    """
    value = parameter[...]
    return _whole(value, like.dtype if dtype is None else dtype, shards(parameter), varying(value), varying(like))


def shards(parameter: nnx.Param) -> Shards:
    """Which dimensions of the parameter's value are stored in shards that are gathered before use."""
    ndim = parameter[...].ndim
    names = parameter.axes[-ndim:] if ndim else ()  # inside a scan the leading "layers" axis is gone
    layout = current_layout()
    gather = () if layout is None else layout.gather
    return tuple((dim, mesh_axes(name)) for dim, name in enumerate(names) if name in gather and mesh_axes(name))


def gathered(parameter: nnx.Param, like: Array) -> nnx.Param:
    """The parameter for several uses: whole and float32, so that its gradients add up before they are communicated, once."""
    gather = () if (layout := current_layout()) is None else layout.gather
    axes = tuple(None if name in gather else name for name in parameter.axes)
    return parameter.copy(weight(parameter, like, jnp.float32), axes=axes)


def gather(value: Array, dtype: Any, where: Shards) -> Array:
    """The whole parameter in `dtype`; cast first, so that fewer bytes move."""
    value = value.astype(dtype)
    for dim, axes in where:
        value = jax.lax.all_gather(value, axes, axis=dim, tiled=True)
    return value


def scatter(grad: Array, where: Shards, own: frozenset[str]) -> Array:
    """The stored shard of the sum of a whole gradient over all devices; `own` are the axes along which the parameter differs."""
    for dim, axes in where:
        grad = jax.lax.psum_scatter(grad, axes, scatter_dimension=dim, tiled=True)
    return settle(grad, own)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _whole(value: Array, dtype: Any, where: Shards, own: frozenset[str], along: frozenset[str]) -> Array:
    return vary(gather(value, dtype, where), along)


def _whole_forward(value, dtype, where, own, along):
    return _whole(value, dtype, where, own, along), jnp.zeros((), value.dtype)


def _whole_backward(dtype, where, own, along, like, g):
    return (scatter(g.astype(jnp.float32), where, own).astype(like.dtype),)


_whole.defvjp(_whole_forward, _whole_backward)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs, num_layers: int, rounds: int = 1) -> nnx.Module:
    """`num_layers` independent draws of the module `make`, every parameter with a leading "layers" axis.

    With `rounds` above 1 two axes lead, "rounds" and "layers", with as many values, drawn alike, in all.
    """
    keys, leading = jax.random.split(rngs.params(), num_layers), ("layers",)
    build = jax.vmap(lambda key: make(nnx.Rngs(params=key)))
    if rounds > 1:
        keys, leading, build = keys.reshape(rounds, -1), ("rounds", "layers"), jax.vmap(build)
    where = spec(*leading)
    module = build(keys if where is None else jax.sharding.reshard(keys, where))
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_metadata(axes=(*leading, *variable.axes))
    return module


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The model's structure and its parameters as nested dicts; `nnx.merge(graph, params)` is the model again."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def param_specs(graph: nnx.GraphDef, params: Params) -> Params:
    """The tree of PartitionSpecs of a split model's parameters on the current mesh."""
    return specs(logical_axes(nnx.merge(graph, params)))


def logical_axes(model: nnx.Module) -> Params:
    """The tree of `split(model)[1]` with, in place of each array, the tuple of its logical axis names."""
    state = nnx.state(model)
    return nnx.to_pure_dict(state, lambda variable: variable.axes)
