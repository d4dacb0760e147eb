"""The train step: accumulation, clipping, skipping, averaging, compile time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.muon import Muon
from lm_jax.train.step import StepConfig, init_state, train_step
from tests.models_for_tests import batch, llama

KEY = jax.random.key(0)
PLAIN, ADAMW, LLAMA = StepConfig(), AdamW(learning_rate=1e-2), llama()


def setup(config=PLAIN, optimizer=ADAMW, model=LLAMA):
    """(state, jitted step) of a small model."""
    built = jax.jit(model.build)(KEY)
    graph, params = split(built)
    rule = optimizer.build(logical_axes(built), 100)
    objective = LMConfig(z_loss=1e-3).build()
    step = functools.partial(train_step, graph=graph, objective=objective, optimizer=rule, config=config)
    return jax.jit(functools.partial(init_state, optimizer=rule, config=config))(params), jax.jit(step)


def ragged_batch():
    """Rows of very unequal weight, so that a mean of micro-batch means would be wrong."""
    data = batch()
    data["weights"] = (np.arange(16)[None, :] < np.array([1, 16, 3, 16, 16, 2, 16, 9])[:, None]).astype(np.float32)
    return data


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_equals_the_whole_batch(parts):
    state, whole = setup()
    _, parted = setup(StepConfig(accumulate=parts))
    a, metrics_a, norms_a = whole(state, ragged_batch(), KEY)
    b, metrics_b, norms_b = parted(state, ragged_batch(), KEY)
    for name in metrics_a:
        np.testing.assert_allclose(metrics_a[name], metrics_b[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), norms_a, norms_b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), a.params, b.params)


@pytest.mark.parametrize("parts", [1, 2])
def test_padding_changes_no_gradient(parts):
    state, step = setup(StepConfig(accumulate=parts, clip_norm=None))
    full, padded = batch(rows=4), batch(rows=8)
    padded["weights"] = (np.arange(8) < 4).astype(np.float32)[:, None] * padded["weights"]
    for name in ("tokens", "targets"):
        padded[name][:4] = full[name]
    a, metrics_a, norms_a = step(state, full, KEY)
    b, metrics_b, norms_b = step(state, padded, KEY)
    np.testing.assert_allclose(metrics_a["loss"], metrics_b["loss"], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), norms_a, norms_b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), a.opt.mu, b.opt.mu)


def test_gradient_norm_and_clipping_equal_numpy():
    state, step = setup(StepConfig(clip_norm=None))
    _, metrics, norms = step(state, batch(), KEY)
    total = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(norms)))
    np.testing.assert_allclose(metrics["grad_norm"], total, rtol=1e-6)
    layers = norms["stack"]["block0"]["mixer"]["query"]
    assert layers.shape == (3,) and norms["embedding"]["table"].shape == ()
    # Adam does not see the scale of the gradient, so look at its first moment.
    _, clipped = setup(StepConfig(clip_norm=0.01))
    free, _, _ = step(state, batch(), KEY)
    bound, _, _ = clipped(state, batch(), KEY)
    ratio = jax.tree.leaves(bound.opt.mu)[0] / jax.tree.leaves(free.opt.mu)[0]
    np.testing.assert_allclose(ratio, 0.01 / total, rtol=1e-4)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_an_update_that_is_not_finite_changes_no_bit(where, optimizer):
    state, step = setup(StepConfig(ema_decay=0.9), optimizer)
    state, _, _ = step(state, batch(), KEY)
    bad = batch()
    bad["weights"] = bad["weights"].copy()
    bad["weights"][0, 0] = np.nan if where == "loss" else 3e38
    new, metrics, norms = step(state, bad, KEY)
    assert metrics["finite"] == 0 and int(new.step) == int(state.step) + 1
    jax.tree.map(np.testing.assert_array_equal, new[1:], state[1:])
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(norms))
    after, metrics, _ = step(new, batch(), KEY)
    assert metrics["finite"] == 1
    assert not np.array_equal(after.params["embedding"]["table"], new.params["embedding"]["table"])


def test_average_follows_the_parameters():
    state, step = setup(StepConfig(ema_decay=0.5))
    mean = jax.tree.map(np.asarray, state.ema)
    for i in range(4):
        state, _, _ = step(state, batch(seed=i), KEY)
        rate = 1 - min(0.5, (1 + i) / (10 + i))
        mean = jax.tree.map(lambda m, p, rate=rate: m + np.float32(rate) * (np.asarray(p) - m), mean, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, state.ema)


def test_dropout_is_a_function_of_step_and_key():
    model = llama()
    model.stack.pattern[0].dropout = 0.2
    state, step = setup(model=model)
    first, _, _ = step(state, batch(), KEY)
    again, _, _ = step(state, batch(), KEY)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    later = step(state._replace(step=jnp.int32(1)), batch(), KEY)[1]["loss"]
    other = step(state, batch(), jax.random.key(9))[1]["loss"]
    here = step(state, batch(), KEY)[1]["loss"]
    assert len({float(later), float(other), float(here)}) == 3


def test_accumulation_works_on_a_mesh():
    state, step = setup(StepConfig(accumulate=2))
    mesh, layout = MeshShape(dp=2, fsdp=2).build(), Layout()
    expected = step(state, ragged_batch(), KEY)[1]
    with use_mesh(mesh, layout):
        state, step = setup(StepConfig(accumulate=2))
        got = step(state, shard_batch(ragged_batch(), mesh, layout), KEY)[1]
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(got["grad_norm"], expected["grad_norm"], rtol=1e-5)


def test_the_program_does_not_grow_with_depth():
    sizes = []
    for repeats in (4, 32):
        model = dataclasses.replace(llama(), stack=dataclasses.replace(llama().stack, repeats=repeats))
        state, step = setup(model=model)
        sizes.append(len(step.lower(state, batch(), KEY).as_text()))
    assert sizes[1] < 1.02 * sizes[0]


def test_it_learns():
    state, step = setup(optimizer=AdamW(learning_rate=3e-3))
    tokens = np.tile(np.arange(17, dtype=np.int32), (8, 1))
    data = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}
    losses = []
    for _ in range(40):
        state, metrics, _ = step(state, data, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.1 * losses[0]
