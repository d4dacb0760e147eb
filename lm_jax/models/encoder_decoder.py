"""The encoder-decoder: the original Transformer, T5 and Whisper are values of its config."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather
from lm_jax.core.param import gathered
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.decoder import DecodeState, empty_slots, next_place
from lm_jax.models.encoder import both_ways
from lm_jax.models.text import Output, output_of, place_of
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.place import Memory, Place
from lm_jax.nn.stack import StackConfig


def _with_cross() -> StackConfig:
    return StackConfig(pattern=(BlockConfig(cross=AttentionConfig()),))


@dataclasses.dataclass(kw_only=True)
class EncoderDecoderConfig(Config):
    """An encoder whose output a causal stack attends to (Vaswani et al. 2017, arXiv:1706.03762).

    `source` is what the encoder reads: words of a table of its own, speech, or with None words of the table of `target`.
    Other fields are as in `TextConfig`.
    """

    vocab_size: int = 32128
    vocab_multiple: int = 1
    width: int = 512
    source: EmbeddingConfig | AudioConfig | None = None
    encoder: StackConfig = dataclasses.field(default_factory=both_ways)
    target: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    decoder: StackConfig = dataclasses.field(default_factory=_with_cross)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    init: Init = dataclasses.field(default_factory=Init)
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype, heads that do not divide the width, or a memory that nobody reads."""
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(self, "vocab_size", "vocab_multiple", "width")
        self.encoder.check(self.width)
        self.decoder.check(self.width)
        if any(block.cross is not None for block in self.encoder.layers):
            raise ConfigError("encoder: a block has cross attention, and there is nothing before the encoder to attend to")
        if not any(block.cross is not None for block in self.decoder.layers):
            raise ConfigError("decoder: no block has cross attention, so that nothing reads the encoder's output")

    @property
    def table_size(self) -> int:
        """Rows of the embedding, and columns of the head."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def stacks(self) -> dict[str, StackConfig]:
        """The stacks of the model, by the path of their parameters."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def max_length(self) -> int | None:
        """The longest target: that of its position table; None without one."""
        table = self.target.positions
        return None if table is None else table.length - table.offset

    def build(self, key: Array) -> "EncoderDecoder":
        """The model with parameters drawn from `key`."""
        return EncoderDecoder(self, nnx.Rngs(params=key))

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one training step per target token, where sources are as long as targets (`length`)."""
        forward = self.encoder.flops_per_token(self.width, length, causal=False)
        forward += self.decoder.flops_per_token(self.width, length, causal=causal)
        return 3 * (forward + self.head.flops_per_token(self.width, self.vocab_size))


class EncoderDecoder(nnx.Module):
    """See `EncoderDecoderConfig`."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.table_size, config.width
        sizes = (D,) if isinstance(config.source, AudioConfig) else (V, D)
        self.source = None if config.source is None else config.source.build(rngs, *sizes, config.init)
        self.encoder = config.encoder.build(rngs, D, config.init)
        self.target = config.target.build(rngs, V, D, config.init)
        self.decoder = config.decoder.build(rngs, D, config.init)
        self.head = config.head.build(rngs, V, D, config.init)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states of the targets `batch["tokens"]` [B, T] (see `TextModel`), given what `encode` reads.

        `key` drives dropout; None means evaluation.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        memory, aux = self.encode(batch, key=keys[0])
        place = place_of(batch)._replace(memory=memory)
        x_BTD = self.target(batch["tokens"], place.positions_BT, jnp.dtype(self.config.dtype), keys[1])
        x_BTD, _, more = self.decoder(x_BTD, place, key=keys[2])
        return output_of(x_BTD, aux + more, batch)

    def encode(self, batch: Batch, *, key: Array | None = None) -> tuple[Memory, Aux]:
        """The memory of `batch["memory_tokens"]` [B, S] or `batch["mels"]` [B, 2 S, bins].

        "memory_segments" [B, S] says which are padding (0), and which segment of the targets may see the others; 1 where it
        is not given. "memory_positions" [B, S] count from the start of the row where they are not given.
        """
        keys, dtype = (None, None) if key is None else jax.random.split(key), jnp.dtype(self.config.dtype)
        with whole_rows():
            if isinstance(self.config.source, AudioConfig):
                x_BSD = self.source(batch["mels"], dtype)
                positions = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None, :]
            else:
                tokens, positions = batch["memory_tokens"], batch.get("memory_positions")
                if positions is None:
                    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
                embedding = self.target if self.source is None else self.source
                x_BSD = embedding(tokens, positions, dtype, keys[0])
            segments = batch.get("memory_segments")
            x_BSD, _, aux = self.encoder(x_BSD, Place(positions, segments), key=keys[1])
        return Memory(x_BSD, jnp.ones(x_BSD.shape[:2], jnp.int32) if segments is None else segments), aux

    def logits(self, hidden_BTD: Array) -> Array:
        """float32 [B, T, V]: position t scores the token after it. In a local view V is this device's part of the vocabulary."""
        return self.head(hidden_BTD, self.target.table, self.config.vocab_size)

    def with_whole_head(self, like: Array) -> "EncoderDecoder":
        """This model with the head's matrix `gathered` for several uses: by chunks of the loss, or as embedding too."""
        matrix = self.target.table if self.head.matrix is None else self.head.matrix
        is_param = lambda x: isinstance(x, nnx.Param)  # noqa: E731
        return jax.tree.map(lambda p: gathered(p, like) if p is matrix else p, self, is_leaf=is_param)

    def init_cache(self, batch_size: int, length: int, context: int | None = None, *, inputs: Batch) -> DecodeState:
        """A cache for targets of up to `length` tokens, given what `encode` reads of each of the `batch_size` rows."""
        memory, _ = self.encode(inputs)
        caches = self.decoder.init_caches(batch_size, length, self.config.width, jnp.dtype(self.config.dtype))
        info = empty_slots(self.config.decoder, batch_size, length, context)
        # Targets are segment 1 while they are decoded.
        readable = (memory.segments_BS > 0).astype(jnp.int32)
        return DecodeState(self.decoder.remember(caches, memory.x_BSD), info._replace(memory_BS=readable))

    def decode(self, tokens_BT: Array, state: DecodeState, weights_BT: Array | None = None) -> tuple[Array, DecodeState]:
        """float32 logits [B, T, V] of the next T target tokens, and the state with them added; see `Decoder.decode`."""
        caches, info = state
        place, info = next_place(tokens_BT, info, weights_BT)
        x_BTD = self.target(tokens_BT, place.positions_BT, jnp.dtype(self.config.dtype), None)
        x_BTD, caches, _ = self.decoder(x_BTD, place, caches=caches, info=info)
        state = DecodeState(caches, info._replace(index=info.index + tokens_BT.shape[1]))
        return all_gather(self.logits(x_BTD), "vocab", 2), state
