"""A tagger: a classifier of every token of a text, which reads features of its words too."""

import dataclasses
from typing import ClassVar

from lm_jax.core.errors import ConfigError
from lm_jax.models.classifier import ClassifierConfig
from lm_jax.nn.features import FeaturesConfig


@dataclasses.dataclass(kw_only=True)
class TaggerConfig(ClassifierConfig):
    """Scores `classes` at every token; a word's tag is that of its first token. See `ClassifierConfig`, with `pool` "none"."""

    targets: ClassVar[frozenset[str]] = frozenset({"tags"})

    pool: str = "none"
    features: FeaturesConfig | None = dataclasses.field(default_factory=FeaturesConfig)

    def validate(self) -> None:
        """Raises `ConfigError` where a token would be scored from more than its own hidden state."""
        super().validate()
        if self.pool != "none":
            raise ConfigError(f"pool={self.pool!r}: the tokens of a text have tags of their own; take 'none'")
