"""An image encoder and a text encoder whose outputs are compared: CLIP is a value of its config."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param, weight
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Aux, Batch
from lm_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.linear import project
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import Place
from lm_jax.nn.stack import StackConfig


class Pair(NamedTuple):
    """Unit vectors of the images and texts of a batch, and the factor of their products."""

    images: Array  # float32 [B, E]
    texts: Array  # float32 [B, E]
    scale: Array  # float32 []
    aux: Aux

    def similarities(self) -> Array:
        """float32 [images, texts] of this device's rows."""
        return self.scale * self.images @ self.texts.T


@dataclasses.dataclass(kw_only=True)
class TwoTowerConfig(Config):
    """Both encoders, each projected to `projection` (CLIP, Radford et al. 2021, arXiv:2103.00020).

    The vector of a text is that of its first token `pool_token`, or where that is None of the token of the highest id. `pool_norm`
    is over the vector of an image. Similarities are multiplied by exp of a parameter that starts at `log_scale`.
    """

    image: ImageEncoderConfig = dataclasses.field(default_factory=ImageEncoderConfig)
    pool_norm: NormConfig | None = None
    vocab_size: int = 49408
    width: int = 512
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    text: StackConfig = dataclasses.field(default_factory=StackConfig)
    pool_token: int | None = None
    projection: int = 512
    log_scale: float = math.log(1 / 0.07)
    init: Init = dataclasses.field(default_factory=Init)

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or a token that is none."""
        check_positive(self, "vocab_size", "width", "projection")
        self.text.check(self.width)
        if self.pool_token is not None and not 0 <= self.pool_token < self.vocab_size:
            raise ConfigError(f"pool_token={self.pool_token} is not in the vocabulary of {self.vocab_size}")

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"image/stack": (self.image.width, self.image.stack), "text": (self.width, self.text)}

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

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Pair:
        """The vectors of `batch["images"]` [B, height, width, channels] and of the texts `batch["memory_tokens"]` [B, T], whose
        "memory_segments" are 0 at padding."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        seen = self.image(batch, key=keys[0])
        image_BD = self.image.pooled(seen.hidden)
        image_BD = image_BD if self.image_norm is None else self.image_norm(image_BD)
        tokens = batch["memory_tokens"]
        with whole_rows():
            place = Place(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], batch.get("memory_segments"))
            x_BTD = self.embedding(tokens, place.positions_BT, jnp.dtype(self.config.image.dtype), keys[1])
            x_BTD, _, aux = self.text(x_BTD, place, key=keys[2])
        pool = self.config.pool_token
        last_B = jnp.argmax(tokens if pool is None else tokens == pool, axis=1)
        text_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        vectors = (
            project("BD,DE->BE", x, matrix, jnp.float32)
            for x, matrix in ((image_BD, self.image_projection), (text_BD, self.text_projection))
        )
        images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in vectors)
        return Pair(images, texts, jnp.exp(weight(self.log_scale, images)), Aux(seen.loss, seen.metrics) + aux)
