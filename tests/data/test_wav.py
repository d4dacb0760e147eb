"""WAV files of all widths, and what is wrong with others."""

import struct
import wave

import numpy as np
import pytest

from lm_jax.core.errors import DataError
from lm_jax.data.wav import read_wav, resample


def write_wav(path, samples, rate=8000, width=2):
    """A file of samples [N] or [N, channels] from -1 to 1."""
    samples = np.asarray(samples, np.float64)
    whole = np.clip(np.round(samples * 2 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype(np.int64)
    whole = whole + 128 if width == 1 else whole
    data = whole.astype("<i8").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(b"".join(data[i : i + width] for i in range(0, len(data), 8)))
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_come_back(tmp_path, width):
    x = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 500), [-1.0, 0.0, 0.5]])
    sound = read_wav(write_wav(tmp_path / "a.wav", x, 11025, width))
    assert sound.samples.dtype == np.float32 and sound[1:] == (11025, 1)
    np.testing.assert_allclose(sound.samples, x, atol=1.01 * 2.0 ** -(8 * width - 1) + 1e-7)
    assert sound.samples[-3:].tolist() == [-1.0, 0.0, 0.5]


def test_channels_are_averaged(tmp_path):
    sound = read_wav(write_wav(tmp_path / "a.wav", np.array([[0.5, 0.0], [-0.25, 0.75]])))
    assert sound.channels == 2 and sound.samples.tolist() == [0.25, 0.25]


def test_bad_files_are_named(tmp_path):
    good = write_wav(tmp_path / "good.wav", np.zeros(100)).read_bytes()
    is_float = bytearray(good)
    is_float[20] = 3
    odd = bytearray(good)
    odd[16] = 225  # the size of the part that tells the format: the module raises a RuntimeError without a word
    bad = {
        "odd": bytes(odd),
        "text": b"hello, world",
        "empty": b"",
        "cut": good[:-60],
        "head": good[:20],
        "float": bytes(is_float),
        "none": good[:44],
    }
    for name, data in bad.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.wav (cannot be read as a WAV file|is cut off)"):
            read_wav(tmp_path / f"{name}.wav")
    with pytest.raises(DataError, match=r"no.wav cannot be read"):
        read_wav(tmp_path / "no.wav")
    with pytest.raises(DataError, match=r"silent.wav has no samples"):
        read_wav(write_wav(tmp_path / "silent.wav", np.zeros(0)))
    with pytest.raises(DataError, match="its header says 100 samples, and it holds 70"):
        read_wav(tmp_path / "cut.wav")


def test_a_tone_stays_a_tone_at_another_rate():
    tone = lambda rate: np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate).astype(np.float32)  # noqa: E731
    found = resample(tone(44100), 44100, 8000)
    assert found.dtype == np.float32 and len(found) == 4000
    np.testing.assert_allclose(found[200:-200], tone(8000)[200:-200], atol=5e-3)


def test_an_extensible_header_of_pcm_is_read(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, 50)
    plain = write_wav(tmp_path / "a.wav", x, 16000, 3).read_bytes()
    fmt = struct.pack("<HHIIHH HHI", 0xFFFE, 1, 16000, 48000, 3, 24, 22, 24, 4)
    guid = b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    chunks = b"WAVEfmt " + struct.pack("<I", 40) + fmt + guid + plain[36:]
    (tmp_path / "b.wav").write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    np.testing.assert_array_equal(read_wav(tmp_path / "b.wav").samples, read_wav(tmp_path / "a.wav").samples)
    (tmp_path / "c.wav").write_bytes((tmp_path / "b.wav").read_bytes().replace(guid, b"\x03" + guid[1:]))  # of floats
    with pytest.raises(DataError, match=r"c.wav cannot be read as a WAV file: unknown format: 65534"):
        read_wav(tmp_path / "c.wav")
