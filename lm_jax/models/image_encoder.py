"""The image encoder: a ViT, alone or as a part of others."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param, weight
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import Output
from lm_jax.models.encoder import both_ways
from lm_jax.models.text import output_of
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.place import Place
from lm_jax.nn.stack import StackConfig


@dataclasses.dataclass(kw_only=True)
class ImageEncoderConfig(Config):
    """Patches and a stack (ViT, Dosovitskiy et al. 2020, arXiv:2010.11929).

    `pool` makes one vector of an image: "first", the class token, or "mean" of all. With `labels` it is projected to as many
    logits.
    """

    width: int = 768
    patches: PatchesConfig = dataclasses.field(default_factory=PatchesConfig)
    stack: StackConfig = dataclasses.field(default_factory=both_ways)
    pool: str = "first"
    labels: int = 0
    init: Init = dataclasses.field(default_factory=Init)
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype or pool, or heads that do not divide the width."""
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("pool", self.pool, ("first", "mean"))
        check_positive(self, "width")
        if self.pool == "first" and not self.patches.class_token:
            raise ConfigError("pool='first' is the class token, and patches.class_token=False: take pool='mean'")
        if self.labels < 0:
            raise ConfigError(f"labels={self.labels} must not be negative")
        self.stack.check(self.width)

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """See `ModelConfig.stacks`."""
        return {"stack": (self.width, self.stack)}

    def build(self, key: Array) -> "ImageEncoder":
        """The model with parameters drawn from `key`."""
        return ImageEncoder(self, nnx.Rngs(params=key))


class ImageEncoder(nnx.Module):
    """See `ImageEncoderConfig`."""

    def __init__(self, config: ImageEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.patches = config.patches.build(rngs, config.width, config.init)
        self.stack = config.stack.build(rngs, config.width, config.init)
        C, D = config.labels, config.width
        self.labels = param(rngs, config.init.linear(D), (D, C), ("embed", "inner")) if C else None
        self.labels_bias = param(rngs, zeros, (C,), ("inner",)) if C else None

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states [B, P, D], class token first, of `batch["images"]`, float [B, height, width, channels]."""
        with whole_rows():
            x_BPD = self.patches(batch["images"], jnp.dtype(self.config.dtype))
            positions = jnp.arange(x_BPD.shape[1], dtype=jnp.int32)[None, :]
            x_BPD, _, aux = self.stack(x_BPD, Place(positions, None), key=key)
            return output_of(x_BPD, aux, {"tokens": x_BPD[:, :, 0]})

    def pooled(self, hidden_BPD: Array) -> Array:
        """[B, D]: one vector of each image."""
        return hidden_BPD[:, 0] if self.config.pool == "first" else jnp.mean(hidden_BPD, axis=1)

    def logits(self, hidden_BPD: Array) -> Array:
        """float32 [B, labels]."""
        if self.labels is None or self.labels_bias is None:
            raise ConfigError("labels=0: this model has no logits")
        y_BC = project("BD,DC->BC", self.pooled(hidden_BPD), self.labels, jnp.float32)
        return y_BC + weight(self.labels_bias, y_BC)[None, :]
