"""Contrastive losses and CoCa: against the definitions in float64, on any mesh against one device."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.models.embeddings import Embeddings
from lm_jax.objectives.coca import ContrastiveCaptioningConfig
from lm_jax.objectives.contrastive import ContrastiveConfig, capped
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests.models.images_for_tests import batch_for, coca, two_tower
from tests.models.sentences_for_tests import batch_of_pairs, sentence_encoder

KEY = jax.random.key(0)


def random_pair(rows=6, scale=7.0, bias=None):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, rows, 5))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (drawn[0], drawn[0] / 2 + drawn[1]))
    f = lambda x: None if x is None else np.asarray(x, np.float32)  # noqa: E731
    return Embeddings(f(images), f(texts), f(scale), f(bias), f(0.0), {})


def value(pair, **config):
    return {name: float(term.value) for name, term in ContrastiveConfig(**config).build().terms(pair).items()}


def test_softmax_is_two_cross_entropies():
    pair = random_pair()
    z = 7.0 * pair.left.astype(np.float64) @ pair.right.astype(np.float64).T
    total, hits = 0.0, 0
    for i in range(6):
        total += math.log(sum(math.exp(z[i, j]) for j in range(6))) - z[i, i]
        total += math.log(sum(math.exp(z[j, i]) for j in range(6))) - z[i, i]
        hits += (max(range(6), key=lambda j: z[i, j]) == i) + (max(range(6), key=lambda j: z[j, i]) == i)
    assert value(pair) == pytest.approx({"contrastive": total / 12, "accuracy": hits / 12, "scale": 7.0}, rel=1e-5)
    assert 0 < hits < 12
    assert value(random_pair(scale=200.0), max_scale=7.0) == pytest.approx(value(pair), rel=1e-5)


def test_a_scale_beyond_the_greatest_can_be_lowered_only():
    for above in (-1.0, 1.0):
        for way in (-1.0, 1.0):
            slope = jax.grad(lambda x, way=way: way * capped(x, 5.0))(5.0 + above)
            assert slope == (0.0 if above > 0 and way < 0 else way)


def test_sigmoid_is_one_decision_for_each_pair():
    pair = random_pair(bias=-3.0)
    z = 7.0 * pair.left.astype(np.float64) @ pair.right.astype(np.float64).T - 3.0
    total = sum(math.log1p(math.exp(-z[i, j] if i == j else z[i, j])) for i in range(6) for j in range(6))
    assert value(pair, kind="sigmoid")["contrastive"] == pytest.approx(total / 6, rel=1e-5)
    assert value(pair, kind="sigmoid", max_scale=2.0) == value(pair, kind="sigmoid")  # a cap is of the softmax


def test_what_does_not_go_together_is_named():
    with pytest.raises(ConfigError, match=r"kind='sigmoid' needs a model with a bias"):
        value(random_pair(), kind="sigmoid")
    for config, message in (
        (ContrastiveConfig(kind="hinge"), "kind='hinge'"),
        (ContrastiveConfig(chunks=2), "chunks=2"),
        (ContrastiveCaptioningConfig(caption_weight=-1.0), "not be negative"),
        (dataclasses.replace(two_tower(), pool_token=400), "pool_token=400"),
        (dataclasses.replace(two_tower().image, pool="first"), "pool='first' is the class token"),
        (dataclasses.replace(coca(), text=coca().stack), "the unimodal layers do not see the image"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config)


CASES = {
    "softmax": (two_tower(), ContrastiveConfig()),
    "beyond": (two_tower(), ContrastiveConfig(max_scale=2.0)),
    "sigmoid": (two_tower(bias=-1.0), ContrastiveConfig(kind="sigmoid")),
    "coca": (coca(), ContrastiveCaptioningConfig()),
    "sentences": (sentence_encoder(), ContrastiveConfig()),
}


def step(name, place=lambda batch: batch, accumulate=1):
    config, objective = CASES[name]
    graph, params = split(jax.jit(config.build)(KEY))
    run = functools.partial(gradients, graph=graph, objective=objective.build(), accumulate=accumulate)
    batch = batch_of_pairs() if name == "sentences" else batch_for(config)
    grads, terms = jax.jit(run)(params, place(batch), KEY)
    return grads, {name: float(term.value) for name, term in terms.items()}


@functools.cache
def on_one_device(name):
    return step(name)


MESHES = {
    "dp-fsdp-tp": {"dp": 2, "fsdp": 2, "tp": 2},
    "fsdp-cp-tp": {"dp": 1, "fsdp": 2, "cp": 2, "tp": 2},
    "pp-dp-tp": {"dp": 2, "pp": 2, "tp": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("softmax", "dp-fsdp-tp"),
        ("beyond", "dp-fsdp-tp"),
        ("sigmoid", "fsdp-cp-tp"),
        ("coca", "fsdp-cp-tp"),
        ("coca", "pp-dp-tp"),
        ("sentences", "fsdp-cp-tp"),
        ("sentences", "pp-dp-tp"),
    ],
)
def test_the_global_batch_is_compared_on_any_mesh(name, mesh):
    grads, terms = on_one_device(name)
    shape, layout = MeshShape(**MESHES[mesh]).build(), Layout()
    with use_mesh(shape, layout):
        mesh_grads, mesh_terms = step(name, lambda batch: shard_batch(batch, shape, layout))
    assert mesh_terms == pytest.approx(terms, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5), mesh_grads, grads)


@pytest.mark.slow
def test_coca_is_both_losses_by_their_weights():
    grads, terms = on_one_device("coca")
    assert terms["loss"] == pytest.approx(terms["contrastive"] + 2 * terms["cross_entropy"], rel=1e-6)
    model, batch = coca().build(KEY), batch_for(coca())
    alone = ContrastiveConfig().build()(model, batch)
    assert float(alone["loss"].value) == pytest.approx(terms["contrastive"], rel=1e-5)
    captions = LMConfig().build()(model, batch)
    assert float(captions["loss"].value) == pytest.approx(terms["cross_entropy"], rel=1e-5)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
