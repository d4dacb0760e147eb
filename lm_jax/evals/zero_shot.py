"""Images put into classes that the model was never trained to tell apart, by the texts that describe these."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.image_batches import Captioned, ImageBatches
from lm_jax.data.pixels import png_url
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.retrieval import embed
from lm_jax.models.base import ModelConfig


@dataclasses.dataclass(kw_only=True)
class ZeroShotConfig(EvalConfig):
    """Yields "accuracy", how many images of the split are nearest to the class that they are of, "largest_class", the share of the
    class with most images, and "num_images".

    An image is of the one of `classes` that stands as a word in its captions, in whatever case; those with none or with several
    are left out. A class is described by each of `templates` with its name in place of {} (CLIP, arXiv:2103.00020, section 3.1.4).
    `show` images appear with the class that was found.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    reads_batches: ClassVar[bool] = True

    name: str = "zero_shot"
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    show: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for fewer than two classes, equal ones, no template or one without {}."""
        super().validate()
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2 or self.show < 0:
            raise ConfigError(f"classes={self.classes} must be two or more different names, and show={self.show} not negative")
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ConfigError(f"templates={self.templates} must each have {{}} for the name of a class")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`. Raises `ConfigError` for a class that no image of the split is of."""
        super().check(model, data)
        found = {number for number, _ in self._labelled(data)}
        missing = [name for number, name in enumerate(self.classes) if number not in found]
        if missing:
            raise ConfigError(f"no image of {self.split!r} is of {', '.join(missing)} (and of no other of its classes)")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        labels, pictures = zip(*self._labelled(data), strict=True)
        prompts = [template.format(name) for name in self.classes for template in self.templates]
        of_prompt = np.repeat(np.arange(len(self.classes)), len(self.templates))
        images, texts = self._vectors(graph, params, data, put, rows, pictures, prompts)
        found, right = zero_shot(images, texts, of_prompt), np.array(labels)
        yield "accuracy", float(np.mean(found == right))
        yield "largest_class", float(np.bincount(right).max() / len(right))
        yield "num_images", float(len(right))
        for number in np.linspace(0, len(pictures) - 1, min(self.show, len(pictures))).astype(int):
            fields = {"image": png_url(pictures[number].pixels), "reference": self.classes[labels[number]]}
            yield Shown(pictures[number].name, self.classes[found[number]] if found[number] >= 0 else "", fields)

    def _labelled(self, data: Any) -> list[tuple[int, Captioned]]:
        """The images that are of one class, with its number."""
        patterns = [re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE) for name in self.classes]
        found = []
        for picture in data.pictures(self.split):
            text = "\n".join(picture.captions)
            numbers = [number for number, pattern in enumerate(patterns) if pattern.search(text)]
            if len(numbers) == 1:
                found.append((numbers[0], picture))
        return found

    def _vectors(
        self,
        graph: nnx.GraphDef,
        params: Params,
        data: Any,
        put: Callable[[Batch], Batch],
        rows: slice,
        pictures: Sequence[Captioned],
        prompts: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 [images, E] and [prompts, E], each read beside some of the others, which fill its row."""
        number = max(len(pictures), len(prompts))
        texts = [data.config.row(ids, data.tokenizer) for ids in data.tokenizer.encode_batch(prompts)]
        pairs = [pictures[i % len(pictures)]._replace(rows=(texts[i % len(texts)],)) for i in range(number)]
        length = self.length or data.config.length
        batches = ImageBatches(pairs, data.config.pixels, batch_size=self.batch_size, length=length, local=rows)
        images, vectors = embed(graph, params, map(put, batches), number)
        return images[: len(pictures)], vectors[: len(prompts)]


def zero_shot(images_IE: np.ndarray, prompts_PE: np.ndarray, classes_P: Sequence[int]) -> np.ndarray:
    """int [I]: the class of each image, whose prompts are nearest to it (CLIP, arXiv:2103.00020, section 3.1.4); -1 where vectors
    are not finite.

    The vector of a class is the mean of the unit vectors of its prompts, made a unit vector again. `classes_P` are the classes
    of the prompts, numbers from 0 on, each of which must have one.
    """
    number = max(classes_P) + 1
    if sorted(set(classes_P)) != list(range(number)):
        raise ConfigError(f"prompts are given of the classes {sorted(set(classes_P))}, which must be all numbers from 0 on")
    means_CE = np.stack([prompts_PE[np.asarray(classes_P) == c].mean(axis=0) for c in range(number)])
    means_CE /= np.linalg.norm(means_CE, axis=1, keepdims=True)
    cosines_IC = images_IE @ means_CE.T
    return np.where(np.isfinite(cosines_IC).all(axis=1), np.argmax(cosines_IC, axis=1), -1)
