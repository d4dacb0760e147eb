"""The position-wise feed-forward layer."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, to_residual
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Aux
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.place import Place


def relu_squared(x: Array) -> Array:
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu_squared": relu_squared,
}


@dataclasses.dataclass(kw_only=True)
class MLPConfig(Config):
    """`down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202).

    SwiGLU is a gated "silu", GEGLU a gated "gelu" or "gelu_tanh". With a `limit`, gates are cut to at most that and what they
    multiply to [-limit, limit], and `shift` is added to it: limit 7, shift 1, "gelu_quick" in gpt-oss (arXiv:2508.10925).
    """

    hidden: int = 3072
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = False
    limit: float | None = None
    shift: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown activation, a non-positive width, or a limit without a gate."""
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_positive(self, "hidden")
        if self.limit is not None:
            check_positive(self, "limit")
        if not self.gated and (self.limit is not None or self.shift):
            raise ConfigError(f"limit={self.limit} and shift={self.shift} are for gated=True")

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "MLP":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return MLP(self, rngs, width, init, num_layers)

    def act(self, up: Array, gate: Array | None) -> Array:
        """The hidden units of the two products, elementwise."""
        act = ACTIVATIONS[self.activation]
        if gate is None:
            return act(up)
        if self.limit is not None:
            up, gate = jnp.clip(up, -self.limit, self.limit), jnp.minimum(gate, self.limit)
        return act(gate) * (up + self.shift if self.shift else up)

    def flops_per_token(self, width: int) -> int:
        """Matrix-product FLOPs of one forward pass over one token (a multiply-add is 2)."""
        return 2 * (3 if self.gated else 2) * width * self.hidden


class MLP(nnx.Module):
    """See `MLPConfig`."""

    def __init__(self, config: MLPConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, F = width, config.hidden
        self.up = param(rngs, init.linear(D), (D, F), ("embed", "mlp"))
        self.gate = param(rngs, init.linear(D), (D, F), ("embed", "mlp")) if config.gated else None
        self.down = param(rngs, init.output(F, num_layers), (F, D), ("mlp", "embed"))
        self.up_bias = param(rngs, zeros, (F,), ("mlp",)) if config.bias else None
        self.gate_bias = param(rngs, zeros, (F,), ("mlp",)) if config.gated and config.bias else None
        self.down_bias = param(rngs, zeros, (D,), ("embed",)) if config.bias else None

    def __call__(self, x_BTD: Array, place: Place) -> tuple[Array, Aux]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`."""
        x_BTD = all_gather(x_BTD, "residual", 1)
        up_BTF = project("BTD,DF->BTF", x_BTD, self.up)
        if self.up_bias is not None:
            up_BTF = up_BTF + weight(self.up_bias, up_BTF)[None, None, :]
        gate_BTF = None if self.gate is None else project("BTD,DF->BTF", x_BTD, self.gate)
        if gate_BTF is not None and self.gate_bias is not None:
            gate_BTF = gate_BTF + weight(self.gate_bias, gate_BTF)[None, None, :]
        h_BTF = self.config.act(up_BTF, gate_BTF)
        y_BTD = to_residual(project("BTF,FD->BTD", h_BTF, self.down), "mlp")
        if self.down_bias is not None:
            y_BTD = y_BTD + weight(self.down_bias, y_BTD)[None, None, :]
        return y_BTD, Aux.none()
