"""The matrix product of a layer's inputs with its weights."""

import functools
import math

import jax
import jax.numpy as jnp

from lm_jax.core.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def project(equation: str, x: Array, w: Array, out_sharding: jax.sharding.PartitionSpec | None = None) -> Array:
    """`einsum(equation, x, w)`, such as "BTD,DF->BTF", with a backward pass that is fast on every backend.

    XLA:CPU reads the left operand of a product row by row. The derivative that JAX makes puts the incoming gradient there,
    transposed while it is computed; here the smaller of gradient and input is (2.3 times faster for a
    SwiGLU layer of width 384).
    """
    return jnp.einsum(equation, x, w, out_sharding=out_sharding)


def _forward(equation, x, w, out_sharding):
    return project(equation, x, w, out_sharding), (x, w)


def _backward(equation, out_sharding, saved, g):
    x, w = saved
    inputs, y_axes = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    dx = jnp.einsum(f"{y_axes},{w_axes}->{x_axes}", g, w, out_sharding=_spec(x))
    if math.prod(x.shape) <= math.prod(g.shape):
        return dx, jnp.einsum(f"{x_axes},{y_axes}->{w_axes}", x, g, out_sharding=_spec(w))
    flipped = sorted(w_axes, key=lambda axis: axis in x_axes)  # the gradient's axes first
    order = [w_axes.index(axis) for axis in flipped]
    target = _spec(w)
    if target is not None:
        target = jax.sharding.PartitionSpec(*(target[i] for i in order))
    dw = jnp.einsum(f"{y_axes},{x_axes}->{''.join(flipped)}", g, x, out_sharding=target)
    dw = jax.lax.optimization_barrier(dw)  # or XLA turns the product round to save the transposition below
    return dx, jnp.transpose(dw, [flipped.index(axis) for axis in w_axes])


def _spec(x: Array) -> jax.sharding.PartitionSpec | None:
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding.spec


project.defvjp(_forward, _backward)
