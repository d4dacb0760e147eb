"""Attention against a loop in float64."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.nn.attend import attend
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.kernels.reference import masked_attention
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens
from lm_jax.nn.place import Place
from tests.models_for_tests import LOUD

T, N, H = 9, 4, 6


def by_loop(q, k, v, scale, cap=None, window=None, segments=None, sinks=None):
    """softmax(scale q k^T) v, one query and head at a time."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [
            s for s in range(t + 1) if (window is None or t - s < window) and (segments is None or segments[b, s] == segments[b, t])
        ]
        kv = n * k.shape[2] // q.shape[2]
        scores = scale * np.array([q[b, t, n] @ k[b, s, kv] for s in seen])
        if cap is not None:
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(scores)
        out[b, t, n] = weights / (weights.sum() + (0 if sinks is None else np.exp(sinks[n]))) @ v[b, seen, kv]
    return out


def draw(kv_heads, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, T, heads, H)).astype(np.float32) for heads in (N, kv_heads, kv_heads)]


SINKS = np.array([-1.0, 0.0, 0.5, 2.0], np.float32)
SEGMENTS = np.array([[1] * 4 + [2] * 5, [1] * 1 + [2] * 6 + [3] * 2], np.int32)


def case(window, segments, cap, sinks):
    spec = AttentionSpec(scale=0.7, window=window, soft_cap=cap, segments=segments is not None, sinks=sinks is not None)
    return spec, Tokens(np.arange(T, dtype=np.int32), segments)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("cap", "sinks"), [(None, None), (1.5, None), (None, SINKS)], ids=["plain", "cap", "sinks"])
def test_the_reference_equals_a_loop(kv_heads, window, segments, cap, sinks):
    q, k, v = draw(kv_heads)
    spec, tokens = case(window, segments, cap, sinks)
    got = attend("reference", spec, q, k, v, tokens, tokens, sinks)
    np.testing.assert_allclose(got, by_loop(q, k, v, 0.7, cap, window, segments, sinks), atol=1e-5)


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = draw(N)
    out = masked_attention(AttentionSpec(scale=1.0), q, k, v, np.zeros((1, T, T), bool), np.arange(T), np.arange(T))
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-5)


def layer(**fields):
    config = AttentionConfig(num_heads=N, num_kv_heads=2, head_dim=H, bias=True, output_bias=True, **fields)
    return AttentionConfig.build(config, nnx.Rngs(params=jax.random.key(0)), 16, dataclasses.replace(LOUD), 1)


def test_the_layer_projects_attends_and_projects_back():
    module, rng = layer(scale=0.3), np.random.default_rng(0)
    for bias in (module.query_bias, module.key_bias, module.value_bias, module.output_bias):
        bias[...] = rng.normal(size=bias.shape).astype(np.float32)
    x = rng.normal(size=(2, T, 16)).astype(np.float32)
    q, k, v = (
        np.einsum("btd,dnh->btnh", x, np.asarray(matrix)) + np.asarray(bias)
        for matrix, bias in (
            (module.query, module.query_bias),
            (module.key, module.key_bias),
            (module.value, module.value_bias),
        )
    )
    y = np.einsum("btnh,nhd->btd", by_loop(q, k, v, 0.3), np.asarray(module.output)) + np.asarray(module.output_bias)
    got, _ = module(x, Place(np.arange(T, dtype=np.int32)[None], None))
    np.testing.assert_allclose(got, y, atol=3e-4)


def test_scores_shrink_with_the_root_of_the_head_size():
    x = np.random.default_rng(0).normal(size=(1, T, 16)).astype(np.float32)
    place = Place(np.arange(T, dtype=np.int32)[None], None)
    np.testing.assert_array_equal(layer()(x, place)[0], layer(scale=H**-0.5)(x, place)[0])
