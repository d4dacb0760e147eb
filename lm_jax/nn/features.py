"""Vectors of hashed features of tokens, beside the token vectors."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import index, token_index
from lm_jax.core.param import param
from lm_jax.core.types import Array
from lm_jax.nn.dropout import kept
from lm_jax.nn.embedding import look_up


@dataclasses.dataclass(kw_only=True)
class FeaturesConfig(Config):
    """The sum of the vectors of a token's features, from one table of `buckets` rows; a feature's row is its number modulo these.

    As the vectors of character n-grams of fastText (Bojanowski et al. 2017, arXiv:1607.04606), but for any features. Features that
    share a row cannot be told apart: take several times as many buckets as there are frequent features. Vectors start with the
    standard deviation `initial_std`; at 0, a feature which was never met in training adds nothing. `dropout` is the probability
    with which a token loses each of its features, as a whole; those that are left count more.
    """

    buckets: int = 2**15
    dropout: float = 0.0
    initial_std: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for an empty table, a dropout rate outside [0, 1) or a negative deviation."""
        check_positive(self, "buckets")
        if self.initial_std < 0:
            raise ConfigError(f"initial_std={self.initial_std} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")

    def build(self, rngs: nnx.Rngs, width: int) -> "Features":
        """The layer that makes vectors of `width`."""
        return Features(self, rngs, width)


class Features(nnx.Module):
    """See `FeaturesConfig`."""

    def __init__(self, config: FeaturesConfig, rngs: nnx.Rngs, width: int):
        self.config = config
        self.table = param(rngs, nnx.initializers.normal(config.initial_std), (config.buckets, width), ("vocab", "embed"))

    def __call__(self, features_BTN: Array, dtype: jnp.dtype, key: Array | None) -> Array:
        """Vectors [B, T, D] of `dtype` for int32 features [B, T, N], not negative; `key` None means evaluation."""
        (B, T, N), rate = features_BTN.shape, self.config.dropout
        rows_BTN = features_BTN % self.config.buckets
        if key is None or rate == 0.0:
            return look_up(self.table, rows_BTN, dtype)
        keep_BTN = kept(key, rate, index("batch") * B + jnp.arange(B), token_index(T), N)
        return look_up(self.table, jnp.where(keep_BTN, rows_BTN, -1), dtype) / jnp.asarray(1 - rate, dtype)
