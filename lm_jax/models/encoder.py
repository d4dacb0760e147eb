"""The text encoder: BERT, RoBERTa and ModernBERT are values of its config."""

import dataclasses
from typing import ClassVar

from flax import nnx

from lm_jax.core.types import Array
from lm_jax.models.text import TextConfig, TextModel
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.stack import StackConfig


def both_ways() -> StackConfig:
    """A stack of attention that is not causal."""
    return StackConfig(pattern=(BlockConfig(mixer=AttentionConfig(causal=False)),))


@dataclasses.dataclass(kw_only=True)
class EncoderConfig(TextConfig):
    """A model of whole texts, every token of which sees all others; its head scores what stands at a position. See `TextConfig`."""

    targets: ClassVar[frozenset[str]] = frozenset({"masked words"})

    stack: StackConfig = dataclasses.field(default_factory=both_ways)

    def build(self, key: Array) -> "Encoder":
        """The model with parameters drawn from `key`."""
        return Encoder(self, nnx.Rngs(params=key))


class Encoder(TextModel):
    """See `EncoderConfig`."""
