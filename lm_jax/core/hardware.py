"""Peak speeds and memory of known accelerators."""

from typing import NamedTuple

from lm_jax.core.errors import ConfigError


class Chip(NamedTuple):
    """By the vendor's datasheet; never the figures "with sparsity"."""

    flops: float  # dense bfloat16 FLOP/s
    memory: float | None  # GB (10^9 bytes); None where it is sold with several


# By what jax.Device.device_kind begins with.
CHIPS = {
    "NVIDIA A100": Chip(312e12, None),
    "NVIDIA H100 PCIe": Chip(756e12, 80),
    "NVIDIA H100 NVL": Chip(835e12, 94),
    "NVIDIA H100": Chip(989e12, 80),
    "NVIDIA H200": Chip(989e12, 141),
    "NVIDIA B200": Chip(2250e12, None),
    "TPU v4": Chip(275e12, 32),
    "TPU v5 lite": Chip(197e12, 16),
    "TPU v5e": Chip(197e12, 16),
    "TPU v5p": Chip(459e12, 95),
    "TPU v5": Chip(459e12, 95),
    "TPU v6 lite": Chip(918e12, 32),
    "TPU v6e": Chip(918e12, 32),
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device; None for an unknown one: no utilisation rather than a guess."""
    matches = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(matches, key=len)].flops if matches else None


def chip(name: str) -> Chip:
    """A chip by its name, such as "H200" or "TPU v5p". Raises `ConfigError` for one that is not known."""
    for known, data in CHIPS.items():
        if name.lower() in (known.lower(), known.lower().split(" ", 1)[1]):
            return data
    raise ConfigError(f"the chip {name!r} is not known; these are: {', '.join(CHIPS)}")
