"""Dropout as a function: the key is an argument, and None means evaluation."""

import jax
import jax.numpy as jnp

from lm_jax.core.types import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros each element with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Returns `x` itself when `key` is None or `rate` is 0.
    """
    if key is None or rate == 0.0:
        return x
    sharding = jax.typeof(x).sharding
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=None if sharding.mesh.empty else sharding)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))
