"""A reader that answers questions with spans: it scores every token as the first and as the last of the answer."""

import dataclasses
from typing import ClassVar

from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array
from lm_jax.models.classifier import Classifier
from lm_jax.models.tagger import TaggerConfig


@dataclasses.dataclass(kw_only=True)
class SpanReaderConfig(TaggerConfig):
    """Two scores of every token, of an answer's start and of its end (as in BERT, arXiv:1810.04805, section 4.2).

    See `TaggerConfig`. `classes` is 2.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"spans"})

    def validate(self) -> None:
        """Raises `ConfigError` for another number of scores."""
        super().validate()
        if self.classes != 2:
            raise ConfigError(f"classes={self.classes} must be 2: the scores of start and end")

    @property
    def num_outputs(self) -> None:
        """None: it chooses among the tokens of a text, not from a fixed set."""
        return None

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`."""
        forward = self.stack.flops_per_token(self.width, length, causal=causal)
        return 3 * (forward + self.head.flops_per_token(self.width, self.classes))

    def build(self, key: Array) -> "SpanReader":
        """The model with parameters drawn from `key`."""
        return SpanReader(self, nnx.Rngs(params=key))


class SpanReader(Classifier):
    """See `SpanReaderConfig`."""

    def logits(self, hidden_BTD: Array) -> Array:
        """float32 [B, T, 2] of hidden states; in a local view the last dimension is this device's part."""
        return self.head(hidden_BTD, self.embedding.table, self.config.classes)
