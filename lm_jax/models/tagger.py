"""A tagger: a classifier of every token of a text, which reads features of its words too."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array, Batch
from lm_jax.models.classifier import Classifier, ClassifierConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.place import Place


@dataclasses.dataclass(kw_only=True)
class TaggerConfig(ClassifierConfig):
    """Scores `classes` at every token; a word's tag is that of its first token. See `ClassifierConfig`, with `pool` "none".

    The vectors of the `features` of its word (None: these are not read) are added to that of a token.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "features"})
    targets: ClassVar[frozenset[str]] = frozenset({"tags"})

    pool: str = "none"
    features: FeaturesConfig | None = dataclasses.field(default_factory=FeaturesConfig)

    def validate(self) -> None:
        """Raises `ConfigError` where a token would be scored from more than its own hidden state."""
        super().validate()
        if self.pool != "none":
            raise ConfigError(f"pool={self.pool!r}: the tokens of a text have tags of their own; take 'none'")

    def build(self, key: Array) -> "Tagger":
        """The model with parameters drawn from `key`."""
        return Tagger(self, nnx.Rngs(params=key))


class Tagger(Classifier):
    """See `TaggerConfig`."""

    def __init__(self, config: TaggerConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.features = None if config.features is None else config.features.build(rngs, config.width, config.init)

    def _embed(self, batch: Batch, place: Place, key: Array | None) -> Array:
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = super()._embed(batch, place, keys[0])
        if self.features is None:
            return x_BTD
        return x_BTD + self.features(batch["features"], jnp.dtype(self.config.dtype), keys[1])
