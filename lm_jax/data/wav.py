"""Reading sound from WAV files."""

import io
import math
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm_jax.core.errors import DataError


class Sound(NamedTuple):
    """Samples, float32 [N] from -1 to 1 (the mean of the channels), so many a second."""

    samples: np.ndarray
    rate: int
    channels: int


def read_wav(path: Path) -> Sound:
    """The sound of a file of linear PCM of 8, 16, 24 or 32 bits.

    Raises `DataError`, naming the file, for one that cannot be read, is no such file, has no samples, or ends before it should.
    """
    try:
        with wave.open(_plain(path.read_bytes()), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            data = file.readframes(frames)
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # the module raises each of them
        raise DataError(f"{path} cannot be read as a WAV file: {str(error) or 'it ends too early'}") from error
    if width not in (1, 2, 3, 4) or rate < 1:
        raise DataError(f"{path} has samples of {8 * width} bits, {rate} a second; expected PCM of 8, 16, 24 or 32 bits")
    if len(data) != frames * channels * width:
        whole = len(data) // (channels * width)
        raise DataError(f"{path} is cut off: its header says {frames} samples, and it holds {whole}")
    if not frames:
        raise DataError(f"{path} has no samples")
    return Sound(_floats(data, width).reshape(frames, channels).mean(axis=1, dtype=np.float32), rate, channels)


def _plain(data: bytes) -> io.BytesIO:
    """A file whose header calls PCM what WAVE_FORMAT_EXTENSIBLE says is PCM: `wave` reads such files from Python 3.12 on only."""
    fmt = data.find(b"fmt ", 12)
    if fmt > 0 and data[fmt + 8 : fmt + 10] == b"\xfe\xff" and data[fmt + 32 : fmt + 34] == b"\x01\x00":
        data = data[: fmt + 8] + b"\x01\x00" + data[fmt + 10 :]
    return io.BytesIO(data)


def _floats(data: bytes, width: int) -> np.ndarray:
    if width == 1:  # without sign, as no other
        return np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    if width == 3:
        three = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return np.pad(three, ((0, 0), (1, 0))).reshape(-1).view("<i4").astype(np.float32) / 2**31
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)


def resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """float32 samples at `new` a second, by a polyphase filter that leaves out what the new rate cannot hold."""
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    return resample_poly(samples, new // common, old // common).astype(np.float32)
