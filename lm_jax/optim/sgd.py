"""Stochastic gradient descent."""

import dataclasses
from typing import Any

import optax

from lm_jax.core.errors import ConfigError
from lm_jax.optim.base import OptimizerConfig, check_decay_rates


@dataclasses.dataclass(kw_only=True)
class SGD(OptimizerConfig):
    """The gradient itself (Robbins and Monro 1951, doi:10.1214/aoms/1177729586), with momentum where `momentum` is above 0.

    direction = m with m = g + `momentum` m, as in PyTorch; with `nesterov` g + `momentum` m (Sutskever et al. 2013, PMLR 28:1139).
    Without momentum there is no state. Recurrent word models learn well by it, at rates as large as 20 of clipped gradients.
    """

    learning_rate: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range, or for `nesterov` without momentum."""
        super().validate()
        check_decay_rates(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True looks ahead along the momentum, which is 0; set momentum, such as 0.9")

    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
