"""Dropout as a function: the key is an argument, and None means evaluation."""

import jax
import jax.numpy as jnp

from lm_jax.core.local import index, token_index
from lm_jax.core.types import Array


def dropout(x_BTD: Array, rate: float, key: Array | None, rows_B: Array | None = None) -> Array:
    """Zeros each element of the residual stream with probability `rate` and scales the rest by 1 / (1 - rate).

    Srivastava et al. 2014. Every token has a key of its own, so that the same elements are dropped on every mesh; `rows_B` says
    which rows of the batch these are (None: those of this device). Returns `x_BTD` itself when `key` is None or `rate` is 0.
    """
    if key is None or rate == 0.0:
        return x_BTD
    B, T, D = x_BTD.shape
    rows = index("batch") * B + jnp.arange(B) if rows_B is None else rows_B
    keep_BTD = kept(key, rate, rows, token_index(T, residual=True), D)
    return jnp.where(keep_BTD, x_BTD / jnp.asarray(1 - rate, x_BTD.dtype), jnp.zeros((), x_BTD.dtype))


def kept(key: Array, rate: float, rows_B: Array, tokens_T: Array, size: int) -> Array:
    """bool [B, T, size]: what is left by dropping with probability `rate`, drawn by the row of the batch and the token in it."""
    draw = lambda row, token: jax.random.bernoulli(  # noqa: E731
        jax.random.fold_in(jax.random.fold_in(key, row), token), 1 - rate, (size,)
    )
    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(rows_B, tokens_T)
