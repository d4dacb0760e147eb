"""GloVe: against loops over pairs, on any mesh, and on counts that a small table explains in full."""

import math

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.models.glove import GloVeConfig
from lm_jax.objectives.glove import GloVeLossConfig
from lm_jax.train.step import gradients

KEY, V, D = jax.random.key(0), 16, 8
LOSS = GloVeLossConfig(largest=20.0, power=0.6)


def batch():
    rng = np.random.default_rng(0)
    words, contexts = rng.integers(0, V, (2, 8, 8)).astype(np.int32)
    return {"tokens": words, "contexts": contexts, "counts": rng.uniform(0.1, 50, (8, 8)).astype(np.float32)}


def tables():
    rng, widths = np.random.default_rng(1), {"embedding": D, "contexts": D, "bias": 1, "context_bias": 1}
    values = {name: rng.normal(size=(V, width)).astype(np.float32) for name, width in widths.items()}
    return {name: {"table": value} if value.shape[1] == D else value for name, value in values.items()}


def loss_and_gradients(params, data):
    graph, _ = split(GloVeConfig(vocab_size=V, width=D).build(KEY))
    grads, terms = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=LOSS.build()))(params, data)
    return grads, float(terms["loss"].value), float(terms["loss"].count)


def by_loops(params, data):
    """(loss, its gradient) of equations 8 and 9, pair by pair, in float64."""
    v, u = (params[name]["table"].astype(np.float64) for name in ("embedding", "contexts"))
    b, c = (params[name][:, 0].astype(np.float64) for name in ("bias", "context_bias"))
    slopes, loss = [np.zeros_like(x) for x in (v, u, b, c)], 0.0
    pairs = list(zip(*(data[name].ravel().tolist() for name in ("tokens", "contexts", "counts")), strict=True))
    for i, j, count in pairs:
        weight = (count / 20.0) ** 0.6 if count < 20.0 else 1.0
        error = v[i] @ u[j] + b[i] + c[j] - math.log(count)
        loss += weight * error**2 / len(pairs)
        slope = 2 * weight * error / len(pairs)
        for table, row, value in zip(slopes, (i, j, i, j), (slope * u[j], slope * v[i], slope, slope), strict=True):
            table[row] += value
    return loss, slopes


def test_equals_loops_over_pairs_on_one_device_and_on_a_mesh():
    data, params = batch(), tables()
    loss, slopes = by_loops(params, data)
    grads, found, count = loss_and_gradients(params, data)
    assert count == 64 and found == pytest.approx(loss, rel=1e-5)
    flat = grads["embedding"]["table"], grads["contexts"]["table"], grads["bias"][:, 0], grads["context_bias"][:, 0]
    for got, expected in zip(flat, slopes, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        _, like = split(jax.jit(GloVeConfig(vocab_size=V, width=D).build)(KEY))
        sharded = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, like)
        mesh_grads, mesh_loss, _ = loss_and_gradients(sharded, shard_batch(data, mesh, layout))
    assert mesh_loss == pytest.approx(found, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mesh_grads, grads)


def test_it_starts_with_small_vectors_and_no_bias():
    _, params = split(GloVeConfig(vocab_size=400, width=D).build(KEY))
    for name in ("embedding", "contexts"):
        assert np.std(params[name]["table"]) == pytest.approx(1 / (math.sqrt(12) * D), rel=0.1)
    assert not np.any(params["bias"]) and not np.any(params["context_bias"])
    assert not np.array_equal(params["embedding"]["table"], params["contexts"]["table"])


def test_bad_values_are_named():
    for bad, message in (
        (GloVeLossConfig(largest=0.0), "largest=0.0"),
        (GloVeLossConfig(power=-1.0), "power=-1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(bad)
