"""Images: read from files, brought to one size, changed at random, and as numbers."""

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.shuffle import random_bits


def pillow() -> Any:
    """The module PIL.Image. Raises `DataError` where Pillow is not installed."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError("images need the extra: pip install 'lm_jax[images]'") from error
    return Image


@dataclasses.dataclass(kw_only=True)
class PixelsConfig(Config):
    """Images of any size and mode as RGB of `height` x `width` pixels, and those as numbers: (pixel / 255 - `mean`) / `std` of each
    channel, which are from -1 to 1 where both are 0.5.
    """

    height: int = 224
    width: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def validate(self) -> None:
        """Raises `ConfigError` for sizes or deviations that are not above 0."""
        check_positive(self, "height", "width")
        if min(self.std) <= 0:
            raise ConfigError(f"std={self.std} must be above 0")

    def read(self, path: Path) -> np.ndarray:
        """uint8 [height, width, 3] of an image file.

        Grey (of 8 or 16 bits) and palette images become RGB; what is transparent is seen on white. A photograph is turned upright,
        as its camera noted (EXIF). The image is scaled
        (antialiased, bilinear), its sides in proportion, to the least size that covers the result, and the middle of it is taken.
        Raises `DataError`, naming the file, for one that is missing, cannot be decoded, or holds no shades (modes I and F).
        """
        Image, size = pillow(), (self.width, self.height)
        from PIL import ImageOps

        try:
            with Image.open(path) as image:
                mode = image.mode
                ImageOps.exif_transpose(image, in_place=True)
                if mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises each of them
            raise DataError(f"{path} is no image that can be read: {error}") from error
        if mode in ("I", "F"):
            raise DataError(f"{path} has pixels of mode {mode}, of no known range; expected 8 bits a channel, or 16-bit grey")
        if image.size == size:
            return np.asarray(image)
        scale = min(image.width / self.width, image.height / self.height)
        width, height = min(scale * self.width, image.width), min(scale * self.height, image.height)  # rounding may pass the sides
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))

    def floats(self, images_BHWC: np.ndarray) -> np.ndarray:
        """float32 of uint8 images."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (images_BHWC.astype(np.float32) / np.float32(255) - mean) / std


def png_url(pixels_HWC: np.ndarray) -> str:
    """A uint8 image as a data URL of a PNG."""
    file = io.BytesIO()
    pillow().fromarray(pixels_HWC).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclasses.dataclass(kw_only=True)
class Augment(Config):
    """Random changes of training images.

    A window of the image's proportions, whose area is a share between `min_area` and 1, is cut out at a random place and scaled to
    the whole size; with `flip` half of all images are mirrored.
    """

    min_area: float = 1.0
    flip: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for a share outside (0, 1]."""
        check_positive(self, "min_area")
        if self.min_area > 1:
            raise ConfigError(f"min_area={self.min_area} is a share of the image's area, at most 1")

    def apply(self, images_BHWC: np.ndarray, rows_B: np.ndarray, seed: int, step: int) -> np.ndarray:
        """uint8 images of the same shape; what is drawn depends on seed, step and the number of the row only."""
        area, x, y, side = (random_bits(seed, 3 + i, step, rows_B) / 2.0**64 for i in range(4))
        share = np.sqrt(self.min_area + (1 - self.min_area) * area)
        return np.stack([self._one(*drawn) for drawn in zip(images_BHWC, share, x, y, side, strict=True)])

    def _one(self, image_HWC: np.ndarray, share: float, x: float, y: float, side: float) -> np.ndarray:
        if share < 1:
            Image = pillow()
            height, width = image_HWC.shape[:2]
            left, top = x * (1 - share) * width, y * (1 - share) * height
            box = (left, top, left + share * width, top + share * height)
            image_HWC = np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR, box=box))
        return image_HWC[:, ::-1] if self.flip and side < 0.5 else image_HWC
