"""Learning-rate schedules: warm-up, then one of a few shapes."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array

ScheduleFn = Callable[[Array | int], Array]

# What is left of the way from the peak to the final value, after a share p in [0, 1] of the decay.
_FALLS: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda p: 0.5 * (1 + jnp.cos(jnp.pi * p)),
    "linear": lambda p: 1 - p,
    "one_minus_sqrt": lambda p: 1 - jnp.sqrt(p),
}
SHAPES = (*_FALLS, "inverse_sqrt")


@dataclasses.dataclass(kw_only=True)
class Schedule(Config):
    """The learning rate over a run: linear warm-up to the peak, a plateau, a decay to `final_ratio` times the peak.

    With W = `warmup_steps` and N steps in all, the factor on the peak at step t = 0, 1, .., N - 1 is

    - (t + 1) / W while t < W: the first update is not lost, and step W - 1 has the peak;
    - 1 until the decay starts at S = max(W, N - `decay_fraction` N);
    - final + (1 - final) fall((t - S) / (N - S)) after it, so that `final_ratio` would be reached at step N.

    `shape` names the fall: "cosine" (Loshchilov and Hutter 2017, arXiv:1608.03983), "linear", "one_minus_sqrt"
    (Hagele et al. 2024, arXiv:2405.18392) or "constant" (none). A `decay_fraction` below 1 makes it warmup-stable-decay
    (WSD; Hu et al. 2024, arXiv:2404.06395). "inverse_sqrt" is sqrt(W / (t + 1)) from the end of warm-up on
    (Vaswani et al. 2017, arXiv:1706.03762), never below `final_ratio`; it has no plateau.
    """

    shape: str = "cosine"
    warmup_steps: int = 0
    decay_fraction: float = 1.0
    final_ratio: float = 0.1

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown shape or a number out of range."""
        check_choice("shape", self.shape, SHAPES)
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps={self.warmup_steps} must not be negative")
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction={self.decay_fraction} must be in (0, 1]; shape='constant' has no decay")
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(f"final_ratio={self.final_ratio} must be in [0, 1], a share of the peak")

    def build(self, peak: float, num_steps: int) -> ScheduleFn:
        """The learning rate (float32 []) as a function of the step (int32 [], from 0) in a run of `num_steps`.

        Raises `ConfigError` when the warm-up is longer than the run.
        """
        if self.warmup_steps > num_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} exceeds the {num_steps} steps of the run; "
                "shorten the warm-up or train longer"
            )
        warmup = self.warmup_steps
        start = max(warmup, num_steps - round(self.decay_fraction * num_steps))

        # optax's schedules would serve but for two things: their warm-ups start at 0, and they have no 1 - sqrt.
        def schedule(step: Array | int) -> Array:
            t = jnp.asarray(step, jnp.float32)
            if self.shape == "inverse_sqrt":
                factor = jnp.maximum(jnp.sqrt(max(warmup, 1) / (t + 1)), self.final_ratio)
            else:
                passed = jnp.clip((t - start) / max(num_steps - start, 1), 0, 1)
                factor = self.final_ratio + (1 - self.final_ratio) * _FALLS[self.shape](passed)
            return peak * jnp.where(t < warmup, (t + 1) / max(warmup, 1), factor)

        return schedule
