"""How rotary embeddings are stretched to rows longer than those that a model was first trained on."""

import dataclasses
import math

import numpy as np

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError


@dataclasses.dataclass(kw_only=True)
class RopeScaling(Config):
    """Base of the scalings.

    Attributes:
      amplitude: multiplies sines and cosines, so that scores grow by its square.
    """

    @property
    def amplitude(self) -> float:
        """See the class."""
        return 1.0

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """float64 [size / 2]: the angle that each pair of a head's `size` elements turns from one position to the next, in a row
        of `length` tokens."""
        raise NotImplementedError(f"{type(self).__name__} is no scaling; use LinearRope, NTKRope, Llama3Rope, YarnRope or LongRope")


def unscaled(base: float, size: int) -> np.ndarray:
    """float64 [size / 2]: base ** (-2 i / size)."""
    return base ** (-np.arange(0, size, 2) / size)


@dataclasses.dataclass(kw_only=True)
class LinearRope(RopeScaling):
    """All frequencies divided by `factor` (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""

    factor: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` for a factor below 1."""
        _check_factor(self.factor)

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """See `RopeScaling.frequencies`."""
        return unscaled(base, size) / self.factor


@dataclasses.dataclass(kw_only=True)
class NTKRope(RopeScaling):
    """The base raised so that the lowest frequency is divided by `factor`, the highest kept (NTK-aware; arXiv:2309.00071, 3.1)."""

    factor: float = 1.0

    def validate(self) -> None:
        """Raises `ConfigError` for a factor below 1."""
        _check_factor(self.factor)

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """See `RopeScaling.frequencies`."""
        return unscaled(base * self.factor ** (size / (size - 2)), size)


@dataclasses.dataclass(kw_only=True)
class Llama3Rope(RopeScaling):
    """Wavelengths above `length / low` are stretched by `factor`, those below `length / high` kept, a blend between (Llama 3.1)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    length: int = 8192

    def validate(self) -> None:
        """Raises `ConfigError` for a factor below 1 or bounds out of order."""
        _check_factor(self.factor)
        check_positive(self, "low", "high", "length")
        if self.high <= self.low:
            raise ConfigError(f"high={self.high} must be above low={self.low}")

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """See `RopeScaling.frequencies`."""
        frequency = unscaled(base, size)
        turns = self.length * frequency / (2 * math.pi)  # in a row of `length`
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(kw_only=True)
class YarnRope(RopeScaling):
    """Pairs that turn more than `fast` times in a row of `length` are kept, those that turn less than `slow` times stretched by
    `factor`, between them a blend by their number (YaRN, Peng et al. 2023, arXiv:2309.00071, 3.2).

    `truncate` rounds the bounds of the blend to whole pairs. `attention`: the amplitude; None: 0.1 ln(factor) + 1.
    """

    factor: float = 4.0
    length: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    attention: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a factor below 1 or bounds out of order."""
        _check_factor(self.factor)
        check_positive(self, "length", "fast", "slow")
        if self.fast <= self.slow:
            raise ConfigError(f"fast={self.fast} must be above slow={self.slow}")

    @property
    def amplitude(self) -> float:
        """See `RopeScaling`."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention is None else self.attention

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """See `RopeScaling.frequencies`."""
        first, last = (size * math.log(self.length / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        stretched = np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
        return unscaled(base, size) * (1 - stretched + stretched / self.factor)


@dataclasses.dataclass(kw_only=True)
class LongRope(RopeScaling):
    """Frequencies divided by searched numbers, one for each pair: by those of `long` in rows above `length` tokens, else by
    those of `short` (LongRoPE, Ding et al. 2024, arXiv:2402.13753; Phi-3, arXiv:2404.14219).

    The choice is that of a whole row, or in decoding of a whole cache, so that one text is never read in two ways.
    `attention`: the amplitude; None: sqrt(1 + ln(factor) / ln(length)).
    """

    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    length: int = 4096
    factor: float = 32.0
    attention: float | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for numbers that are not as many, or not positive."""
        _check_factor(self.factor)
        check_positive(self, "length")
        if len(self.short) != len(self.long) or min((*self.short, *self.long), default=0) <= 0:
            raise ConfigError(f"short and long must be as many numbers above 0; they are {len(self.short)} and {len(self.long)}")

    @property
    def amplitude(self) -> float:
        """See `RopeScaling`."""
        return math.sqrt(1 + math.log(self.factor) / math.log(self.length)) if self.attention is None else self.attention

    def frequencies(self, base: float, size: int, length: int) -> np.ndarray:
        """See `RopeScaling.frequencies`. Raises `ConfigError` where there are not size / 2 numbers."""
        if len(self.short) != size // 2:
            raise ConfigError(f"short and long have {len(self.short)} numbers, but heads {size // 2} pairs that turn")
        return unscaled(base, size) / np.array(self.long if length > self.length else self.short)


def _check_factor(factor: float) -> None:
    if factor < 1:
        raise ConfigError(f"factor={factor} must be at least 1")
