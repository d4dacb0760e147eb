"""Which code computes an attention, and why: a table of backends, each of which says what it cannot do.

What was asked for is computed or refused: there is no fallback to another backend than the one named, and no mask is dropped.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import ways
from lm_jax.core.types import Array
from lm_jax.nn.kernels.reference import reference
from lm_jax.nn.kernels.ring import ring
from lm_jax.nn.kernels.spec import ATTENTION, AttentionSpec, Tokens, alibi, visible
from lm_jax.nn.kernels.splash import BLOCK, splash


class Case(NamedTuple):
    """What a backend is asked to do."""

    spec: AttentionSpec
    dtype: Any
    head_dim: int
    value_dim: int
    queries: int  # tokens in a row
    keys: int
    sequence: int  # over how many devices the tokens of a row are split
    platform: str  # "cpu", "gpu" or "tpu"


class Backend(NamedTuple):
    """`run(spec, q, k, v, queries, keys, sinks, bias)`, and `refuses(case)`: why not, or None."""

    run: Callable[..., Array]
    refuses: Callable[[Case], str | None]


def _dot_product(implementation: str) -> Callable[..., Array]:
    def run(spec, q_BTNH, k_BSKH, v_BSKH, queries, keys, sinks_N, bias_NTS):
        causal, window, mask = spec.causal and not spec.prefix, None, None
        if spec.window is not None:
            window = (spec.window - 1, 0 if causal else spec.window - 1)
        if spec.segments or spec.prefix:
            rest = dataclasses.replace(spec, causal=spec.prefix and spec.causal, window=None)
            mask = visible(rest, queries, keys)[:, None, :, :]
        if spec.alibi is not None:
            distances = alibi(spec.alibi, q_BTNH.shape[2], queries.index, keys.index)
            bias_NTS = distances if bias_NTS is None else bias_NTS + distances
        return jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            bias=None if bias_NTS is None else bias_NTS[None].astype(q_BTNH.dtype),
            mask=mask,
            scale=spec.scale,
            is_causal=causal,
            local_window_size=window,
            implementation=implementation,
        )

    return run


def _xla_refuses(case: Case) -> str | None:
    if case.spec.soft_cap is not None or case.spec.sinks:
        return "jax.nn.dot_product_attention has neither soft-cap nor sinks"
    if case.value_dim != case.head_dim:
        return f"values of size {case.value_dim} beside keys of {case.head_dim}"
    if case.sequence > 1:
        return "it cannot split the sequence"
    return None


def _cudnn_refuses(case: Case) -> str | None:
    if case.platform != "gpu":
        return f"it needs an NVIDIA GPU, and this is a {case.platform}"
    if case.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16, not {case.dtype}"
    if case.head_dim % 8 or case.head_dim > 128:
        return f"it needs a head size that is a multiple of 8 and at most 128, not {case.head_dim}"
    if case.queries % 2 or case.keys % 2:
        return f"it has no gradient of rows of an odd number of tokens: {case.queries} queries, {case.keys} keys"
    if case.spec.window is not None and (not case.spec.causal or case.spec.prefix):
        return "its windows look back only, and here tokens see those after them"
    return _xla_refuses(case)


def _splash_refuses(case: Case) -> str | None:
    if case.platform != "tpu":
        return f"it needs a TPU, and this is a {case.platform}"
    if case.queries % BLOCK or case.keys % BLOCK:
        return f"it needs rows of a multiple of {BLOCK} tokens, not {case.queries} and {case.keys}"
    if case.spec.prefix or case.spec.alibi is not None or case.spec.bias:
        return "it has neither prefixes nor biases of scores"
    if case.value_dim != case.head_dim:
        return f"values of size {case.value_dim} beside keys of {case.head_dim}"
    if case.spec.cross and case.spec.segments:
        return "a query that sees no key is not defined"
    if case.sequence > 1:
        return "it cannot split the sequence"
    return None


def _ring_refuses(case: Case) -> str | None:
    if case.spec.cross:
        return "keys of another sequence do not travel"
    return "a bias of scores does not travel" if case.spec.bias else None


def _without_bias(run: Callable[..., Array]) -> Callable[..., Array]:
    return lambda spec, q, k, v, queries, keys, sinks_N, bias_NTS: run(spec, q, k, v, queries, keys, sinks_N)


BACKENDS = {
    "reference": Backend(reference, lambda case: None),
    "ring": Backend(_without_bias(ring), _ring_refuses),
    "xla": Backend(_dot_product("xla"), _xla_refuses),
    "cudnn": Backend(_dot_product("cudnn"), _cudnn_refuses),
    "splash": Backend(_without_bias(splash), _splash_refuses),
}
IMPLEMENTATIONS = ("auto", *BACKENDS)


def choose(implementation: str, case: Case) -> tuple[str, str]:
    """(backend, why). Raises `ConfigError` when the one that is named cannot do it.

    "auto" takes the ring where the sequence is split, splash on a TPU and cuDNN on a GPU where they can, and else the reference.
    """
    if implementation != "auto":
        problem = BACKENDS[implementation].refuses(case)
        if problem:
            raise ConfigError(f"attention implementation={implementation!r} cannot compute this: {problem}; {case.spec}")
        return implementation, "as asked"
    if case.sequence > 1:
        problem = BACKENDS["ring"].refuses(case)
        if problem is None:
            return "ring", f"the sequence is split {case.sequence} ways"
        return "reference", f"not ring: {problem}"
    fastest = "splash" if case.platform == "tpu" else "cudnn"
    problem = BACKENDS[fastest].refuses(case)
    return (fastest, f"fastest on this {case.platform}") if problem is None else ("reference", f"not {fastest}: {problem}")


def attend(
    implementation: str,
    spec: AttentionSpec,
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    queries: Tokens,
    keys: Tokens,
    sinks_N: Array | None = None,
    bias_NTS: Array | None = None,
) -> Array:
    """[B, T, N, H] in the dtype of `q_BTNH`, by the backend that `choose` gives; in a local view of this device's tokens."""
    assert spec.segments == (queries.segments is not None) == (keys.segments is not None)
    assert (spec.sinks, spec.bias, spec.prefix) == tuple(x is not None for x in (sinks_N, bias_NTS, keys.prefix))
    lengths = q_BTNH.shape[1] * ways("sequence"), k_BSKH.shape[1] * (1 if spec.cross else ways("sequence"))
    sizes = q_BTNH.shape[-1], v_BSKH.shape[-1]
    case = Case(spec, q_BTNH.dtype, *sizes, *lengths, ways("sequence"), jax.default_backend())
    name, _ = choose(implementation, case)
    return checkpoint_name(BACKENDS[name].run(spec, q_BTNH, k_BSKH, v_BSKH, queries, keys, sinks_N, bias_NTS), ATTENTION)
