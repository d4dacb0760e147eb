"""Choosing the next token from logits."""

import dataclasses

import jax
import jax.numpy as jnp

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array


@dataclasses.dataclass(kw_only=True)
class SamplingConfig(Config):
    """Temperature 0 is greedy. `top_k` keeps the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833), then `top_p` the
    smallest set whose probability reaches p (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751). None: all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for values out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be finite and not negative (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be in (0, 1]")

    def sample(self, key: Array, logits_BV: Array) -> Array:
        """int32 [B] drawn from float32 logits [B, V]."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BV = self.filter(logits_BV / self.temperature)
        return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)

    def filter(self, logits_BV: Array) -> Array:
        """The logits with those of the tokens outside top-k and top-p at -inf."""
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            kth = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
        if self.top_p is not None and self.top_p < 1:
            ordered = jnp.sort(logits_BV, axis=-1, descending=True)
            probs = jax.nn.softmax(ordered, axis=-1)
            # A token stays while the probability of those before it is below p: the first always does.
            kept = jnp.cumsum(probs, axis=-1) - probs < self.top_p
            smallest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV < smallest, -jnp.inf, logits_BV)
        return logits_BV
