"""Contrastive losses of images and texts, or of two texts, over the global batch."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, all_sum, index, ways
from lm_jax.core.types import Array, Batch, Mean
from lm_jax.models.coca import CoCa
from lm_jax.models.embeddings import Embeddings
from lm_jax.models.sentence_encoder import SentenceEncoder
from lm_jax.models.two_tower import TwoTower
from lm_jax.objectives.base import ObjectiveConfig


@dataclasses.dataclass(kw_only=True)
class ContrastiveConfig(ObjectiveConfig):
    """Every image of the global batch is compared with every text of it; row i of both belong together. Of two texts (Reimers and
    Gurevych 2019, arXiv:1908.10084; Gao et al. 2021, arXiv:2104.08821) the first takes the place of the image.

    "softmax": the mean of two cross-entropies, of the right text given the image and of the right image given the text (CLIP,
    Radford et al. 2021, arXiv:2103.00020, figure 3); similarities are multiplied by at most `max_scale` (section 2.5), beyond
    which only a gradient that lowers the scale reaches it.
    "sigmoid": for each image the sum over all texts of -log sigmoid(z (scale x similarity + bias)), where z is 1 for the right text
    and -1 for all others (SigLIP, Zhai et al. 2023, arXiv:2303.15343, section 3.2); needs a model with a `bias`.

    Both in nats, a mean over images. With `step.accumulate` a micro-batch is compared with itself only.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})

    kind: str = "softmax"
    max_scale: float = 100.0

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown kind, a scale that is not positive, or chunks, which it has none of."""
        check_choice("kind", self.kind, ("softmax", "sigmoid"))
        check_positive(self, "max_scale")
        if self.chunks != 1:
            raise ConfigError(f"chunks={self.chunks}: a contrastive loss is not computed in chunks of a row; leave it 1")

    def build(self) -> "Contrastive":
        """The objective."""
        return Contrastive(self)


class Contrastive:
    """See `ContrastiveConfig`. (model, batch, key) -> {"loss", "contrastive", "accuracy", "scale", ...}."""

    def __init__(self, config: ContrastiveConfig):
        self.config = config

    def __call__(self, model: TwoTower | CoCa | SentenceEncoder, batch: Batch, *, key: Array | None = None) -> dict[str, Mean]:
        """Sums over the images, with their number as count."""
        pair = model.pair(batch, key=key)
        terms = self.terms(pair)
        loss = terms["contrastive"]
        return {"loss": Mean(loss.sum + pair.loss * loss.count, loss.count)} | terms | pair.metrics

    def terms(self, pair: Embeddings) -> dict[str, Mean]:
        """ "contrastive", the loss; "accuracy", how often the right text is the nearest of the batch to its image and the right
        image to its text, a mean of both; "scale", which similarities are multiplied by.

        Each device compares its images with the texts of all, and its texts with the images of all.
        """
        own, scale = len(pair.left), pair.scale
        if self.config.kind == "softmax":
            scale = capped(scale, self.config.max_scale)
        right_B = index("batch") * own + jnp.arange(own)
        by_image = scale * pair.left @ all_gather(pair.right, "batch", 0).T
        by_text = scale * pair.right @ all_gather(pair.left, "batch", 0).T
        hits_B = sum((jnp.argmax(x, axis=1) == right_B).astype(jnp.float32) for x in (by_image, by_text)) / 2
        if self.config.kind == "softmax":
            loss_B = (_cross_entropy(by_image, right_B) + _cross_entropy(by_text, right_B)) / 2
        elif pair.bias is None:
            raise ConfigError("kind='sigmoid' needs a model with a bias, such as model.bias=-10.0 with log_scale=log(10)")
        else:
            sign = jnp.where(right_B[:, None] == jnp.arange(by_image.shape[1])[None, :], 1.0, -1.0)
            loss_B = -jnp.sum(jax.nn.log_sigmoid(sign * (by_image + pair.bias)), axis=1)
        values = {"contrastive": loss_B, "accuracy": hits_B, "scale": jnp.broadcast_to(scale, loss_B.shape)}
        count = jnp.float32(own * ways("batch"))
        return {name: Mean(all_sum(jnp.sum(value_B), "batch"), count) for name, value_B in values.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def capped(x: Array, cap: float) -> Array:
    """min(x, cap), whose gradient is that of x, but 0 where that of the whole batch would raise an x beyond the cap: the loss can
    lower it again."""
    return jnp.minimum(x, cap)


def _capped_forward(x, cap):
    return capped(x, cap), x


def _capped_backward(cap, x, g):
    return (jnp.where((x > cap) & (all_sum(g, "batch") < 0), 0.0, g),)  # g is this device's part of the gradient


capped.defvjp(_capped_forward, _capped_backward)


def _cross_entropy(logits_BC: Array, right_B: Array) -> Array:
    right = jnp.take_along_axis(logits_BC, right_B[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits_BC, axis=1) - right
