"""An encoder of speech that scores the vocabulary at every position: for connectionist temporal classification."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_sum
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import ModelConfig, Output
from lm_jax.models.encoder import both_ways
from lm_jax.nn.dropout import dropout
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.place import Place
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class SpeechEncoderConfig(ModelConfig):
    """Convolutions over a spectrogram, a stack that sees all of it, and a head over the vocabulary.

    `blank` is the token that stands for nothing (Graves et al. 2006): one that no transcript holds, as the end of a document, 0 in
    tokenizers of characters and of words. What the stack reads passes through `dropout`.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"transcripts"})

    width: int = 256
    source: AudioConfig = dataclasses.field(default_factory=AudioConfig)
    encoder: StackConfig = dataclasses.field(default_factory=both_ways)
    head: HeadConfig = dataclasses.field(default_factory=lambda: HeadConfig(tied=False, bias=True))
    init: Init = dataclasses.field(default_factory=Init)
    blank: int = 0
    dropout: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for heads that do not divide the width, a tied head, or values out of range."""
        super().validate()
        check_positive(self, "width")
        self.encoder.check(self.width)
        if self.head.tied or not 0 <= self.dropout < 1:
            raise ConfigError(f"head.tied={self.head.tied} must be False, and dropout={self.dropout} in [0, 1)")
        if not 0 <= self.blank < self.vocab_size:
            raise ConfigError(f"blank={self.blank} is not in the vocabulary of {self.vocab_size}")
        for block in self.encoder.layers:
            if block.cross is not None:
                raise ConfigError("encoder: a block has cross attention, and there is nothing to attend to")

    @property
    def inputs(self) -> frozenset[str]:  # type: ignore[override]
        """What the convolutions read."""
        return frozenset({self.source.reads})

    @property
    def num_outputs(self) -> None:
        """See `ModelConfig.num_outputs`: a transcript is no choice from a fixed set."""
        return None

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"encoder": (self.width, self.encoder)}

    def max_length(self) -> None:
        """See `ModelConfig.max_length`: it reads no tokens."""
        return None

    def check_data(self, shapes: dict[str, jax.ShapeDtypeStruct], rate: int | None) -> None:
        """See `ModelConfig.check_data`."""
        if rate is not None:
            self.source.check_rate(rate)

    def check_end(self, eos: int, num_tokens: int) -> None:
        """See `ModelConfig.check_end`."""
        if self.blank != eos:
            raise ConfigError(f"model.blank={self.blank} may stand in transcripts; set --config.model.blank={eos}, their end")

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """As `ModelConfig.flops_per_token`, per target token, for utterances of `source.length` positions."""
        encoder = self.encoder.flops_per_token(self.width, self.source.length, causal=False)
        return 3 * (encoder + self.head.flops_per_token(self.width, self.vocab_size)) * self.source.length / length

    def build(self, key: Array) -> "SpeechEncoder":
        """The model with parameters drawn from `key`."""
        return SpeechEncoder(self, nnx.Rngs(params=key))


class SpeechEncoder(nnx.Module):
    """See `SpeechEncoderConfig`."""

    def __init__(self, config: SpeechEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.source = config.source.build(rngs, config.width, config.init)
        self.encoder = config.encoder.build(rngs, config.width, config.init)
        self.head = config.head.build(rngs, config.vocab_size, config.width, config.init)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states [B, S, D] of what `Audio.hear` reads. `key` drives dropout and SpecAugment; None means evaluation."""
        return self.hear(batch, key=key)[0]

    def hear(self, batch: Batch, *, key: Array | None = None) -> tuple[Output, Array]:
        """As a call, and int32 [B, S]: 1 where there is speech, 0 at padding."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        with whole_rows():
            x_BSD, segments_BS = self.source.hear(batch, jnp.dtype(self.config.dtype), keys[0])
            if segments_BS is None:
                segments_BS = jnp.ones(x_BSD.shape[:2], jnp.int32)
            x_BSD = dropout(x_BSD, self.config.dropout, keys[1])
            positions = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None, :]
            x_BSD, _, aux = self.encoder(x_BSD, Place(positions, segments_BS), key=keys[2])
            if not aux.metrics:
                return Output(x_BSD, aux.loss, {}), segments_BS
            count = all_sum(jnp.sum(segments_BS > 0).astype(jnp.float32), "batch")
            return Output(x_BSD, aux.loss / jnp.maximum(count, 1.0), aux.metrics), segments_BS

    def logits(self, hidden_BSD: Array) -> Array:
        """float32 [B, S, V] of hidden states; in a local view V is this device's part of the vocabulary."""
        with whole_rows():
            return self.head(hidden_BSD, None, self.config.vocab_size)
