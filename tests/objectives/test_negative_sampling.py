"""Negative sampling of skip-gram and CBOW: against loops over pairs, and on any mesh against one device."""

import math

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.word_windows import windows
from lm_jax.models.word_vectors import WordVectorsConfig
from lm_jax.objectives.negative_sampling import NegativeSamplingConfig
from lm_jax.train.step import gradients

KEY, V, D = jax.random.key(0), 16, 8


def batch():
    rng = np.random.default_rng(0)
    document, reach = np.sort(rng.integers(0, 2, (8, 8)), axis=1), rng.integers(1, 4, (8, 8))
    return {
        "tokens": rng.integers(0, V, (8, 8)).astype(np.int32),
        "windows": windows(document, reach),
        "negatives": rng.integers(0, V, (8, 6)).astype(np.int32),
    }


def tables():
    rng = np.random.default_rng(1)
    return {name: {"table": rng.normal(size=(V, D)).astype(np.float32)} for name in ("embedding", "contexts")}


def terms_and_gradients(context, params, data):
    graph, _ = split(WordVectorsConfig(vocab_size=V, width=D, context=context).build(KEY))
    step = jax.jit(
        lambda params, data: gradients(params, data, KEY, graph=graph, objective=NegativeSamplingConfig(negatives=3.0).build())
    )
    grads, terms = step(params, data)
    return grads, {name: float(term.value) for name, term in terms.items()}, float(terms["loss"].count)


def by_loops(context, params, data):
    """(loss, accuracy, pairs, gradient of the vectors by finite sums) from equation 4, pair by pair, in float64."""
    v, u = (params[name]["table"].astype(np.float64) for name in ("embedding", "contexts"))
    loss, right, pairs = 0.0, 0, 0
    grad_v, grad_u = np.zeros_like(v), np.zeros_like(u)

    def logistic(x):
        return 1 / (1 + math.exp(-x))

    def meet(words, target, noise):
        """The mean of the vectors of `words` meets the word `target` and the words `noise`."""
        nonlocal loss, right, pairs
        x = np.mean([v[w] for w in words], axis=0)
        back = np.zeros(D)
        for word, sign, weight in [(target, 1, 1.0), *((n, -1, 3.0 / len(noise)) for n in noise)]:
            p = logistic(sign * x @ u[word])
            loss -= weight * math.log(p)
            slope = -weight * sign * (1 - p)
            grad_u[word] += slope * x
            back += slope * u[word]
        for w in words:
            grad_v[w] += back / len(words)
        right += x @ u[target] > 0
        pairs += 1

    for tokens, mask, noise in zip(data["tokens"], data["windows"], data["negatives"], strict=True):
        for t, word in enumerate(tokens):
            near = [tokens[s] for s in range(len(tokens)) if mask[t, s]]
            if context == "mean":
                if near:
                    meet(near, word, noise)
            else:
                for other in near:
                    meet([word], other, noise)
    return loss / pairs, right / pairs, pairs, grad_v / pairs, grad_u / pairs


@pytest.mark.parametrize("context", ["each", "mean"])
def test_equals_loops_over_pairs_on_one_device_and_on_a_mesh(context):
    data, params = batch(), tables()
    data["windows"][0, 3] = 0  # a word without context
    loss, accuracy, pairs, grad_v, grad_u = by_loops(context, params, data)
    grads, terms, count = terms_and_gradients(context, params, data)
    assert count == pairs and terms == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-5)
    np.testing.assert_allclose(grads["embedding"]["table"], grad_v, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["contexts"]["table"], grad_u, rtol=1e-4, atol=1e-6)
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        _, like = split(jax.jit(WordVectorsConfig(vocab_size=V, width=D).build)(KEY))
        sharded = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, like)
        mesh_grads, mesh_terms, _ = terms_and_gradients(context, sharded, shard_batch(data, mesh, layout))
    assert mesh_terms == pytest.approx(terms, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mesh_grads, grads)


def test_before_training_a_pair_costs_log_2_for_each_word_that_it_is_told_from():
    _, params = split(WordVectorsConfig(vocab_size=V, width=D).build(KEY))
    assert not np.any(params["contexts"]["table"])
    assert np.std(params["embedding"]["table"]) == pytest.approx(1 / (math.sqrt(12) * D), rel=0.2)
    _, terms, _ = terms_and_gradients("each", params, batch())
    assert terms["loss"] == pytest.approx(4 * math.log(2), rel=1e-5)


def test_bad_values_are_named():
    for bad, message in (
        (WordVectorsConfig(context="all"), "context='all'"),
        (WordVectorsConfig(width=0), "width=0"),
        (NegativeSamplingConfig(negatives=0.0), "negatives=0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(bad)
