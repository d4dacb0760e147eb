"""Sampled softmax against the definition in float64, against the whole softmax, and on a mesh against one device."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from lm_jax.config import load_experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.models.multi_token import MultiTokenConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.objectives.lm import LMConfig
from lm_jax.objectives.sampled_softmax import SampledSoftmaxConfig, drawn
from lm_jax.train.step import gradients
from tests.models_for_tests import VOCAB, batch, llama, logits

KEY = jax.random.key(0)
SAMPLED = SampledSoftmaxConfig(common=6, samples=12)
HEADS = {"tied": HeadConfig(), "own": HeadConfig(tied=False, bias=True, soft_cap=3.0, scale=2.0)}


def weighted_batch():
    data = batch()
    data["weights"] = np.random.default_rng(3).integers(0, 3, data["weights"].shape).astype(np.float32)
    return data


def with_bias(model):
    """The model, with biases that are not 0."""
    if model.head.bias is not None:
        model.head.bias[...] = jax.random.normal(KEY, model.head.bias.shape)
    return model


@pytest.mark.parametrize("head", HEADS)
def test_loss_equals_numpy(head):
    """From the logits of all words: those drawn, which the key says, count for those that were not."""
    model, data = with_bias(llama(head=HEADS[head]).build(KEY)), weighted_batch()
    found = SAMPLED.build()(model, data, key=KEY)["loss"]
    scores = logits(model, data["tokens"]).astype(np.float64)
    u = np.asarray(jax.random.uniform(jax.random.fold_in(KEY, 1), (12,)), np.float64)
    ids = np.floor(7 * ((VOCAB + 1) / 7) ** u).astype(int) - 1
    assert ids.min() >= 6 and ids.max() < VOCAB and len(set(ids.tolist())) < 12
    law = np.log((np.arange(VOCAB) + 2) / (np.arange(VOCAB) + 1)) / np.log((VOCAB + 1) / 7)
    assert law[6:].sum() == pytest.approx(1)
    counted = np.zeros(VOCAB)
    counted[:6] = 1
    np.add.at(counted, ids, 1 / (12 * law[ids]))
    expected = 0.0
    for row, targets, weights in zip(scores, data["targets"], data["weights"], strict=True):
        for score, target, weight in zip(row, targets, weights, strict=True):
            times = np.where(np.arange(VOCAB) == target, 1, counted)
            expected += weight * (np.log(np.sum(times * np.exp(score))) - score[target])
    np.testing.assert_allclose(found.sum, expected, rtol=1e-5)
    assert float(found.count) == data["weights"].sum()


def test_words_are_drawn_by_the_law_of_their_weights():
    """Each word is worth 1 on average."""
    ids, times = drawn(KEY, 3, 20, 400_000)
    worth = np.bincount(np.asarray(ids), np.asarray(times, np.float64), minlength=20)
    np.testing.assert_allclose(worth, np.arange(20) >= 3, atol=0.02)


def test_over_many_draws_it_is_the_whole_softmax():
    """Z has no bias, so that the mean loss is below the true one by a little only, and nearer with more samples."""
    model, data = llama(init=Init(weights="fan_in", outputs="same", embedding_std=0.1)).build(KEY), weighted_batch()
    exact = float(LMConfig().build()(model, data)["loss"].value)
    keys = jax.random.split(KEY, 200)
    means = {}
    for samples in (4, 256):
        objective = SampledSoftmaxConfig(common=0, samples=samples).build()
        means[samples] = float(jax.lax.map(lambda key, f=objective: f(model, data, key=key)["loss"].value, keys).mean())
    assert abs(means[256] - exact) < 0.01
    assert exact - 0.3 < means[4] < exact and abs(means[256] - exact) < abs(means[4] - exact)


def test_all_words_without_a_key():
    model, data = llama().build(KEY), weighted_batch()
    exact = float(LMConfig().build()(model, data)["loss"].value)
    assert float(SAMPLED.build()(model, data)["loss"].value) == exact


def test_what_it_cannot_do_is_refused_with_the_config():
    experiment = load_experiment([f"--config={Path(__file__).parents[2] / 'experiments' / 'wikitext2.py'}:smoke"])
    validate_tree(experiment)
    few = dataclasses.replace(experiment.model, vocab_size=16)
    with pytest.raises(ConfigError, match="common=8 and samples=8 are all 16 words"):
        validate_tree(dataclasses.replace(experiment, model=few))
    further = dataclasses.replace(experiment.model, multi_token=MultiTokenConfig(block=experiment.model.stack.pattern[0]))
    with pytest.raises(ConfigError, match=r"trains no module of model\.multi_token"):
        validate_tree(dataclasses.replace(experiment, model=further))


@pytest.mark.parametrize("head", HEADS)
def test_on_a_mesh(head):
    data, found = weighted_batch(), []
    model = llama(head=HEADS[head])
    for mesh in (MeshShape(dp=1), MeshShape(dp=1, fsdp=2, cp=2, tp=2)):
        devices, layout = mesh.build(), Layout()
        with use_mesh(devices, layout):
            graph, params = split(jax.jit(lambda key: model.build(key))(KEY))
            step = jax.jit(lambda params, data, graph=graph: gradients(params, data, KEY, graph=graph, objective=SAMPLED.build()))
            found.append(step(params, shard_batch(data, devices, layout)))
    (grads, terms), (mesh_grads, mesh_terms) = found
    np.testing.assert_allclose(mesh_terms["loss"].value, terms["loss"].value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), mesh_grads, grads)


def test_sizes_are_checked():
    for bad in (SampledSoftmaxConfig(common=-1), SampledSoftmaxConfig(samples=0)):
        with pytest.raises(ConfigError, match="must not be negative, and samples="):
            validate_tree(bad)
    with pytest.raises(ConfigError, match="chunks=2: sampled logits"):
        validate_tree(SampledSoftmaxConfig(chunks=2))
