"""A classifier of texts: an encoder, and a head that scores classes instead of words."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, own_tokens, part, whole_row
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.encoder import both_ways
from lm_jax.models.text import TextConfig, TextModel
from lm_jax.nn.dropout import dropout
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.place import Place
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class ClassifierConfig(TextConfig):
    """Scores `classes` at every token, from what `pool` makes of the text (segment) that the token is in.

    "none": its own hidden state (for tags, or for what the first token stands for, as in BERT); "mean" or "max" over the text,
    padding left out. The result passes through `dropout`. Vectors of the `features` of a token, such as of the n-grams that end
    there, are added to its own (None: they are not read). Other fields are as in `TextConfig`; the head is not tied.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classes"})

    classes: int = 2
    pool: str = "mean"
    dropout: float = 0.0
    features: FeaturesConfig | None = None
    stack: StackConfig = dataclasses.field(default_factory=both_ways)
    head: HeadConfig = dataclasses.field(default_factory=lambda: HeadConfig(tied=False, bias=True))

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown pool, fewer than 2 classes, a tied head or a dropout rate outside [0, 1)."""
        super().validate()
        check_choice("pool", self.pool, ("none", "mean", "max"))
        check_positive(self, "classes")
        if self.classes < 2 or self.head.tied or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"classes={self.classes} must be at least 2, head.tied={self.head.tied} False and dropout={self.dropout} in [0, 1)"
            )

    @property
    def inputs(self) -> frozenset[str]:  # type: ignore[override]
        """See `ModelConfig`."""
        return frozenset({"tokens"} if self.features is None else {"tokens", "features"})

    @property
    def num_outputs(self) -> int:
        """How many classes are scored."""
        return self.classes

    @property
    def head_size(self) -> int:
        """Columns of the head."""
        return self.classes

    def build(self, key: Array) -> "Classifier":
        """The model with parameters drawn from `key`."""
        return Classifier(self, nnx.Rngs(params=key))


class Classifier(TextModel):
    """See `ClassifierConfig`."""

    def __init__(self, config: ClassifierConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.features = None if config.features is None else config.features.build(rngs, config.width)

    def _embed(self, batch: Batch, place: Place, key: Array | None) -> Array:
        keys = (None, None) if key is None else jax.random.split(key)
        if self.features is None:
            return super()._embed(batch, place, key)
        x_BTD = super()._embed(batch, place, keys[0])
        return x_BTD + self.features(batch["features"], jnp.dtype(self.config.dtype), keys[1])

    def _hidden(self, batch: Batch, place: Place, key: Array | None) -> tuple[Array, Aux]:
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD, aux = super()._hidden(batch, place, keys[0])
        if self.config.pool != "none":
            whole_BTD = whole_row(all_gather(x_BTD, "residual", 1))
            segments_BT = jnp.ones(batch["tokens"].shape, jnp.int32) if place.segments_BT is None else place.segments_BT
            pooled_BTD = pooled(whole_BTD, whole_row(segments_BT), self.config.pool)
            x_BTD = part(own_tokens(pooled_BTD), "residual", 1)
        return dropout(x_BTD, self.config.dropout, keys[1], place.rows_B), aux


def pooled(x_BTD: Array, segments_BT: Array, pool: str) -> Array:
    """At every token the "mean" (added up in float32) or the "max" over the tokens of its segment, in the dtype of `x_BTD`."""
    T = x_BTD.shape[1]

    def row(x_TD: Array, segments_T: Array) -> Array:
        if pool == "max":
            return jax.ops.segment_max(x_TD, segments_T, T + 1)[segments_T]
        count = jax.ops.segment_sum(jnp.ones(T, jnp.float32), segments_T, T + 1)
        sums = jax.ops.segment_sum(x_TD.astype(jnp.float32), segments_T, T + 1)
        return (sums / jnp.maximum(count, 1)[:, None]).astype(x_TD.dtype)[segments_T]

    return jax.vmap(row)(x_BTD, segments_BT)
