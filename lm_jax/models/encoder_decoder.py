"""The encoder-decoder: the original Transformer, T5, Whisper and a captioner of images are values of its config."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.decoder import Decoder, DecoderConfig, DecodeState
from lm_jax.models.encoder import both_ways
from lm_jax.models.text import for_targets
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import AudioConfig, PatchesConfig
from lm_jax.nn.place import Memory, Place
from lm_jax.nn.stack import StackConfig


def _with_cross() -> StackConfig:
    return StackConfig(pattern=(BlockConfig(cross=AttentionConfig()),))


@dataclasses.dataclass(kw_only=True)
class EncoderDecoderConfig(DecoderConfig):
    """A decoder whose blocks attend to the output of an encoder (Vaswani et al. 2017, arXiv:1706.03762).

    `source` is what the encoder reads: words of a table of its own, speech, images, or with None words of the table of the
    targets. `embedding` and `stack` are those of the targets; other fields are as in `TextConfig`.
    """

    source: EmbeddingConfig | AudioConfig | PatchesConfig | None = None
    encoder: StackConfig = dataclasses.field(default_factory=both_ways)
    stack: StackConfig = dataclasses.field(default_factory=_with_cross)

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype, heads that do not divide the width, or a memory that nobody reads."""
        super().validate()
        self.encoder.check(self.width)
        if any(block.cross is not None for block in self.encoder.layers):
            raise ConfigError("encoder: a block has cross attention, and there is nothing before the encoder to attend to")
        if not any(block.cross is not None for block in self.stack.layers):
            raise ConfigError("stack: no block has cross attention, so that nothing reads the encoder's output")

    @property
    def inputs(self) -> frozenset[str]:  # type: ignore[override]
        """Beside "tokens" what the encoder reads."""
        if isinstance(self.source, AudioConfig):
            return frozenset({"tokens", self.source.reads})
        return frozenset({"tokens", "images" if isinstance(self.source, PatchesConfig) else "memory_tokens"})

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"encoder": (self.width, self.encoder), "stack": (self.width, self.stack)}

    def build(self, key: Array) -> "EncoderDecoder":
        """The model with parameters drawn from `key`."""
        return EncoderDecoder(self, nnx.Rngs(params=key))

    def check_data(self, shapes: dict[str, jax.ShapeDtypeStruct], rate: int | None) -> None:
        """See `ModelConfig.check_data`."""
        if isinstance(self.source, AudioConfig) and rate is not None:
            self.source.check_rate(rate)
        memory, table = shapes.get("memory_tokens"), self.embedding if self.source is None else self.source
        if memory is not None and isinstance(table, EmbeddingConfig):
            limit = table.max_length()
            if limit is not None and memory.shape[1] > limit:
                raise ConfigError(f"data.memory_length={memory.shape[1]} exceeds the position table of {limit} of the encoder")

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """As `TextConfig.flops_per_token`, per target token, where sources are as long as targets (`length`)."""
        encoder = self.encoder.flops_per_token(self.width, length, causal=False)
        return 3 * encoder + super().flops_per_token(length, causal=causal)


class EncoderDecoder(Decoder):
    """See `EncoderDecoderConfig`."""

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        D, init = config.width, config.init
        sizes = (config.table_size, D) if isinstance(config.source, EmbeddingConfig) else (D,)
        self.source = None if config.source is None else config.source.build(rngs, *sizes, init)
        self.encoder = config.encoder.build(rngs, D, init)
        super().__init__(config, rngs)

    def _hidden(self, batch: Batch, place: Place, key: Array | None) -> tuple[Array, Aux]:
        keys = (None, None) if key is None else jax.random.split(key)
        memory, aux = self.encode(batch, key=keys[0])
        x_BTD, more = super()._hidden(batch, place._replace(memory=memory), keys[1])
        return x_BTD, for_targets(aux, memory, batch) + more

    def encode(self, batch: Batch, *, key: Array | None = None, at_once: bool = False) -> tuple[Memory, Aux]:
        """The memory of `batch["memory_tokens"]` [B, S], `batch["images"]`, or what `Audio.hear` reads.

        "memory_segments" [B, S] says which are padding (0), and which segment of the targets may see the others; 1 where it
        is not given, but for waveforms, whose padding follows from "samples". "memory_positions" [B, S] count from the start
        of the row where they are not given. `at_once` is as in `Stack`.
        """
        keys, dtype = (None, None) if key is None else jax.random.split(key), jnp.dtype(self.config.dtype)
        with whole_rows():
            positions, segments = batch.get("memory_positions"), batch.get("memory_segments")
            if isinstance(self.config.source, AudioConfig):
                x_BSD, segments = self.source.hear(batch, dtype, keys[0])
            elif isinstance(self.config.source, PatchesConfig):
                x_BSD = self.source(batch["images"], dtype)
            else:
                tokens = batch["memory_tokens"]
                embedding = self.embedding if self.source is None else self.source
                if positions is None:
                    _check_length(tokens.shape[1], embedding.config.max_length())
                    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
                x_BSD = embedding(tokens, positions, dtype, keys[0])
            if positions is None:
                positions = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None, :]
            x_BSD, _, aux = self.encoder(x_BSD, Place(positions, segments), key=keys[1], at_once=at_once)
        return Memory(x_BSD, jnp.ones(x_BSD.shape[:2], jnp.int32) if segments is None else segments), aux

    def init_cache(
        self, batch_size: int, length: int, context: int | None = None, *, inputs: Batch, prefix: bool = False
    ) -> DecodeState:
        """A cache for targets of up to `length` tokens, given what `encode` reads of each of the `batch_size` rows."""
        memory, _ = self.encode(inputs, at_once=True)
        caches, info = super().init_cache(batch_size, length, context, prefix=prefix)
        # Targets are segment 1 while they are decoded.
        readable = (memory.segments_BS > 0).astype(jnp.int32)
        return DecodeState(self.stack.remember(caches, memory.x_BSD), info._replace(memory_BS=readable))


def _check_length(length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise ConfigError(f"a text of {length} tokens exceeds the position table of {limit} of the encoder; give a shorter one")
