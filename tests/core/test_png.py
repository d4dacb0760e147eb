"""PNG files, read again by hand as the standard says, and by Pillow where it is there."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest

from lm_jax.core.png import png, png_url


def read(file: bytes) -> np.ndarray:
    """The pixels of a PNG of 8 bits without filters; every checksum is checked."""
    assert file[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    at, found = 8, {}
    while at < len(file):
        (size,), kind = struct.unpack(">I", file[at : at + 4]), file[at + 4 : at + 8]
        data = file[at + 8 : at + 8 + size]
        assert struct.unpack(">I", file[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        found[kind], at = data, at + 12 + size
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"] and found[b"IEND"] == b""
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert depth == 8 and rest == [0, 0, 0]
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape((height, width) if colour == 0 else (height, width, 3))


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 3), (1, 1)])
def test_pixels_come_back(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(read(png(pixels)), pixels)
    head, data = png_url(pixels).split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == png(pixels)


def test_pillow_reads_it():
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8)])
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        png(pixels)
