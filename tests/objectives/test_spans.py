"""The loss of spans against loops over examples, and on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.models.span_reader import SpanReaderConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.objectives.spans import SpansConfig
from lm_jax.train.step import gradients
from tests.models.test_tagger import tagged_batch, tagger

KEY = jax.random.key(0)


def reader(**more):
    return SpanReaderConfig(**{f.name: getattr(tagger(), f.name) for f in dataclasses.fields(tagger())} | {"classes": 2} | more)


def span_batch():
    """Every example has some candidates; about a third of these are right, and some examples have none that is."""
    rng, data = np.random.default_rng(0), tagged_batch()
    weights = (rng.random(data["tokens"].shape) < 0.7) & (data["segments"] > 0)
    targets = rng.integers(0, 4, weights.shape) * (rng.random(weights.shape) < 0.4) * (data["segments"] != 2)
    return data | {"weights": weights.astype(np.float32), "targets": targets.astype(np.int32)}


def test_the_loss_is_that_of_the_definition_on_any_mesh():
    data = span_batch()
    objective = SpansConfig().build()
    graph, params = split(reader().build(KEY))
    model = reader().build(KEY)
    logits = np.asarray(jax.jit(lambda model, batch: model.logits(model(batch).hidden))(model, data), np.float64)
    nats, right = [], []
    for row in range(len(logits)):
        for segment in range(1, data["segments"][row].max() + 1):
            here = (data["segments"][row] == segment) & (data["weights"][row] > 0)
            hits = (data["targets"][row, here][:, None] >> np.arange(2)) & 1 == 1
            if not hits.any():
                continue
            scores = logits[row, here]
            parts = [
                -np.log(np.exp(scores[hits[:, c], c]).sum() / np.exp(scores[:, c]).sum()) for c in range(2) if hits[:, c].any()
            ]
            nats.append(sum(parts))
            right.append([bool(hits[np.argmax(scores[:, c]), c]) for c in range(2)])
    assert len(nats) > 8
    step = lambda graph: jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=objective))  # noqa: E731
    grads, terms = step(graph)(params, data)
    assert terms["loss"].count == len(nats)
    assert terms["loss"].value == pytest.approx(np.mean(nats), rel=1e-5)
    assert terms["accuracy"].value == pytest.approx(np.mean(right), rel=1e-6)
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, sharded = split(jax.jit(reader().build)(KEY))
        mesh_grads, mesh_terms = step(graph)(sharded, shard_batch(data, mesh, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), mesh_grads, grads)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(mesh_terms[name].value, terms[name].value, rtol=1e-5)


def test_bad_values_are_named():
    with pytest.raises(ConfigError, match="chunks=2: spans are scored in one piece"):
        validate_tree(SpansConfig(chunks=2))
    with pytest.raises(ConfigError, match="classes=3 must be 2"):
        validate_tree(reader(classes=3))
    with pytest.raises(ConfigError, match="buckets=0"):
        validate_tree(reader(features=FeaturesConfig(buckets=0)))


def test_a_right_word_far_below_the_best_has_a_loss_and_a_gradient():
    """A gap of several hundred nats, whose exponential is no float32."""
    data = span_batch()
    graph, params = split(reader().build(KEY))
    params["head"]["matrix"] = 3000 * params["head"]["matrix"]
    grads, terms = gradients(params, data, KEY, graph=graph, objective=SpansConfig().build())
    assert 200 < terms["loss"].value < 1e5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
