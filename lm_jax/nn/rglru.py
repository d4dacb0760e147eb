"""The real-gated linear recurrent unit of Griffin, with the convolution and the gate around it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, own_tokens, to_residual, ways, whole_row
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.linear import project
from lm_jax.nn.place import CacheInfo, Place
from lm_jax.nn.recurrence import ConvolutionConfig, starts

RATE = 8.0  # c of equation 4
SMALLEST = 1e-12  # below it the square root has no usable derivative


class RGLRUState(NamedTuple):
    """What the past leaves."""

    inputs: Array  # [B, kernel - 1, N, H]: of the convolution
    state: Array  # float32 [B, N, H]


@dataclasses.dataclass(kw_only=True)
class RGLRUConfig(Config):
    """The recurrent block of Griffin (De et al. 2024, arXiv:2402.19427, section 2.3 and figure 2).

    `output(gelu(gate(x)) * recurrence(convolution(input(x))))`, where with the gates r and i, sigmoids of products within a head,

        a_t = exp(-8 softplus(decay) r_t),    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t.

    The state of `size` numbers (None: the width) is made of `num_heads` heads, which are split over devices as those of attention.
    """

    size: int | None = None
    num_heads: int = 8
    convolution: ConvolutionConfig = dataclasses.field(default_factory=lambda: ConvolutionConfig(bias=True))
    bias: bool = True

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        check_positive(self, "num_heads")
        if self.size is not None:
            check_positive(self, "size")

    def check(self, width: int) -> None:
        """Raises `ConfigError` where the heads do not divide the state."""
        if (self.size or width) % self.num_heads:
            raise ConfigError(f"a state of {self.size or width} is not divisible by num_heads={self.num_heads}")

    def head(self, width: int) -> int:
        """The size H of a head."""
        return (self.size or width) // self.num_heads

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> RGLRUState:
        """Of this device's heads, for `batch_size` rows."""
        heads = (self.num_heads // ways("heads"), self.head(width))
        return RGLRUState(jnp.zeros((batch_size, self.convolution.kernel - 1, *heads), dtype), jnp.zeros((batch_size, *heads)))

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "RGLRU":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return RGLRU(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one forward pass over one token."""
        size = self.size or width
        return 2 * size * (3 * width + 2 * self.head(width))


def _decay(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: jax.sharding.PartitionSpec | None = None) -> Array:
    """Such that a at r = 1 is uniform in [0.9, 0.999] (section 2.4)."""
    a = jax.random.uniform(key, shape, dtype, 0.9, 0.999, out_sharding=out_sharding)
    return jnp.log(jnp.expm1(-jnp.log(a) / RATE))


class RGLRU(nnx.Module):
    """See `RGLRUConfig`."""

    def __init__(self, config: RGLRUConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, N, H = width, config.num_heads, config.head(width)
        heads = ("heads", "head_dim")
        within = ("heads", "head_dim", "inner")
        self.input = param(rngs, init.linear(D), (D, N, H), ("embed", *heads))
        self.gate = param(rngs, init.linear(D), (D, N, H), ("embed", *heads))
        self.input_bias = param(rngs, zeros, (N, H), heads) if config.bias else None
        self.gate_bias = param(rngs, zeros, (N, H), heads) if config.bias else None
        self.convolution = config.convolution.build(rngs, N, H, "heads", init)
        self.recurrent_gate = param(rngs, init.linear(H), (N, H, H), within)
        self.input_gate = param(rngs, init.linear(H), (N, H, H), within)
        self.recurrent_gate_bias = param(rngs, zeros, (N, H), heads)
        self.input_gate_bias = param(rngs, zeros, (N, H), heads)
        self.decay = param(rngs, _decay, (N, H), heads)
        self.output = param(rngs, init.output(N * H, num_layers), (N, H, D), (*heads, "embed"))
        self.output_bias = param(rngs, zeros, (D,), ("embed",)) if config.bias else None

    def __call__(
        self, x_BTD: Array, place: Place, cache: RGLRUState | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, RGLRUState | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also what the last token leaves."""
        x_BTD = all_gather(x_BTD, "residual", 1)
        gate_BTNH = jax.nn.gelu(_linear(x_BTD, self.gate, self.gate_bias), approximate=True)
        x_BTNH = whole_row(_linear(x_BTD, self.input, self.input_bias))
        starts_BT = jnp.broadcast_to(starts(place), x_BTNH.shape[:2])
        x_BTNH, inputs = self.convolution(x_BTNH, starts_BT, None if cache is None else cache.inputs)
        states = self._recur(x_BTNH, starts_BT, None if cache is None else cache.state)
        y_BTNH = gate_BTNH * own_tokens(states).astype(gate_BTNH.dtype)
        y_BTD = to_residual(project("BTNH,NHD->BTD", y_BTNH, self.output), "heads")
        if self.output_bias is not None:
            y_BTD = y_BTD + weight(self.output_bias, y_BTD)[None, None]
        return y_BTD, None if cache is None else RGLRUState(inputs, states[:, -1])

    def _recur(self, x_BTNH: Array, starts_BT: Array, state_BNH: Array | None) -> Array:
        """All states, float32 [B, T, N, H], by a scan of log T steps."""
        r = self._sigmoid(x_BTNH, self.recurrent_gate, self.recurrent_gate_bias)
        i = self._sigmoid(x_BTNH, self.input_gate, self.input_gate_bias)
        log_a = -RATE * jax.nn.softplus(weight(self.decay, x_BTNH, jnp.float32))[None, None] * r
        first = starts_BT[:, :, None, None]
        a = jnp.where(first, 0.0, jnp.exp(log_a))
        amount = jnp.where(first, 1.0, jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), SMALLEST)))
        x = amount * i * x_BTNH.astype(jnp.float32)
        if state_BNH is not None:
            x = x.at[:, 0].add(a[:, 0] * state_BNH)
        then = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])  # noqa: E731
        return jax.lax.associative_scan(then, (a, x), axis=1)[1]

    def _sigmoid(self, x_BTNH: Array, matrix: nnx.Param, bias: nnx.Param) -> Array:
        y_BTNH = project("BTNH,NHK->BTNK", x_BTNH, matrix, jnp.float32)
        return jax.nn.sigmoid(y_BTNH + weight(bias, y_BTNH)[None, None])


def _linear(x_BTD: Array, matrix: nnx.Param, bias: nnx.Param | None) -> Array:
    y_BTNH = project("BTD,DNH->BTNH", x_BTD, matrix)
    return y_BTNH if bias is None else y_BTNH + weight(bias, y_BTNH)[None, None]
