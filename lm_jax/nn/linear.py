"""The matrix product of a layer's inputs with its weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm_jax.core.local import settle, varying
from lm_jax.core.param import Shards, gather, scatter, shards
from lm_jax.core.types import Array

PROJECTION = "projection"  # what rematerialisation policies call the results


def project(equation: str, x: Array, parameter: nnx.Param, dtype: Any = None) -> Array:
    """`einsum(equation, x, parameter)`, such as "BTD,DF->BTF", in the dtype of `x`; the result in `dtype` (None: that of `x`).

    The parameter is gathered from its shards for the product, and again for the backward pass rather than kept. Its gradient is
    float32 before it is summed over devices. Where `x` is split along its contracted dimension, so is the parameter, and the
    result is this device's term of the sum.
    """
    return checkpoint_name(_project(x, parameter[...], equation, dtype or x.dtype, shards(parameter)), PROJECTION)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _project(x: Array, w: Array, equation: str, dtype: Any, where: Shards) -> Array:
    return jnp.einsum(equation, x, gather(w, x.dtype, where), preferred_element_type=dtype)


def _forward(x, w, equation, dtype, where):
    return _project(x, w, equation, dtype, where), (x, w)


def _backward(equation, dtype, where, saved, g):
    x, w = saved
    inputs, y_axes = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    g = g.astype(x.dtype)
    dx = settle(jnp.einsum(f"{y_axes},{w_axes}->{x_axes}", g, gather(w, x.dtype, where)), varying(x))
    dw = scatter(_weight_gradient(x, g, x_axes, y_axes, w_axes), where, varying(w))
    return dx, dw.astype(w.dtype)


def _weight_gradient(x: Array, g: Array, x_axes: str, y_axes: str, w_axes: str) -> Array:
    """float32 product of inputs and gradient.

    XLA:CPU reads the left operand of a product row by row. The derivative that JAX makes puts the incoming gradient there,
    transposed while it is computed; here the smaller of gradient and input is (2.3 times faster for a SwiGLU layer of width 384).
    """
    if math.prod(x.shape) <= math.prod(g.shape):
        return jnp.einsum(f"{x_axes},{y_axes}->{w_axes}", x, g, preferred_element_type=jnp.float32)
    flipped = sorted(w_axes, key=lambda axis: axis in x_axes)  # the gradient's axes first
    dw = jnp.einsum(f"{y_axes},{x_axes}->{''.join(flipped)}", g, x, preferred_element_type=jnp.float32)
    dw = jax.lax.optimization_barrier(dw)  # or XLA turns the product round to save the transposition below
    return jnp.transpose(dw, [flipped.index(axis) for axis in w_axes])


_project.defvjp(_forward, _backward)
