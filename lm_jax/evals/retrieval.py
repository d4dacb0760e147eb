"""Finding the texts of an image and the image of a text among all those of a split."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs
from lm_jax.core.types import Array, Batch
from lm_jax.data.pixels import png_url
from lm_jax.evals.base import EvalConfig, Shown


@dataclasses.dataclass(kw_only=True)
class RetrievalConfig(EvalConfig):
    """Yields, for each k of `at`, "image_to_text_recall@k": the share of images one of whose texts is among the k nearest of all
    texts of the split, and "text_to_image_recall@k": the share of texts whose image is among the k nearest of all images. Beside
    them "..._chance@k", what a random order gives. A wrong one that is as near counts as nearer, and so does one whose vector is
    not finite.

    `show` images appear with the texts that are nearest to them.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    reads_batches: ClassVar[bool] = True

    at: tuple[int, ...] = (1, 5, 10)
    show: int = 8

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        if not self.at or min(self.at) < 1 or self.show < 0:
            raise ConfigError(f"at={self.at} must be numbers above 0, and show={self.show} not negative")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        pictures = data.pictures(self.split)
        batches = data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows)
        of_text = np.repeat(np.arange(len(pictures)), [len(picture.captions) for picture in pictures])
        images, texts = embed(graph, params, map(put, batches), len(of_text))
        first = np.flatnonzero(np.diff(of_text, prepend=-1))  # every image stands before each of its texts
        images = images[first]
        ranks = {"image_to_text": text_ranks(images, texts, of_text), "text_to_image": image_ranks(images, texts, of_text)}
        for name, found in ranks.items():
            for k in self.at:
                yield f"{name}_recall@{k}", float(np.mean(found < k))
        for k in self.at:
            yield f"image_to_text_chance@{k}", text_chance(np.bincount(of_text), k)
            yield f"text_to_image_chance@{k}", min(k / len(images), 1.0)
        captions = [caption for picture in pictures for caption in picture.captions]
        for number in np.linspace(0, len(pictures) - 1, min(self.show, len(pictures))).astype(int):
            near = np.argsort(-(texts @ images[number]), kind="stable")[:5]
            fields = {"image": png_url(pictures[number].pixels), "reference": " / ".join(pictures[number].captions)}
            yield Shown(pictures[number].name, " / ".join(captions[i] for i in near), fields)


def embed(graph: nnx.GraphDef, params: Params, batches: Iterator[Batch], number: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [number, E] twice: the unit vectors of the images and of the texts of the first `number` rows."""
    found = [jax.device_get(pair_vectors(params, batch, graph=graph)) for batch in batches]
    images, texts = (np.concatenate(vectors)[:number] for vectors in zip(*found, strict=True))
    return images, texts


@functools.partial(jax.jit, static_argnames="graph")
def pair_vectors(params: Params, batch: Batch, *, graph: nnx.GraphDef) -> tuple[Array, Array]:
    """float32 [B, E] twice: the unit vectors of both sides of all rows of the batch."""

    def local(params: Params, batch: Batch) -> tuple[Array, Array]:
        pair = nnx.merge(graph, params).pair(batch)
        return all_gather(pair.left, "batch", 0), all_gather(pair.right, "batch", 0)

    # Gathered vectors are the same on every device, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)


def text_ranks(images_IE: np.ndarray, texts_TE: np.ndarray, of_text_T: np.ndarray) -> np.ndarray:
    """int [I]: how many texts of others are at least as near to each image as the nearest of its own."""
    ranks = np.empty(len(images_IE), np.int64)
    for number, image_E in enumerate(images_IE):
        near_T, own_T = texts_TE @ image_E, of_text_T == number
        ranks[number] = np.sum(~(near_T[~own_T] < near_T[own_T].max()))  # true of nan too
    return ranks


def image_ranks(images_IE: np.ndarray, texts_TE: np.ndarray, of_text_T: np.ndarray) -> np.ndarray:
    """int [T]: how many other images are at least as near to each text as its own."""
    ranks = np.empty(len(texts_TE), np.int64)
    for number, (text_E, own) in enumerate(zip(texts_TE, of_text_T, strict=True)):
        near_I = images_IE @ text_E
        ranks[number] = np.sum(~(near_I < near_I[own])) - 1
    return ranks


def text_chance(texts_of_image_I: np.ndarray, k: int) -> float:
    """The recall at k of texts in a random order: for an image with c of n texts 1 - C(n - c, k) / C(n, k), a mean over images."""
    n = int(texts_of_image_I.sum())
    if k >= n:
        return 1.0
    return float(np.mean([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in texts_of_image_I]))
