"""How weights are drawn."""

import dataclasses
import math
from collections.abc import Callable

from flax import nnx

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array

Initializer = Callable[..., Array]
zeros: Initializer = nnx.initializers.zeros
ones: Initializer = nnx.initializers.ones


@dataclasses.dataclass(kw_only=True)
class Init(Config):
    """The initialisation of a whole model. Biases are 0, norm scales 1.

    | field | value | what |
    |---|---|---|
    | weights | "normal" | normal with standard deviation `std` (GPT-2: 0.02) |
    |  | "fan_in" | normal with standard deviation 1 / sqrt(fan in) (LeCun) |
    | outputs | "same" | projections into the residual stream as all others |
    |  | "depth_scaled" | divided by sqrt(2 x layers) (GPT-2, Radford et al. 2019, section 2.3) |
    |  | "zeros" | 0: every block starts as the identity |

    Embedding and position tables are normal with standard deviation `embedding_std`.
    """

    weights: str = "normal"
    outputs: str = "depth_scaled"
    std: float = 0.02
    embedding_std: float = 0.02

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown scheme or a negative deviation."""
        check_choice("weights", self.weights, ("normal", "fan_in"))
        check_choice("outputs", self.outputs, ("same", "depth_scaled", "zeros"))
        if self.std < 0 or self.embedding_std < 0:
            raise ConfigError(f"std={self.std} and embedding_std={self.embedding_std} must not be negative")

    def linear(self, fan_in: int) -> Initializer:
        """For a projection whose inputs are `fan_in` wide."""
        return nnx.initializers.normal(self.std if self.weights == "normal" else fan_in**-0.5)

    def output(self, fan_in: int, num_layers: int) -> Initializer:
        """For a projection that writes into the residual stream of a stack of `num_layers` blocks."""
        if self.outputs == "zeros":
            return zeros
        std = self.std if self.weights == "normal" else fan_in**-0.5
        scale = 1 / math.sqrt(2 * num_layers) if self.outputs == "depth_scaled" else 1.0
        return nnx.initializers.normal(std * scale)

    def embedding(self) -> Initializer:
        """For a table of embeddings or positions."""
        return nnx.initializers.normal(self.embedding_std)
