"""Captioned images as batches: for training a pure function of the step, and a split once."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lm_jax.core.config import to_json
from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch
from lm_jax.data.pixels import Augment, PixelsConfig
from lm_jax.data.shuffle import permute, random_bits

FORMAT = 1  # raised whenever the same images would give other batches than before


class Captioned(NamedTuple):
    """An image, its captions, and the arrays [T] of a row with each."""

    name: str
    pixels: np.ndarray  # uint8 [height, width, 3]
    captions: tuple[str, ...]
    rows: tuple[dict[str, np.ndarray], ...]


class ImageLoader:
    """Training batches: `loader(step)` is a pure function, without end.

    Each epoch has all images once, in another order, each with the next of its captions, from a random one on.
    """

    def __init__(
        self,
        images: list[Captioned],
        pixels: PixelsConfig,
        augment: Augment | None = None,
        *,
        batch_size: int,
        length: int,
        seed: int = 0,
        local: slice = slice(None),
    ):
        """A loader of which this process takes the rows `local` of every batch. Raises `DataError` for less than a batch."""
        if len(images) < batch_size:
            raise DataError(
                f"there are {len(images)} training images, fewer than one batch of batch_size={batch_size}: give more, or a "
                "smaller batch_size"
            )
        self._images, self._pixels, self._augment = images, pixels, augment
        self.batch_size, self._length, self._seed, self._local = batch_size, length, seed, local
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "images": _hash(images),
            "pixels": to_json(pixels),
            "augment": None if augment is None else to_json(augment),
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
        }

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0)."""
        numbers, captions = self._drawn(step)
        chosen = [(self._images[n], c) for n, c in zip(numbers[self._local], captions[self._local], strict=True)]
        pixels = np.stack([image.pixels for image, _ in chosen])
        if self._augment is not None:
            pixels = self._augment.apply(pixels, np.arange(self.batch_size)[self._local], self._seed, step)
        return {"images": self._pixels.floats(pixels)} | padded([image.rows[c] for image, c in chosen], self._length)

    def documents(self, step: int) -> list[list[str]]:
        """The name of the image in each row of the global batch `step`, and the number of its caption."""
        return [[f"{self._images[n].name}:{c}"] for n, c in zip(*self._drawn(step), strict=True)]

    def _drawn(self, step: int) -> tuple[list[int], list[int]]:
        """For each row of the global batch the image, and which of its captions."""
        epoch, index = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self._images))
        numbers = permute(index, len(self._images), seed=self._seed, epoch=epoch)
        of_image = np.array([len(self._images[n].captions) for n in numbers], np.uint64)
        captions = (random_bits(self._seed, 1, numbers) % of_image + epoch.astype(np.uint64)) % of_image
        return numbers.tolist(), captions.tolist()


class ImageBatches:
    """All captions of a split once with their images, in batches of one shape: the last one is filled with rows of padding."""

    def __init__(self, images: list[Captioned], pixels: PixelsConfig, *, batch_size: int, length: int, local: slice = slice(None)):
        """The batches, of which this process takes the rows `local`. Raises `DataError` for a caption longer than `length`."""
        self._pixels, self._batch_size, self._length, self._local = pixels, batch_size, length, local
        self._rows = [(row, image.pixels) for image in images for row in image.rows]
        longest = max(_length(row) for row, _ in self._rows)
        if longest > length:
            raise DataError(f"a caption takes {longest} tokens, more than the {length} of a row; leave the eval's length None")

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        row, pixels = self._rows[0]
        none = {name: value[:0] for name, value in row.items()}, np.zeros_like(pixels)
        for first in range(0, len(self._rows), self._batch_size):
            chosen = self._rows[first : first + self._batch_size]
            chosen = (chosen + [none] * (self._batch_size - len(chosen)))[self._local]
            images = self._pixels.floats(np.stack([pixels for _, pixels in chosen]))
            yield {"images": images} | padded([row for row, _ in chosen], self._length)


def padded(rows: list[dict[str, np.ndarray]], length: int) -> Batch:
    """The arrays [T] of rows as arrays [B, length], 0 where a row is shorter."""
    batch = {name: np.zeros((len(rows), length), value.dtype) for name, value in rows[0].items()}
    for at, row in enumerate(rows):
        for name, value in row.items():
            batch[name][at, : len(value)] = value
    return batch


def _length(row: dict[str, np.ndarray]) -> int:
    return len(next(iter(row.values())))


def _hash(images: list[Captioned]) -> str:
    """SHA-256 of all pixels and captions, in order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.pixels.tobytes() + json.dumps(image.captions).encode())
    return digest.hexdigest()
