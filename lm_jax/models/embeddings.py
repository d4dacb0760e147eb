"""What models give whose inputs come in pairs that are compared: images and texts, or two texts."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.types import Array, Mean
from lm_jax.nn.linear import project


class Embeddings(NamedTuple):
    """Unit vectors of both sides of the rows of a batch, and what their products are multiplied by and added to."""

    left: Array  # float32 [B, E]: of the images, or of the first texts
    right: Array  # float32 [B, E]: of the texts that belong to them
    scale: Array  # float32 []
    bias: Array | None  # float32 []; None: there is none
    loss: Array  # float32 []: the auxiliary loss of a token (a mean); 0 in dense models
    metrics: dict[str, Mean]

    def similarities(self) -> Array:
        """float32 [left, right] of this device's rows."""
        products = self.scale * self.left @ self.right.T
        return products if self.bias is None else products + self.bias


def projected(x_BD: Array, projection: nnx.Param) -> Array:
    """float32 [B, E]: projected, and of length 1."""
    return unit(project("BD,DE->BE", x_BD, projection, jnp.float32))


def unit(x_BE: Array) -> Array:
    """float32 [B, E] of length 1."""
    x_BE = x_BE.astype(jnp.float32)
    return x_BE / jnp.linalg.norm(x_BE, axis=-1, keepdims=True)
