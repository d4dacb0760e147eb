"""The loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.objectives.lm import LMConfig
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
