"""Adagrad."""

import dataclasses
from typing import Any

import optax

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.optim.base import OptimizerConfig


@dataclasses.dataclass(kw_only=True)
class Adagrad(OptimizerConfig):
    """The gradient over the root of the sum of its squares so far (Duchi, Hazan and Singer 2011, JMLR 12:2121-2159).

    direction = g / sqrt(s + eps) with s = `initial` + the sum of all g^2; 0 where s is 0. What is seldom seen, such as the vector
    of a rare word, moves as far each time as what is always seen moved at its first times. With `initial` 0 (and gradients well
    above sqrt(`eps`)) the scale of the loss does not matter.
    """

    learning_rate: float = 0.05
    weight_decay: float = 0.0
    initial: float = 0.0
    eps: float = 1e-20

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range."""
        super().validate()
        check_positive(self, "eps")
        if self.initial < 0:
            raise ConfigError(f"initial={self.initial} must not be negative")

    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""
        return optax.scale_by_rss(self.initial, self.eps)
