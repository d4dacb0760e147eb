"""What turns images and sound into the vectors that a stack reads."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Batch
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.log_mel import LogMelConfig, log_mel, num_frames
from lm_jax.nn.mlp import ACTIVATIONS
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.spec_augment import SpecAugmentConfig, spec_augment


@dataclasses.dataclass(kw_only=True)
class PatchesConfig(Config):
    """An image cut into squares of `patch` pixels, each projected to the width, plus learned positions (ViT, arXiv:2010.11929).

    `class_token` puts a learned vector before them. `norm` is over all (CLIP, arXiv:2103.00020).
    """

    height: int = 224
    image_width: int = 224
    patch: int = 16
    channels: int = 3
    bias: bool = True
    class_token: bool = True
    norm: NormConfig | None = None

    def validate(self) -> None:
        """Raises `ConfigError` where patches do not divide the image."""
        check_positive(self, "height", "image_width", "patch", "channels")
        if self.height % self.patch or self.image_width % self.patch:
            raise ConfigError(f"patch={self.patch} does not divide an image of {self.height} x {self.image_width} pixels")

    @property
    def num_tokens(self) -> int:
        """Patches, and the class token."""
        return (self.height // self.patch) * (self.image_width // self.patch) + self.class_token

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "Patches":
        """The layer."""
        return Patches(self, rngs, width, init)


class Patches(nnx.Module):
    """See `PatchesConfig`."""

    def __init__(self, config: PatchesConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        shape = (config.patch, config.patch, config.channels, width)
        fan_in = config.patch**2 * config.channels
        self.matrix = param(rngs, init.linear(fan_in), shape, ("patch", "patch", "patch", "embed"))
        self.bias = param(rngs, zeros, (width,), ("embed",)) if config.bias else None
        self.class_token = param(rngs, init.embedding(), (width,), ("embed",)) if config.class_token else None
        self.positions = param(rngs, init.embedding(), (config.num_tokens, width), ("positions", "embed"))
        self.norm = None if config.norm is None else config.norm.build(rngs, width)

    def __call__(self, images_BHWC: Array, dtype: jnp.dtype) -> Array:
        """[B, P, D] in `dtype`, row by row, the class token first, of float images [B, height, width, channels]."""
        config, p, B = self.config, self.config.patch, len(images_BHWC)
        expected = (config.height, config.image_width, config.channels)
        if images_BHWC.shape[1:] != expected:
            found = f"images are {images_BHWC.shape[1:]} (height, width, channels), but the model reads {expected}"
            raise ConfigError(f"{found}; set data.pixels or the model's patches to the size of the other")
        x = images_BHWC.astype(dtype).reshape(B, config.height // p, p, config.image_width // p, p, config.channels)
        x = jnp.moveaxis(x, 3, 2).reshape(B, -1, p, p, config.channels)
        x_BPD = project("BPhwC,hwCD->BPD", x, self.matrix)
        if self.bias is not None:
            x_BPD = x_BPD + weight(self.bias, x_BPD)[None, None, :]
        if self.class_token is not None:
            first = jnp.broadcast_to(weight(self.class_token, x_BPD), (B, 1, x_BPD.shape[-1]))
            x_BPD = jnp.concatenate([first, x_BPD], axis=1)
        x_BPD = x_BPD + weight(self.positions, x_BPD)[None, :, :]
        return x_BPD if self.norm is None else self.norm(x_BPD)


@dataclasses.dataclass(kw_only=True)
class AudioConfig(Config):
    """Two convolutions over time of width 3, the second of stride 2, plus learned positions (Whisper, arXiv:2212.04356).

    A row of `length` vectors is made of 2 x `length` frames of `mels` bins. With `log_mel` the frames are computed from waveforms,
    else they are read. `augment` hides parts of them in training. `positions=False` is for stacks that have positions of their own.

    Vector s hears frames 2 s - 2 to 2 s + 2, and is no padding where frame 2 s is none. Frames of padding are 0, as what stands
    around a row is, so that an utterance gives the same vectors in a longer row.
    """

    mels: int = 80
    length: int = 1500
    activation: str = "gelu"
    log_mel: LogMelConfig | None = None
    augment: SpecAugmentConfig | None = None
    positions: bool = True

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown activation, a size below 1, or bins that are not those of `log_mel`."""
        check_positive(self, "mels", "length")
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        if self.log_mel is not None and self.log_mel.mels != self.mels:
            raise ConfigError(f"mels={self.mels} differs from log_mel.mels={self.log_mel.mels}")

    def check_rate(self, rate: int) -> None:
        """Raises `ConfigError` where waveforms of `rate` samples a second are not those of the spectrogram."""
        if self.log_mel is not None and self.log_mel.rate != rate:
            raise ConfigError(
                f"the data has {rate} samples a second, and the model's spectrogram is of {self.log_mel.rate}; "
                "set data.train.rate (and those of the other splits) and model.source.log_mel.rate to the same"
            )

    @property
    def reads(self) -> str:
        """Which array of a batch it reads."""
        return "mels" if self.log_mel is None else "waves"

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "Audio":
        """The layer."""
        return Audio(self, rngs, width, init)


class Audio(nnx.Module):
    """See `AudioConfig`."""

    def __init__(self, config: AudioConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        window, table = ("patch", "patch", "embed"), (config.length, width)
        self.first = param(rngs, init.linear(3 * config.mels), (3, config.mels, width), window)
        self.first_bias = param(rngs, zeros, (width,), ("embed",))
        self.second = param(rngs, init.linear(3 * width), (3, width, width), window)
        self.second_bias = param(rngs, zeros, (width,), ("embed",))
        self.positions = param(rngs, init.embedding(), table, ("positions", "embed")) if config.positions else None

    def hear(self, batch: Batch, dtype: jnp.dtype, key: Array | None = None) -> tuple[Array, Array | None]:
        """[B, S, D] in `dtype` of `batch["mels"]` [B, 2 S, mels] or `batch["waves"]` [B, samples], and int32 [B, S]: 0 at padding.

        That follows from "samples" [B], how many of the waves are no padding; for "mels" it is "memory_segments", None where they
        are not given. `key` drives `augment`; None means evaluation.
        """
        mels_BTM, frames_B, segments_BS = self.spectrogram(batch)
        if key is not None and self.config.augment is not None:
            frames = jnp.full(len(mels_BTM), mels_BTM.shape[1], jnp.int32) if frames_B is None else frames_B
            mels_BTM = spec_augment(mels_BTM, frames, self.config.augment, key)
        return self(mels_BTM, dtype), segments_BS

    def spectrogram(self, batch: Batch) -> tuple[Array, Array | None, Array | None]:
        """What the convolutions read, float [B, 2 S, mels]; int32 [B], how many of the frames are no padding; and, as `hear`, where
        there is padding. The last two are None where the batch does not say."""
        if self.config.log_mel is None:
            mels_BTM, segments_BS = jnp.asarray(batch["mels"]), batch.get("memory_segments")
            if segments_BS is None:
                return mels_BTM, None, None
            frames_B = 2 * jnp.sum(segments_BS > 0, axis=1)
            heard_BT = jnp.arange(mels_BTM.shape[1])[None, :] < frames_B[:, None]
            return jnp.where(heard_BT[:, :, None], mels_BTM, 0), frames_B, segments_BS
        waves_BN, step = jnp.asarray(batch["waves"]), 2 * self.config.log_mel.hop
        waves_BN = jnp.pad(waves_BN, ((0, 0), (0, -waves_BN.shape[1] % step)))
        samples_B = jnp.asarray(batch["samples"])
        frames_B = num_frames(samples_B, self.config.log_mel)
        heard_BS = 2 * jnp.arange(waves_BN.shape[1] // step)[None, :] < frames_B[:, None]
        return log_mel(waves_BN, self.config.log_mel, samples_B), frames_B, heard_BS.astype(jnp.int32)

    def __call__(self, mels_BTM: Array, dtype: jnp.dtype) -> Array:
        """[B, T / 2, D] in `dtype` of spectrograms [B, T, mels]."""
        limit = 2 * self.config.length
        if mels_BTM.shape[2] != self.config.mels or mels_BTM.shape[1] > limit or mels_BTM.shape[1] % 2:
            expected = f"an even number of frames up to {limit} of {self.config.mels} bins"
            raise ConfigError(f"spectrograms are {mels_BTM.shape[1:]} (frames, bins), but the model reads {expected}")
        act = ACTIVATIONS[self.config.activation]
        x_BTD = act(_convolve(mels_BTM.astype(dtype), self.first, self.first_bias, stride=1))
        x_BTD = act(_convolve(x_BTD, self.second, self.second_bias, stride=2))
        if self.positions is None:
            return x_BTD
        return x_BTD + weight(self.positions, x_BTD)[None, : x_BTD.shape[1], :]


def _convolve(x_BTC: Array, matrix: nnx.Param, bias: nnx.Param, stride: int) -> Array:
    """[B, T / stride, D], with zeros around the row, as one matrix product of the windows."""
    padded, length = jnp.pad(x_BTC, ((0, 0), (1, 1), (0, 0))), x_BTC.shape[1]
    windows = [jax.lax.slice_in_dim(padded, k, k + length, stride, axis=1) for k in range(3)]
    y_BTD = project("BTkC,kCD->BTD", jnp.stack(windows, axis=2), matrix)
    return y_BTD + weight(bias, y_BTD)[None, None, :]
