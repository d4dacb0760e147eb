"""AdamW."""

import dataclasses
from typing import Any

import optax

from lm_jax.core.config import check_choice, check_positive
from lm_jax.optim.base import OptimizerConfig, check_decay_rates, from_optax


@dataclasses.dataclass(kw_only=True)
class AdamW(OptimizerConfig):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with decoupled weight decay.

    direction = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) with m, v the moving averages of g, g^2, as in PyTorch.
    With `nesterov` m looks one step ahead (Dozat 2016). `momentum_dtype` is that in which m is stored.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    nesterov: bool = False
    momentum_dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range or an unknown dtype."""
        super().validate()
        check_decay_rates(self, "b1", "b2")
        check_positive(self, "eps")
        check_choice("momentum_dtype", self.momentum_dtype, ("float32", "bfloat16"))

    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, nesterov=self.nesterov)
        return from_optax(adam, self.momentum_dtype)
