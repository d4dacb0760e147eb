"""The loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests import hlo
from tests.models_for_tests import VOCAB, batch, llama, logits


def weighted_batch():
    data = batch()
    data["weights"] = np.random.default_rng(3).integers(0, 2, data["weights"].shape).astype(np.float32)
    return data


@pytest.mark.parametrize("chunks", [1, 4])
def test_loss_equals_numpy(chunks):
    model, data = llama().build(jax.random.key(0)), weighted_batch()
    scores = logits(model, data["tokens"]).astype(np.float64)
    log_z = np.log(np.exp(scores).sum(-1))
    entropy = log_z - np.take_along_axis(scores, data["targets"][..., None], -1)[..., 0]
    weights = data["weights"]
    terms = LMConfig(z_loss=0.01, chunks=chunks).build()(model, data)
    assert float(terms["loss"].count) == weights.sum()
    np.testing.assert_allclose(terms["cross_entropy"].sum, (entropy * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["z_loss"].sum, 0.01 * (log_z**2 * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["loss"].sum, terms["cross_entropy"].sum + terms["z_loss"].sum, rtol=1e-6)
    hits = (scores.argmax(-1) == data["targets"]) * weights
    assert float(terms["accuracy"].sum) == hits.sum()


def test_chunks_never_hold_the_whole_logits_and_give_the_same_gradient():
    graph, params = split(llama().build(jax.random.key(0)))
    data, grads = weighted_batch(), {}
    for chunks in (1, 4):
        objective = LMConfig(z_loss=0.01, chunks=chunks).build()

        def loss(params, objective=objective):
            return objective(nnx.merge(graph, params), data)["loss"].value

        grads[chunks] = jax.jit(jax.grad(loss))(params)
        text = jax.jit(jax.grad(loss)).lower(params).as_text()
        assert (f"8x16x{VOCAB}xf32" in text) == (chunks == 1)
        assert (f"8x4x{VOCAB}xf32" in text) == (chunks == 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads[1], grads[4])
    assert hlo.dot_flops(jax.grad(loss), params) > 0


def thinly_weighted_batch():
    """4 of the 16 tokens of each row."""
    data, rng = batch(), np.random.default_rng(3)
    data["weights"] = rng.permuted(np.tile(np.float32([1, 0.5, 2, 1] + [0] * 12), (8, 1)), axis=1)
    return data


def test_logits_of_the_weighted_tokens_are_enough():
    """The same loss and gradient, and no row of more logits than asked for; where more have weight, no number."""
    graph, params = split(llama().build(jax.random.key(0)))
    data, found = thinly_weighted_batch(), {}
    for share in (None, 0.25):
        objective = LMConfig(z_loss=0.01, scored=share).build()

        def loss(params, objective=objective):
            return objective(nnx.merge(graph, params), data)["loss"].value

        step = jax.jit(jax.value_and_grad(loss))
        found[share] = step(params)
        text = step.lower(params).as_text()
        assert (f"8x16x{VOCAB}xf32" in text) == (share is None) and (f"8x4x{VOCAB}xf32" in text) == (share is not None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[None], found[0.25])
    assert np.isnan(LMConfig(scored=0.1).build()(nnx.merge(graph, params), data)["loss"].value)
    with pytest.raises(ConfigError, match=r"scored=0\.0 must be in"):
        validate_tree(LMConfig(scored=0.0))


@pytest.mark.slow
def test_logits_of_the_weighted_tokens_on_a_mesh():
    """Also where all of them are on one of the devices that a row is split over."""
    data, found = thinly_weighted_batch(), []
    data["weights"][:4] = np.float32([1, 0.5, 2, 1] + [0] * 12)
    for mesh in (MeshShape(dp=1), MeshShape(dp=1, fsdp=2, cp=2, tp=2)):
        devices, layout = mesh.build(), Layout()
        with use_mesh(devices, layout):
            graph, params = split(jax.jit(llama().build)(jax.random.key(0)))
            objective = LMConfig(scored=0.25).build()
            step = jax.jit(
                lambda params, data, graph=graph, f=objective: gradients(params, data, jax.random.key(0), graph=graph, objective=f)
            )
            found.append(step(params, shard_batch(data, devices, layout)))
    (grads, terms), (mesh_grads, mesh_terms) = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), mesh_grads, grads)
    np.testing.assert_allclose(mesh_terms["loss"].value, terms["loss"].value, rtol=1e-6)


def test_chunks_must_divide_the_row():
    with pytest.raises(ConfigError, match="chunks=3 does not divide the 16 tokens"):
        LMConfig(chunks=3).build()(llama().build(jax.random.key(0)), jax.tree.map(jnp.asarray, batch()))


@pytest.mark.parametrize("chunks", [1, 4])
def test_smoothing_and_class_weights_equal_numpy(chunks):
    """Against the definition: the target distribution is 1 - e at the target plus e / V at every token."""
    model, data = llama().build(jax.random.key(0)), weighted_batch()
    scores = logits(model, data["tokens"]).astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    by_class = np.linspace(0.5, 2.0, VOCAB)
    target = 0.8 * np.eye(VOCAB)[data["targets"]] + 0.2 / VOCAB
    weights = data["weights"] * by_class[data["targets"]]
    objective = LMConfig(label_smoothing=0.2, class_weights=tuple(by_class.tolist()), chunks=chunks).build()
    terms = objective(model, data)
    np.testing.assert_allclose(terms["loss"].sum, -((target * logs).sum(-1) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["loss"].count, weights.sum(), rtol=1e-5)
    with pytest.raises(ConfigError, match="class_weights has 2 numbers, and the model scores 40 targets"):
        LMConfig(class_weights=(1.0, 2.0)).build()(model, data)


def test_weights_of_classes_do_not_look_like_tokens_left_out():
    """Their sums differ with the order in which they are added up."""
    model, data, rng = llama().build(jax.random.key(0)), batch(), np.random.default_rng(0)
    by_class = tuple(rng.uniform(0.1, 3, VOCAB).tolist())
    objective = LMConfig(scored=0.75, class_weights=by_class).build()
    for _ in range(10):
        data["weights"] = (rng.random(data["weights"].shape) < 0.4).astype(np.float32)
        assert np.isfinite(objective(model, data)["loss"].value) == (data["weights"].sum(axis=1) <= 12).all()
