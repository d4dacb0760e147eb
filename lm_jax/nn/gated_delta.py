"""Linear attention by the gated delta rule: a matrix per head that forgets, and corrects what it says for a key."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, own_tokens, to_residual, vary, varying, ways, whole_row
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array
from lm_jax.nn.attention import for_these_heads
from lm_jax.nn.init import Init
from lm_jax.nn.linear import project
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import CacheInfo, Place
from lm_jax.nn.recurrence import ConvolutionConfig, starts


class DeltaState(NamedTuple):
    """What the past leaves."""

    queries: Array  # [B, kernel - 1, K, H]: inputs of the convolutions
    keys: Array  # [B, kernel - 1, K, H]
    values: Array  # [B, kernel - 1, N, V]
    state: Array  # float32 [B, N, H, V]


@dataclasses.dataclass(kw_only=True)
class GatedDeltaConfig(Config):
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464, equation 10), as Qwen3-Next has it.

    Each head keeps a matrix S that gives values for keys. With k_t and q_t of length 1 and a_t, b_t in (0, 1) made from the input,

        S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,    y_t = S_t q_t / sqrt(key_dim),

    where queries, keys and values pass through a short convolution and SiLU, and the result is normed and multiplied by SiLU of a
    gate. A row is computed `chunk` tokens at a time, by matrix products within a chunk (section 3.3). `num_key_heads` (None: as
    many) are shared by groups of heads.
    """

    num_heads: int = 12
    num_key_heads: int | None = None
    key_dim: int = 64
    value_dim: int = 64
    convolution: ConvolutionConfig = dataclasses.field(default_factory=ConvolutionConfig)
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    chunk: int = 64

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or heads that do not divide."""
        check_positive(self, "num_heads", "key_dim", "value_dim", "chunk")
        if self.num_heads % self.key_heads:
            raise ConfigError(f"num_heads={self.num_heads} is not divisible by num_key_heads={self.num_key_heads}")

    @property
    def key_heads(self) -> int:
        """Heads of keys and queries."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    def check(self, width: int) -> None:
        """Any width will do."""

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> DeltaState:
        """Of this device's heads, for `batch_size` rows."""
        N, K, past = self.num_heads // ways("heads"), self.key_heads // ways("kv_heads"), self.convolution.kernel - 1
        keys = jnp.zeros((batch_size, past, K, self.key_dim), dtype)
        values = jnp.zeros((batch_size, past, N, self.value_dim), dtype)
        return DeltaState(keys, keys, values, jnp.zeros((batch_size, N, self.key_dim, self.value_dim)))

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "GatedDelta":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return GatedDelta(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one forward pass over one token, but for the triangular solve."""
        N, K, H, V, C = self.num_heads, self.key_heads, self.key_dim, self.value_dim, min(self.chunk, length)
        projections = 2 * width * (2 * K * H + 3 * N * V + 2 * N)
        tokens = -(-length // C) * C / length  # with those that fill the last chunk
        return projections + 2 * N * tokens * (3 * H * V + C * (2 * H + V))


def _rate(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: jax.sharding.PartitionSpec | None = None) -> Array:
    """The logarithm of a number uniform in [1, 16], as in Mamba-2 (arXiv:2405.21060)."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0, out_sharding=out_sharding))


def _step(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, out_sharding: jax.sharding.PartitionSpec | None = None) -> Array:
    """Such that its softplus is log-uniform in [0.001, 0.1], as in Mamba-2."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, np.log(1e-3), np.log(0.1), out_sharding=out_sharding))
    return jnp.log(jnp.expm1(step))


class GatedDelta(nnx.Module):
    """See `GatedDeltaConfig`."""

    def __init__(self, config: GatedDeltaConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        D, N, K, H, V = width, config.num_heads, config.key_heads, config.key_dim, config.value_dim
        heads, keys = ("heads", "head_dim"), ("kv_heads", "head_dim")
        self.query = param(rngs, init.linear(D), (D, K, H), ("embed", *keys))
        self.key = param(rngs, init.linear(D), (D, K, H), ("embed", *keys))
        self.value = param(rngs, init.linear(D), (D, N, V), ("embed", *heads))
        self.gate = param(rngs, init.linear(D), (D, N, V), ("embed", *heads))
        self.amount = param(rngs, init.linear(D), (D, N), ("embed", "heads"))
        self.step = param(rngs, init.linear(D), (D, N), ("embed", "heads"))
        self.step_bias = param(rngs, _step, (N,), ("heads",))
        self.rate = param(rngs, _rate, (N,), ("heads",))
        self.query_convolution = config.convolution.build(rngs, K, H, "kv_heads", init)
        self.key_convolution = config.convolution.build(rngs, K, H, "kv_heads", init)
        self.value_convolution = config.convolution.build(rngs, N, V, "heads", init)
        self.norm = config.norm.build(rngs, V, axes=("head_dim",))
        self.output = param(rngs, init.output(N * V, num_layers), (N, V, D), (*heads, "embed"))

    def __call__(
        self, x_BTD: Array, place: Place, cache: DeltaState | None = None, info: CacheInfo | None = None
    ) -> tuple[Array, DeltaState | None]:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`; with a cache also what the last token leaves."""
        config, own_BTD = self.config, all_gather(x_BTD, "residual", 1)
        x_BTD = whole_row(own_BTD)
        starts_BT = jnp.broadcast_to(starts(place), x_BTD.shape[:2])
        past = (None,) * 4 if cache is None else cache
        q = self.query_convolution(project("BTD,DNH->BTNH", x_BTD, self.query), starts_BT, past[0])
        k = self.key_convolution(project("BTD,DNH->BTNH", x_BTD, self.key), starts_BT, past[1])
        v = self.value_convolution(project("BTD,DNH->BTNH", x_BTD, self.value), starts_BT, past[2])
        queries, keys, values = (jax.nn.silu(x).astype(jnp.float32) for x, _ in (q, k, v))
        queries, keys = (self._of_heads(_unit(x)) for x in (queries, keys))
        b_BTN = jax.nn.sigmoid(project("BTD,DN->BTN", x_BTD, self.amount, jnp.float32))
        step_BTN = project("BTD,DN->BTN", x_BTD, self.step, jnp.float32)
        step_BTN = jax.nn.softplus(step_BTN + weight(self.step_bias, step_BTN)[None, None])
        log_a_BTN = -jnp.exp(weight(self.rate, step_BTN))[None, None] * step_BTN
        queries = queries * config.key_dim**-0.5
        y_BTNV, state = delta_rule(queries, keys, values, b_BTN, log_a_BTN, starts_BT, past[3], config.chunk)
        y_BTNV = self.norm(own_tokens(y_BTNV))
        gate_BTNV = jax.nn.silu(project("BTD,DNH->BTNH", own_BTD, self.gate).astype(jnp.float32))
        y_BTNV = (y_BTNV * gate_BTNV).astype(own_BTD.dtype)
        y_BTD = to_residual(project("BTNH,NHD->BTD", y_BTNV, self.output), "heads")
        return y_BTD, None if cache is None else DeltaState(q[1], k[1], v[1], state)

    def _of_heads(self, x_BTKH: Array) -> Array:
        x_BTKH = for_these_heads(x_BTKH, self.value)
        return jnp.repeat(x_BTKH, self.value.shape[-2] // x_BTKH.shape[2], axis=2)


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def delta_rule(
    q: Array, k: Array, v: Array, b: Array, log_a: Array, starts_BT: Array, state: Array | None, chunk: int
) -> tuple[Array, Array]:
    """The recurrence of `GatedDeltaConfig`, `chunk` tokens at a time.

    Within a chunk that begins with the matrix S, what token i writes for its key is u_i = b_i (v_i - S_{i-1} k_i), a triangular
    system in all u of the chunk.

    Args:
      q, k: float32 [B, T, N, H]; v: [B, T, N, V]; b, log_a: [B, T, N], the amount written and the logarithm of what is kept.
      starts_BT: where the state before counts as 0.
      state: float32 [B, N, H, V] before the first token; None: 0.

    Returns:
      S_t q_t, [B, T, N, V], and the state after the last token.
    """
    (B, T, N, H), V, C = q.shape, v.shape[-1], min(chunk, q.shape[1])
    if state is None:
        state = vary(jnp.zeros((B, N, H, V)), varying(q) | varying(v) | varying(starts_BT))
    extra = -T % C  # tokens that write nothing and forget nothing

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(B, -1, C, *x.shape[2:])
        return jnp.moveaxis(x, (1, 3), (0, 2)) if x.ndim > 3 else jnp.moveaxis(x, 1, 0)

    starts = starts_BT[:, :, None]
    log_a = jnp.where(starts, 0.0, log_a)  # of what is not kept at all `number` tells
    lower, strictly = jnp.tril(jnp.ones((C, C), bool)), jnp.tril(jnp.ones((C, C), bool), -1)

    def body(S: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, b, log_a, starts = xs  # [B, N, C, ...]; starts: [B, C]
        number = jnp.cumsum(starts, axis=-1)[:, None, :]  # of the document in the chunk; 0 is the one that S is of
        total = jnp.cumsum(log_a, axis=-1)
        same = (number[..., :, None] == number[..., None, :]) & lower[None, None]
        kept = jnp.where(same, jnp.exp(jnp.where(same, total[..., :, None] - total[..., None, :], 0.0)), 0.0)
        first = jnp.where(number == 0, jnp.exp(total), 0.0)[..., None]
        system = b[..., None] * jnp.where(strictly[None, None], kept * jnp.einsum("BNCH,BNEH->BNCE", k, k), 0.0)
        right = b[..., None] * (v - first * jnp.einsum("BNCH,BNHV->BNCV", k, S))
        u = jax.lax.linalg.triangular_solve(system, right, left_side=True, lower=True, unit_diagonal=True)
        scores = kept * jnp.einsum("BNCH,BNEH->BNCE", q, k)
        y = first * jnp.einsum("BNCH,BNHV->BNCV", q, S) + jnp.einsum("BNCE,BNEV->BNCV", scores, u)
        S = first[..., -1:, :] * S + jnp.einsum("BNCH,BNCV->BNHV", kept[..., -1, :, None] * k, u)
        return S, y

    xs = tuple(map(chunks, (q, k, v, b, log_a, starts_BT)))
    state, y = jax.lax.scan(body, state, xs)
    y = jnp.moveaxis(y, (0, 2), (1, 3)).reshape(B, -1, N, V)
    return y[:, :T], state
