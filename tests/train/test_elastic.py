"""A checkpoint of any mesh goes on on any other: the same next losses."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.muon import Muon
from lm_jax.train.checkpoint import CheckpointConfig, Checkpoints
from lm_jax.train.step import StepConfig, init_state, train_step
from tests.models_for_tests import batch, moe

KEY = jax.random.key(0)
MESHES = {
    "one": MeshShape(dp=1),
    "fsdp8": MeshShape(dp=1, fsdp=8),
    "dp2-fsdp2-tp2": MeshShape(dp=2, fsdp=2, tp=2),
    "cp4-tp2": MeshShape(dp=1, cp=4, tp=2),
    "ep2-cp2": MeshShape(dp=1, ep=2, cp=2),
    "pp2-fsdp2-ep2": MeshShape(dp=1, pp=2, fsdp=2, ep=2),
}
MODEL = moe()  # each layer of a kind that some axis splits; the balance by row does not depend on micro-batches
MODEL.stack.pattern[1].feed_forward.router.balance_over = "row"
STEPS = StepConfig(ema_decay=0.9)


@functools.cache
def parts():
    model = jax.eval_shape(MODEL.build, KEY)
    return split(model)[0], Muon().build(logical_axes(model), 20)


def fresh():
    return init_state(split(MODEL.build(KEY))[1], parts()[1], STEPS)


@functools.cache
def compiled(name):
    graph, rule = parts()
    return jax.jit(functools.partial(train_step, graph=graph, objective=LMConfig().build(), optimizer=rule, config=STEPS))


def run(name, state, start, stop):
    """(state, losses) of steps `start` to `stop` - 1 on a mesh, from the state or from the initialisation."""
    mesh, layout, losses = MESHES[name].build(), Layout(), []
    with use_mesh(mesh, layout):
        state = jax.jit(fresh)() if state is None else state
        for step in range(start, stop):
            state, metrics, _ = compiled(name)(state, shard_batch(batch(length=32, seed=step), mesh, layout), KEY)
            losses.append(float(metrics["loss"]))
    return state, losses


def target(name):
    """The shapes and shardings that a restore onto a mesh asks for."""
    mesh = MESHES[name].build()
    with use_mesh(mesh, Layout()):
        shapes = jax.eval_shape(fresh)
    place = lambda x: NamedSharding(mesh, PartitionSpec() if x.sharding is None else x.sharding.spec)  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), shapes)


@pytest.fixture(scope="module")
def straight():
    return run("one", None, 0, 4)[1]


@pytest.mark.parametrize("source", MESHES)
def test_a_checkpoint_goes_on_on_every_other_mesh(source, straight, tmp_path):
    state, before = run(source, None, 0, 2)
    np.testing.assert_allclose(before, straight[:2], rtol=1e-5)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(2, state, {}, {})
        checkpoints.wait()
        for other in MESHES:
            if other != source:
                _, restored = checkpoints.restore(like=target(other))
                jax.tree.map(np.testing.assert_array_equal, restored, state)
                np.testing.assert_allclose(run(other, restored, 2, 4)[1], straight[2:], rtol=1e-5, err_msg=other)
