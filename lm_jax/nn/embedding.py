"""Token embeddings at the bottom of a text model."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import index, part, to_residual, vary, varying
from lm_jax.core.param import Shards, gather, param, scatter, shards, weight
from lm_jax.core.types import Array
from lm_jax.nn.dropout import dropout
from lm_jax.nn.init import Init
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig


@dataclasses.dataclass(kw_only=True)
class EmbeddingConfig(Config):
    """A table of token vectors, plus optionally position vectors, vectors of token types, a norm and dropout.

    `scale` multiplies the token vectors (Gemma: sqrt(width)). `token_types` is the number of types (BERT, arXiv:1810.04805: the
    first and the second sentence); a batch without any has type 0.
    """

    positions: PositionTableConfig | None = None
    token_types: int = 0
    scale: float = 1.0
    norm: NormConfig | None = None
    dropout: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for a dropout rate outside [0, 1) or a negative number of types."""
        if self.token_types < 0:
            raise ConfigError(f"token_types={self.token_types} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")

    def max_length(self) -> int | None:
        """The longest row that the position table has vectors for; None without one."""
        return None if self.positions is None else self.positions.length - self.positions.offset

    def build(self, rngs: nnx.Rngs, vocab_size: int, width: int, init: Init) -> "Embedding":
        """The layer for ids below `vocab_size`."""
        return Embedding(self, rngs, vocab_size, width, init)


class Embedding(nnx.Module):
    """See `EmbeddingConfig`."""

    def __init__(self, config: EmbeddingConfig, rngs: nnx.Rngs, vocab_size: int, width: int, init: Init):
        self.config = config
        self.table = param(rngs, init.embedding(), (vocab_size, width), ("vocab", "embed"))
        self.positions = None if config.positions is None else config.positions.build(rngs, width, init)
        types = (config.token_types, width), ("positions", "embed")
        self.token_types = param(rngs, init.embedding(), *types) if config.token_types else None
        self.norm = None if config.norm is None else config.norm.build(rngs, width)

    def __call__(
        self, tokens_BT: Array, positions_BT: Array, dtype: jnp.dtype, key: Array | None, types_BT: Array | None = None
    ) -> Array:
        """Vectors [B, T, D] of `dtype` for int32 ids [B, T] of types [B, T] at positions [B, T] or [1, T]."""
        x_BTD = look_up(self.table, tokens_BT, dtype)
        if self.config.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(self.config.scale, dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(part(positions_BT, "residual", 1), x_BTD)
        if self.token_types is not None:
            table = weight(self.token_types, x_BTD)
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + table.at[part(types_BT, "residual", 1)].get(mode="clip")
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return dropout(x_BTD, self.config.dropout, key)


def look_up(table: nnx.Param, ids: Array, dtype: jnp.dtype) -> Array:
    """Rows [B, T, D] of the residual stream, in `dtype`, of a table ("vocab", "embed"), for ids [B, T]; for several ids of a token
    [B, T, N] the sum of their rows. A negative id gives 0."""
    size = table.shape[0]  # this device's part of the vocabulary
    x = _look_up(table[...], ids - index("vocab") * size, dtype, shards(table))
    return to_residual(x if ids.ndim == 2 else jnp.sum(x, axis=2), "vocab")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _look_up(table: Array, ids: Array, dtype: Any, where: Shards) -> Array:
    """Rows of the table in `dtype`, 0 for ids outside it. The gradients of equal ids add up in float32."""
    return gather(table, dtype, where).at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _look_up_forward(table, ids, dtype, where):
    return _look_up(table, ids, dtype, where), (table, ids)


def _look_up_backward(dtype, where, saved, g):
    table, ids = saved
    size = (table.shape[0], g.shape[-1])
    sums = vary(jnp.zeros(size, jnp.float32), varying(g))
    sums = sums.at[ids].add(g.astype(jnp.float32), mode="drop", wrap_negative_indices=False)
    return scatter(sums, where, varying(table)).astype(table.dtype), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def soft_cap(x: Array, cap: float | None) -> Array:
    """`cap * tanh(x / cap)`, which keeps x within (-cap, cap) (Gemma 2, arXiv:2408.00118); x itself for None."""
    return x if cap is None else cap * jnp.tanh(x / cap)
