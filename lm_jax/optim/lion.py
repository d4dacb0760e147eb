"""Lion."""

import dataclasses
from typing import Any

import optax

from lm_jax.core.config import check_choice
from lm_jax.optim.base import OptimizerConfig, check_decay_rates, from_optax


@dataclasses.dataclass(kw_only=True)
class Lion(OptimizerConfig):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    direction = sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g. Every entry moves by the full learning rate, which
    should therefore be 3 to 10 times smaller than AdamW's, and the weight decay as many times larger: the defaults are.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    momentum_dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range or an unknown dtype."""
        super().validate()
        check_decay_rates(self, "b1", "b2")
        check_choice("momentum_dtype", self.momentum_dtype, ("float32", "bfloat16"))

    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""
        return from_optax(optax.scale_by_lion(self.b1, self.b2), self.momentum_dtype)
