"""The learned bias of T5, by how far a key is from the query."""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, token_index
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import Init
from lm_jax.nn.place import CacheInfo


@dataclasses.dataclass(kw_only=True)
class RelativeBiasConfig(Config):
    """A number for each bucket of distances and each head, added to scores (T5, Raffel et al. 2020, arXiv:1910.10683, 2.1).

    Distances below half the buckets have one each, those up to `distance` share the rest logarithmically, the last one takes all
    beyond. With `both_ways` (an encoder) half the buckets are for keys after the query; without, these are as those at it.
    """

    buckets: int = 32
    distance: int = 128
    both_ways: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for too few buckets or distances."""
        check_positive(self, "buckets", "distance")
        exact = self.buckets // (4 if self.both_ways else 2)
        if exact < 1 or self.buckets % 2 or self.distance <= exact:
            raise ConfigError(f"buckets={self.buckets} must be even and at least 4, distance={self.distance} above {exact}")

    def build(self, rngs: nnx.Rngs, num_heads: int, init: Init) -> "RelativeBias":
        """The table for `num_heads`."""
        return RelativeBias(self, rngs, num_heads, init)

    def bucket(self, distance: Array) -> Array:
        """int32: the number of the bucket of each distance (place of the key minus that of the query)."""
        number = self.buckets // 2 if self.both_ways else self.buckets
        after = jnp.where(distance > 0, number, 0) if self.both_ways else 0
        away = jnp.abs(distance) if self.both_ways else jnp.maximum(-distance, 0)
        exact = number // 2
        ratio = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(self.distance / exact)
        far = jnp.minimum(exact + (ratio * (number - exact)).astype(jnp.int32), number - 1)
        return after + jnp.where(away < exact, away, far)


class RelativeBias(nnx.Module):
    """See `RelativeBiasConfig`."""

    def __init__(self, config: RelativeBiasConfig, rngs: nnx.Rngs, num_heads: int, init: Init):
        self.config = config
        self.table = param(rngs, init.embedding(), (config.buckets, num_heads), ("positions", "heads"))

    def __call__(self, num_tokens: int, info: CacheInfo | None) -> Array:
        """float32 [N, T, S]: of this device's heads and `num_tokens` queries, for the keys of the row or the slots of the cache."""
        if info is None:
            queries = token_index(num_tokens)
            keys = all_gather(queries, "sequence", 0)
        else:
            queries, keys = info.index + jnp.arange(num_tokens), jnp.arange(info.segments_BS.shape[1])
        table = weight(self.table, queries.astype(jnp.float32))
        return jnp.moveaxis(table[self.config.bucket(keys[None, :] - queries[:, None])], -1, 0)
