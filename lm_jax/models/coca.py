"""CoCa: one model that compares images with texts and writes captions of images."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, all_sum, token_index
from lm_jax.core.param import param, weight
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import Output
from lm_jax.models.decoder import DecodeState, next_place
from lm_jax.models.embeddings import Embeddings, projected
from lm_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from lm_jax.models.text import for_targets, output_of, place_of
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import Memory, Place
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class CoCaConfig(EncoderDecoderConfig):
    """A captioner of images whose lower layers of text do not see the image (Yu et al. 2022, arXiv:2205.01917, section 3.2).

    `source` and `encoder` read the image. `text` are the unimodal layers: the last token of a row, an end-of-document token that
    sees the whole text, gives the vector of the text. `stack` are the multimodal layers above them, which attend to the image and
    from which the next words are scored. The vector of an image is what one learned query gathers by `pool` from the encoder's
    output (attentional pooling); the multimodal layers read that output as it is, where the paper pools it into 256 first.

    `projection`, `log_scale` and `bias` are as in `TwoTowerConfig`, all other fields as in `EncoderDecoderConfig`.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words", "pairs", "captioned pairs"})

    source: PatchesConfig = dataclasses.field(default_factory=lambda: PatchesConfig(class_token=False))
    text: StackConfig = dataclasses.field(default_factory=StackConfig)
    pool: AttentionConfig = dataclasses.field(default_factory=lambda: AttentionConfig(causal=False))
    pool_norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    projection: int = 512
    log_scale: float = math.log(1 / 0.07)
    bias: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range, and for layers that the model does not have."""
        super().validate()
        check_positive(self, "projection")
        self.text.check(self.width)
        self.text.check_causal()
        self.pool.check(self.width)
        if any(block.cross is not None for block in self.text.layers):
            raise ConfigError("text: a block has cross attention; the unimodal layers do not see the image")
        if self.text.prelude or self.stack.prelude or self.multi_token is not None:
            raise ConfigError("text.prelude and stack.prelude must be empty, and multi_token None")

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return super().stacks() | {"text": (self.width, self.text)}

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`: of the text and its image, per token of the text."""
        patches = self.source.num_tokens
        image = patches * self.encoder.flops_per_token(self.width, patches, causal=False) / length
        text = sum(stack.flops_per_token(self.width, length, causal=causal) for stack in (self.text, self.stack))
        return 3 * (image + text + self.head.flops_per_token(self.width, self.num_outputs))

    def build(self, key: Array) -> "CoCa":
        """The model with parameters drawn from `key`."""
        return CoCa(self, nnx.Rngs(params=key))


class CoCa(EncoderDecoder):
    """See `CoCaConfig`."""

    config: CoCaConfig

    def __init__(self, config: CoCaConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        D, E, init = config.width, config.projection, config.init
        self.text = config.text.build(rngs, D, init)
        self.query = param(rngs, init.embedding(), (D,), ("embed",))
        self.pool = config.pool.build(rngs, D, init, 1)
        self.pool_norm = config.pool_norm.build(rngs, D)
        self.image_projection = param(rngs, init.linear(D), (D, E), ("embed", "inner"))
        self.text_projection = param(rngs, init.linear(D), (D, E), ("embed", "inner"))
        self.log_scale = param(rngs, nnx.initializers.constant(config.log_scale), (), ())
        self.bias = None if config.bias is None else param(rngs, nnx.initializers.constant(config.bias), (), ())

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states [B, T, D] from which the next words of `batch["tokens"]` are scored, given `batch["images"]`."""
        return self.both(batch, key=key)[1]

    def pair(self, batch: Batch, *, key: Array | None = None) -> Embeddings:
        """The vectors of `batch["images"]` and of the texts `batch["tokens"]` [B, T], one in each row, whose "segments" are 0 at
        padding."""
        return self.both(batch, key=key)[0]

    def both(self, batch: Batch, *, key: Array | None = None) -> tuple[Embeddings, Output]:
        """`pair` and the hidden states, by one pass over each layer. The auxiliary loss is in the second."""
        place, keys = place_of(batch), (None,) * 4 if key is None else jax.random.split(key, 4)
        memory, aux = self.encode(batch, key=keys[0])
        x_BTD = self.embedding(batch["tokens"], place.positions_BT, jnp.dtype(self.config.dtype), keys[1])
        x_BTD, _, more = self.text(x_BTD, place, key=keys[2])
        images = projected(self._image(memory), self.image_projection)
        texts = projected(last_token(x_BTD, batch.get("segments")), self.text_projection)
        bias = None if self.bias is None else weight(self.bias, images)
        pair = Embeddings(images, texts, jnp.exp(weight(self.log_scale, images)), bias, jnp.zeros((), jnp.float32), {})
        x_BTD, _, top = self.stack(x_BTD, place._replace(memory=memory), key=keys[3])
        return pair, output_of(x_BTD, for_targets(aux, memory, batch) + more + top, batch)

    def _image(self, memory: Memory) -> Array:
        """[B, D]: what the query gathers from the image."""
        B, _, D = memory.x_BSD.shape
        with whole_rows():
            query = jnp.broadcast_to(weight(self.query, memory.x_BSD)[None, None, :], (B, 1, D))
            place = Place(jnp.zeros((1, 1), jnp.int32), None)
            pooled_B1D = self.pool.read(query, place, self.pool.remember(memory.x_BSD), memory.segments_BS)
        return self.pool_norm(pooled_B1D[:, 0])

    def init_cache(
        self, batch_size: int, length: int, context: int | None = None, *, inputs: Batch, prefix: bool = False
    ) -> DecodeState:
        """See `EncoderDecoder.init_cache`; the caches of the unimodal layers come first."""
        caches, info = super().init_cache(batch_size, length, context, inputs=inputs, prefix=prefix)
        own = self.text.init_caches(batch_size, length, self.config.width, jnp.dtype(self.config.dtype))
        return DecodeState(own + caches, info)

    def decode(
        self, tokens_BT: Array, state: DecodeState, weights_BT: Array | None = None, prefix_BT: Array | None = None
    ) -> tuple[Array, DecodeState]:
        """See `Decoder.decode`."""
        (caches, info), first = state, len(self.config.text.pattern)
        place, info = next_place(tokens_BT, info, weights_BT, prefix_BT)
        x_BTD = self.embedding(tokens_BT, place.positions_BT, jnp.dtype(self.config.dtype), None)
        x_BTD, own, _ = self.text(x_BTD, place, caches=caches[:first], info=info)
        x_BTD, rest, _ = self.stack(x_BTD, place, caches=caches[first:], info=info)
        state = DecodeState(own + rest, info._replace(index=info.index + tokens_BT.shape[1]))
        return all_gather(self.logits(x_BTD), "vocab", 2), state


def last_token(x_BTD: Array, segments_BT: Array | None) -> Array:
    """[B, D]: the vector of the last token of each row that is no padding, which stands at the end of the row.

    `x_BTD` are this device's tokens of the residual stream, and the result is the same on all devices of the row.
    """
    index_T = token_index(x_BTD.shape[1], residual=True)
    if segments_BT is None:
        segments_BT = jnp.ones((x_BTD.shape[0], x_BTD.shape[1]), jnp.int32)
        last_B = all_sum(jnp.sum(segments_BT, axis=1), "sequence", "residual") - 1
    else:
        last_B = all_sum(jnp.sum((segments_BT > 0).astype(jnp.int32), axis=1), "sequence") - 1
    found = jnp.where((index_T[None, :] == last_B[:, None])[:, :, None], x_BTD, 0)
    return all_sum(jnp.sum(found, axis=1), "sequence", "residual")
