"""Images with one or several captions each: for contrastive learning and for captioning."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.image_batches import Captioned, ImageBatches, ImageLoader
from lm_jax.data.image_table import ImageTable, Listed
from lm_jax.data.pixels import Augment, PixelsConfig
from lm_jax.data.sources import Counts, find_one
from lm_jax.data.supervised import PreparedSplits, SplitData, scored_bytes
from lm_jax.data.tokenizers import Tokenizer, encode_named


@dataclasses.dataclass(kw_only=True)
class ImageData(SplitData):
    """Base of the data of images with captions: a row of a batch is an image and one of its captions.

    `pixels` says how large images are, and the range of their numbers; they are kept in memory, 3 bytes a pixel. In a batch
    "images" are float32 [B, height, width, 3]. A file that cannot be read is an "error", or left out (counted) where `corrupt` is
    "skip".

    A caption longer than a row is cut (counted). Every epoch has each image once, in another order, with the next of its captions,
    from a random one on. `augment` changes training images only. See `SplitData`.
    """

    train: ImageTable
    validation: ImageTable | None = None
    test: ImageTable | None = None
    pixels: PixelsConfig = dataclasses.field(default_factory=PixelsConfig)
    corrupt: str = "error"
    augment: Augment | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or an unknown policy."""
        super().validate()
        check_choice("corrupt", self.corrupt, ("error", "skip"))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        pixels = (self.batch_size, self.pixels.height, self.pixels.width, 3)
        return super().shapes() | {"images": jax.ShapeDtypeStruct(pixels, np.float32)}

    def row(self, ids: np.ndarray, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """The arrays [T] of a caption, at most `length` tokens."""
        raise NotImplementedError

    def capacity(self) -> int:
        """Tokens of a caption that a row has room for, without those at its ends."""
        raise NotImplementedError

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: the texts are names of image files, of which captions are written."""
        images = np.stack([self.pixels.read(find_one(text)) for text in texts])
        return [[tokenizer.eos] for _ in texts], {"images": self.pixels.floats(images)}

    def make(self, items: dict[str, list[Listed]], counts: Counts) -> "PreparedImages":
        """See `SplitData.make`. Reads the images."""
        tokenizer = self.tokenizer.train(caption for image in items["train"] for caption in image.captions)
        read = {split: self._read(images, tokenizer, counts) for split, images in items.items()}
        examples = {split: images for split, images in read.items() if images or split == "train"}
        return PreparedImages(config=self, tokenizer=tokenizer, examples=examples)

    def _read(self, listed: list[Listed], tokenizer: Tokenizer, counts: Counts) -> list[Captioned]:
        found = []
        for image in listed:
            try:
                pixels = self.pixels.read(image.path)
            except DataError as error:
                if self.corrupt == "error":
                    raise DataError(f"{error}; leave such images out with corrupt='skip'") from error
                counts["images skipped: cannot be read"] += 1
                continue
            ids = encode_named(tokenizer, [(image.name, caption) for caption in image.captions])
            counts["captions cut to a row"] += sum(len(caption) > self.capacity() for caption in ids)
            rows = tuple(self.row(caption, tokenizer) for caption in ids)
            found.append(Captioned(image.name, pixels, image.captions, rows))
        return found


@dataclasses.dataclass(kw_only=True)
class ImageTextPairs(ImageData):
    """Images and texts to be compared: "memory_tokens" are a caption and an end-of-document token. See `ImageData`."""

    inputs: ClassVar[frozenset[str]] = frozenset({"images", "memory_tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def validate(self) -> None:
        """Raises `ConfigError` for rows without room for a word."""
        super().validate()
        if self.length < 2:
            raise ConfigError(f"length={self.length}: a row is a caption and an end-of-document token, at least 2")

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`: there is no text but what is compared."""
        text = jax.ShapeDtypeStruct((self.batch_size, self.length), np.int32)
        return {"images": super().shapes()["images"], "memory_tokens": text, "memory_segments": text}

    def capacity(self) -> int:
        """See `ImageData.capacity`."""
        return self.length - 1

    def row(self, ids: np.ndarray, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """See `ImageData.row`."""
        tokens = np.append(ids[: self.capacity()], tokenizer.eos).astype(np.int32)
        return {"memory_tokens": tokens, "memory_segments": np.ones_like(tokens)}


@dataclasses.dataclass(kw_only=True)
class ImageCaptions(ImageData):
    """Images and captions to be written, and for CoCa also compared. See `ImageData`.

    "tokens" are a caption between two end-of-document tokens. The last has nothing to predict (its weight is 0); it stands for the
    whole text. In a caption that was cut, the last word predicts nothing either.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"images", "tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"next words", "pairs", "captioned pairs"})

    def validate(self) -> None:
        """Raises `ConfigError` for rows without room for a word."""
        super().validate()
        if self.length < 3:
            raise ConfigError(f"length={self.length}: a row is a caption between two end-of-document tokens, at least 3")

    def capacity(self) -> int:
        """See `ImageData.capacity`."""
        return self.length - 2

    def row(self, ids: np.ndarray, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """See `ImageData.row`."""
        kept = ids[: self.capacity()]
        tokens = np.concatenate([[tokenizer.eos], kept, [tokenizer.eos]]).astype(np.int32)
        weights = np.ones(len(tokens), np.float32)
        weights[-1] = 0
        weights[-2] = len(kept) == len(ids)
        return {
            "tokens": tokens,
            "targets": np.append(tokens[1:], tokens[:1]),
            "weights": weights,
            "segments": np.ones_like(tokens),
            "positions": np.arange(len(tokens), dtype=np.int32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedImages(PreparedSplits):
    """See `PreparedSplits`: captioned images."""

    config: ImageData
    examples: dict[str, list[Captioned]]

    def pictures(self, split: str) -> list[Captioned]:
        """The images of a split, by the name that evals ask for."""
        return self.require(split)

    def outputs(self) -> str:
        """See `PreparedSplits.outputs`."""
        return f"{super().outputs()}; images of {self.config.pixels.height} x {self.config.pixels.width} pixels"

    def sizes(self, split: str) -> str:
        """See `PreparedSplits.sizes`."""
        images = self.examples[split]
        return f"{len(images):,} images, {sum(len(image.captions) for image in images):,} captions"

    def train_loader(self, rows: slice = slice(None)) -> ImageLoader:
        """Training batches, of which this process takes the given `rows`."""
        config = self.config
        return ImageLoader(
            self.require("train"),
            config.pixels,
            config.augment,
            batch_size=config.batch_size,
            length=config.length,
            seed=config.seed,
            local=rows,
        )

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> ImageBatches:
        """Every caption of the split once with its image, those of an image one after another; sizes default to those of
        training."""
        sizes = {"batch_size": batch_size or self.config.batch_size, "length": length or self.config.length}
        return ImageBatches(self.require(split), self.config.pixels, **sizes, local=rows)

    def num_bytes(self, split: str) -> int:
        """See `PreparedSplits.num_bytes`; 0 where captions are only compared."""
        if "targets" not in self.config.shapes():
            return 0
        rows = (row for image in self.require(split) for row in zip(image.captions, image.rows, strict=True))
        return sum(scored_bytes(caption, row, self.tokenizer) for caption, row in rows)
