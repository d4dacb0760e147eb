"""Additive attention against loops in float64."""

import jax
import numpy as np
from flax import nnx

from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.init import Init
from lm_jax.nn.place import Place


def test_scores_and_segments_equal_loops():
    rng = np.random.default_rng(0)
    layer = AdditiveAttentionConfig(size=5).build(nnx.Rngs(params=jax.random.key(0)), 6, Init(weights="fan_in", outputs="same"), 1)
    x, memory = rng.normal(size=(2, 4, 6)).astype(np.float32), rng.normal(size=(2, 7, 6)).astype(np.float32)
    queries, keys = rng.integers(1, 3, (2, 4)), rng.integers(0, 3, (2, 7))
    keys[:, :2] = [1, 2]  # each query sees something
    place = Place(np.arange(4, dtype=np.int32)[None], queries.astype(np.int32))
    got = layer.read(x, place, layer.remember(memory), keys.astype(np.int32))
    w, u, v, o = (np.asarray(p[...], np.float64) for p in (layer.query, layer.key, layer.score, layer.output))
    want = np.zeros((2, 4, 6))
    for b in range(2):
        for t in range(4):
            seen = [s for s in range(7) if keys[b, s] == queries[b, t]]
            scores = np.array([v @ np.tanh(x[b, t] @ w + memory[b, s] @ u) for s in seen])
            shares = np.exp(scores) / np.exp(scores).sum()
            want[b, t] = sum(share * memory[b, s] for share, s in zip(shares, seen, strict=True)) @ o
    np.testing.assert_allclose(got, want, atol=1e-5)
