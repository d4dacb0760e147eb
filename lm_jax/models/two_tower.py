"""An image encoder and a text encoder whose outputs are compared: CLIP and SigLIP are values of its config."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.base import ModelConfig
from lm_jax.models.embeddings import Embeddings, projected
from lm_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from lm_jax.models.text import read_whole
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class TwoTowerConfig(ModelConfig):
    """Both encoders, each projected to `projection` (CLIP, Radford et al. 2021, arXiv:2103.00020).

    The vector of a text is that of its first token `pool_token`, or where that is None of the token of the highest id. `pool_norm`
    is over the vector of an image. Similarities are multiplied by exp of a parameter that starts at `log_scale`, and a parameter
    that starts at `bias` is added (None: none; SigLIP, arXiv:2303.15343, starts at log_scale=log(10), bias=-10). `dtype` is that of
    the text; the image encoder has its own.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"images", "memory_tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})

    image: ImageEncoderConfig = dataclasses.field(default_factory=ImageEncoderConfig)
    pool_norm: NormConfig | None = None
    vocab_size: int = 49408
    width: int = 512
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    text: StackConfig = dataclasses.field(default_factory=StackConfig)
    pool_token: int | None = None
    projection: int = 512
    log_scale: float = math.log(1 / 0.07)
    bias: float | None = None
    init: Init = dataclasses.field(default_factory=Init)

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype, sizes out of range or a token that is none."""
        super().validate()
        check_positive(self, "width", "projection")
        self.text.check(self.width)
        if self.pool_token is not None and not 0 <= self.pool_token < self.vocab_size:
            raise ConfigError(f"pool_token={self.pool_token} is not in the vocabulary of {self.vocab_size}")

    @property
    def num_outputs(self) -> None:
        """See `ModelConfig.num_outputs`: what it chooses from are the others of the batch."""
        return None

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"image/stack": (self.image.width, self.image.stack), "text": (self.width, self.text)}

    def max_length(self) -> int | None:
        """See `ModelConfig.max_length`: of texts."""
        return self.embedding.max_length()

    def check_end(self, eos: int, num_tokens: int) -> None:
        """See `ModelConfig.check_end`: the end of a text is where its vector is taken."""
        if (num_tokens - 1 if self.pool_token is None else self.pool_token) != eos:
            raise ConfigError(f"model.pool_token={self.pool_token} is not where texts end; set --config.model.pool_token={eos}")

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """See `ModelConfig.flops_per_token`: of the text and its image, per token of the text."""
        patches = self.image.patches.num_tokens
        image = patches * self.image.stack.flops_per_token(self.image.width, patches, causal=False)
        return 3 * (self.text.flops_per_token(self.width, length, causal=causal) + image / length)

    def build(self, key: Array) -> "TwoTower":
        """The model with parameters drawn from `key`."""
        return TwoTower(self, nnx.Rngs(params=key))


class TwoTower(nnx.Module):
    """See `TwoTowerConfig`."""

    def __init__(self, config: TwoTowerConfig, rngs: nnx.Rngs):
        self.config = config
        D, E, init = config.width, config.projection, config.init
        self.image = ImageEncoder(config.image, rngs)
        self.image_norm = None if config.pool_norm is None else config.pool_norm.build(rngs, config.image.width)
        self.image_projection = param(rngs, init.linear(config.image.width), (config.image.width, E), ("embed", "inner"))
        self.embedding = config.embedding.build(rngs, config.vocab_size, D, init)
        self.text = config.text.build(rngs, D, init)
        self.text_projection = param(rngs, init.linear(D), (D, E), ("embed", "inner"))
        self.log_scale = param(rngs, nnx.initializers.constant(config.log_scale), (), ())
        self.bias = None if config.bias is None else param(rngs, nnx.initializers.constant(config.bias), (), ())

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Embeddings:
        """The vectors of `batch["images"]` [B, height, width, channels] and of the texts `batch["memory_tokens"]` [B, T], whose
        "memory_segments" are 0 at padding."""
        keys = (None, None) if key is None else jax.random.split(key)
        seen = self.image(batch, key=keys[0])
        image_BD = self.image.pooled(seen.hidden)
        image_BD = image_BD if self.image_norm is None else self.image_norm(image_BD)
        tokens, pool = batch["memory_tokens"], self.config.pool_token
        read = read_whole(self.embedding, self.text, tokens, batch.get("memory_segments"), self.config.dtype, keys[1])
        at_B = jnp.argmax(tokens if pool is None else tokens == pool, axis=1)
        text_BD = jnp.take_along_axis(read.hidden, at_B[:, None, None], axis=1)[:, 0]
        images, texts = projected(image_BD, self.image_projection), projected(text_BD, self.text_projection)
        bias = None if self.bias is None else weight(self.bias, images)
        scale = jnp.exp(weight(self.log_scale, images))
        both = Aux(seen.loss, seen.metrics) + Aux(read.loss, read.metrics)
        return Embeddings(images, texts, scale, bias, both.loss, both.metrics)

    def pair(self, batch: Batch, *, key: Array | None = None) -> Embeddings:
        """The same, by the name that all models of pairs have."""
        return self(batch, key=key)
