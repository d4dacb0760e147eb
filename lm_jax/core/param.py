"""Parameters: the only way to make one, to read one in a layer, and to see a model as a tree of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.sharding import reshard, spec
from lm_jax.core.types import Array

# Modules are trees of parameters only (STYLE.md, D1): no shared references, plain jax transforms.
nnx.set_graph_mode(False)

Params = dict[str, Any]  # nested dicts of arrays


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


def weight(parameter: nnx.Param, dtype: Any) -> Array:
    """The parameter's value for use in a layer: cast to `dtype`, gathered over the layout's `gather` axes."""
    value = parameter[...]
    axes = parameter.axes[-value.ndim :] if value.ndim else ()  # inside a scan the leading "layers" axis is gone
    return reshard(value.astype(dtype), spec(*axes, gathered=True))


def stacked(make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs, num_layers: int) -> nnx.Module:
    """`num_layers` independent draws of the module `make`, every parameter with a leading "layers" axis."""
    module = jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), num_layers))
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_metadata(axes=("layers", *variable.axes))
    return module


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The model's structure and its parameters as nested dicts; `nnx.merge(graph, params)` is the model again."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def logical_axes(model: nnx.Module) -> Params:
    """The tree of `split(model)[1]` with, in place of each array, the tuple of its logical axis names."""
    state = nnx.state(model)
    return nnx.to_pure_dict(state, lambda variable: variable.axes)
