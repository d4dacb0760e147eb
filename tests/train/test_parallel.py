"""Every mesh computes what one device computes: loss, gradients, and where they are kept."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.evals.perplexity import from_logits, perplexity
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.muon import Muon
from lm_jax.train.step import StepConfig, gradients, init_state, train_step
from tests.models_for_tests import VOCAB, batch, far, gpt2, latent, llama, moe, odd, recurrent

KEY = jax.random.key(0)
MESHES = {
    "dp": MeshShape(dp=8),
    "fsdp": MeshShape(dp=1, fsdp=8),
    "dp-fsdp": MeshShape(dp=2, fsdp=4),
    "tp": MeshShape(dp=1, tp=2),
    "fsdp-tp": MeshShape(dp=1, fsdp=4, tp=2),
    "dp-fsdp-tp": MeshShape(dp=2, fsdp=2, tp=2),
    "cp": MeshShape(dp=1, cp=4),
    "fsdp-cp": MeshShape(dp=1, fsdp=2, cp=4),
    "cp-tp": MeshShape(dp=1, cp=4, tp=2),
    "fsdp-cp-tp": MeshShape(dp=1, fsdp=2, cp=2, tp=2),
    "pp": MeshShape(dp=1, pp=2),
    "pp-fsdp": MeshShape(dp=1, pp=4, fsdp=2),
    "pp-dp-tp": MeshShape(dp=2, pp=2, tp=2),
    "pp-fsdp-cp": MeshShape(dp=1, pp=2, fsdp=2, cp=2),
    "pp-fsdp-ep": MeshShape(dp=1, pp=2, fsdp=2, ep=2),
    "pp-ep-tp": MeshShape(dp=1, pp=2, ep=2, tp=2),
    "fsdp-ep": MeshShape(dp=1, fsdp=2, ep=4),
    "dp-ep-tp": MeshShape(dp=2, ep=2, tp=2),
    "ep-cp-tp": MeshShape(dp=1, ep=2, cp=2, tp=2),
}
CONFIGS = {
    "llama": llama(),
    "replicated": llama(),
    "odd": odd(),
    "gpt2": gpt2(32),
    "dropout": llama(),
    "latent": latent(),
    "far": far(),
}
CONFIGS["recurrent"] = recurrent()
# A row's capacity is that of its part on a device where rows are split: "wide" drops nothing.
CONFIGS |= {"moe": moe(), "capacity": moe(capacity_factor=0.9), "wide": moe(capacity_factor=2.0), "room": moe(room=4.0)}
# Pipelines: layers for up to 4 devices; "circular" passes them twice. A balance loss by row does not depend on micro-batches.
CONFIGS |= {"deep": llama(), "circular": llama(), "circular-moe": moe(), "row-moe": moe()}
for name in ("deep", "circular", "circular-moe"):
    CONFIGS[name].stack.repeats = 4
for name in ("circular", "circular-moe"):
    CONFIGS[name].stack.rounds = 2
for name in ("circular-moe", "row-moe"):
    CONFIGS[name].stack.pattern[1].feed_forward.router.balance_over = "row"
for name in ("dropout", "circular"):
    CONFIGS[name].stack.pattern[0].dropout = 0.2
    CONFIGS[name].embedding.dropout = 0.1


def packed_batch():
    """Documents of unequal length in rows of 32, padding at the end, uneven weights."""
    rng, data = np.random.default_rng(3), batch(length=32)
    cuts = np.sort(rng.integers(1, 32, (8, 3)), axis=1)
    where = np.arange(32)
    segments = 1 + (where[None, :, None] >= cuts[:, None, :]).sum(-1).astype(np.int32)
    starts = np.where(segments == 1, 0, np.take_along_axis(np.pad(cuts, ((0, 0), (1, 0))), segments - 1, axis=1))
    segments = np.where(segments == 4, 0, segments).astype(np.int32)
    weights = (segments > 0) * rng.integers(0, 2, segments.shape)
    return data | {"segments": segments, "positions": (where - starts).astype(np.int32), "weights": weights.astype(np.float32)}


def loss_and_gradients(config, data, chunks, accumulate, place=lambda data: data):
    graph, params = split(jax.jit(config.build)(KEY))
    step = functools.partial(gradients, graph=graph, objective=LMConfig(z_loss=1e-3, chunks=chunks).build(), accumulate=accumulate)
    grads, terms = jax.jit(step)(params, place(data), KEY)
    return params, grads, {name: term.value for name, term in terms.items()}


@functools.cache
def on_one_device(name, packed, accumulate):
    data = packed_batch() if packed else batch(length=32)
    return loss_and_gradients(CONFIGS[name], data, 1, accumulate)


PACKED = [("llama", "dp-fsdp-tp"), ("llama", "cp"), *((name, "fsdp-cp-tp") for name in ("llama", "odd", "gpt2", "dropout"))]
PACKED += [("latent", "ep-cp-tp"), ("far", "fsdp-cp-tp"), ("latent", "pp-fsdp-cp"), ("far", "pp-dp-tp")]
PACKED += [("recurrent", "fsdp-cp-tp"), ("recurrent", "pp-dp-tp")]
PACKED += [("moe", "ep-cp-tp"), ("wide", "ep-cp-tp"), ("circular", "pp"), ("circular-moe", "pp-ep-tp"), ("deep", "pp-fsdp-cp")]


def plain(*names_and_meshes):
    """Those that are not tested with packed documents already."""
    return [pair for pair in names_and_meshes if pair not in PACKED]


def layout_for(name: str) -> Layout:
    """One key-value head cannot be split; many small experts had better be whole; "replicated" splits tokens only by tp."""
    whole = Layout(heads=(), kv_heads=(), mlp=())
    layouts = {"odd": Layout(kv_heads=()), "replicated": whole, "wide": Layout(experts=("ep", "tp"), expert_mlp=())}
    return layouts.get(name, Layout(gather_once=name != "row-moe"))


def check(name, mesh_name, packed=False, chunks=1, accumulate=1):
    data = packed_batch() if packed else batch(length=32)
    params, grads, terms = on_one_device(name, packed, accumulate)
    mesh, layout = MESHES[mesh_name].build(), layout_for(name)
    with use_mesh(mesh, layout):
        place = lambda data: shard_batch(data, mesh, layout)  # noqa: E731
        sharded, mesh_grads, mesh_terms = loss_and_gradients(CONFIGS[name], data, chunks, accumulate, place)
    jax.tree.map(np.testing.assert_array_equal, sharded, params)
    if mesh.shape["pp"] > 1 and "load_max" in terms:
        assert mesh_terms.pop("load_max") >= terms["load_max"]  # the mean over smaller micro-batches
    for term in mesh_terms:
        np.testing.assert_allclose(mesh_terms[term], terms[term], rtol=1e-5, err_msg=term)
    assert terms.keys() - mesh_terms.keys() <= {"load_max"}
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1.0, np.abs(b).max()))  # noqa: E731
    jax.tree.map(near, mesh_grads, grads)

    def kept(x, g, axes):
        assert x.sharding == g.sharding
        parts = [mesh.shape[axis] for dim in axes for axis in getattr(layout, dim)]
        assert x.addressable_shards[0].data.nbytes * int(np.prod(parts)) == x.nbytes

    jax.tree.map(kept, sharded, mesh_grads, logical_axes(jax.eval_shape(CONFIGS[name].build, KEY)))


@pytest.mark.parametrize(
    ("name", "mesh_name"),
    [
        ("deep", "pp-fsdp-cp"),  # packed it is never read in one piece
        *plain(
            *(("llama", mesh) for mesh in MESHES if "ep" not in mesh and "pp" not in mesh),
            *(("deep", mesh) for mesh in MESHES if "pp" in mesh and "ep" not in mesh),
            *(("circular", mesh) for mesh in ("fsdp", "pp-dp-tp")),
            *(("odd", mesh) for mesh in ("dp", "fsdp-tp", "cp-tp")),
            *(("replicated", mesh) for mesh in ("tp", "fsdp-cp-tp")),
            *(("moe", mesh) for mesh in ("fsdp-ep", "dp-ep-tp", "fsdp-cp-tp")),
            *(("capacity", mesh) for mesh in ("dp-fsdp", "fsdp-ep")),
            ("wide", "dp-ep-tp"),
            *(("room", mesh) for mesh in ("fsdp-ep", "ep-cp-tp")),
            *(("row-moe", mesh) for mesh in ("pp", "pp-fsdp-ep")),
        ),
    ],
)
def test_any_mesh_equals_one_device(name, mesh_name):
    check(name, mesh_name)


@pytest.mark.parametrize(("name", "mesh_name"), PACKED)
def test_packed_documents_in_chunks_and_micro_batches(name, mesh_name):
    check(name, mesh_name, packed=True, chunks=4, accumulate=2)


@pytest.mark.parametrize(
    ("name", "optimizer", "mesh_name"),
    [
        ("llama", AdamW(learning_rate=1e-2), "fsdp-cp-tp"),
        ("llama", Muon(), "dp-fsdp-tp"),
        ("moe", AdamW(learning_rate=1e-3), "dp-ep-tp"),
        ("circular", Muon(), "pp-dp-tp"),
        ("recurrent", AdamW(learning_rate=2e-4), "fsdp-cp-tp"),
        ("circular-moe", AdamW(learning_rate=1e-3), "pp-fsdp-ep"),
    ],
    ids=["adamw", "muon", "moe", "pipeline", "recurrent", "pipeline-moe"],
)
def test_twenty_steps_equal_one_device(name, optimizer, mesh_name):
    def train(place):
        graph, params = split(jax.jit(CONFIGS[name].build)(KEY))
        rule, config = optimizer.build(logical_axes(nnx.merge(graph, params)), 20), StepConfig(ema_decay=0.9)
        step = functools.partial(train_step, graph=graph, objective=LMConfig().build(), optimizer=rule, config=config)
        state, step = jax.jit(functools.partial(init_state, optimizer=rule, config=config))(params), jax.jit(step)
        losses = []
        for i in range(20):
            state, metrics, _ = step(state, place(batch(length=32, seed=i)), KEY)
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1
        return losses, state.params

    losses, params = train(lambda data: data)
    mesh, layout = MESHES[mesh_name].build(), Layout()
    with use_mesh(mesh, layout):
        mesh_losses, mesh_params = train(lambda data: shard_batch(data, mesh, layout))
    np.testing.assert_allclose(mesh_losses, losses, rtol=2e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-3), mesh_params, params)


@pytest.mark.parametrize(
    ("name", "mesh_name"),
    [
        ("llama", "fsdp-cp-tp"),
        ("odd", "fsdp-cp-tp"),
        ("recurrent", "fsdp-cp-tp"),
        ("moe", "dp-ep-tp"),
        ("wide", "ep-cp-tp"),
        ("circular-moe", "pp-fsdp-ep"),
    ],
)
def test_evaluation_and_generation_on_a_mesh(name, mesh_name):
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6]]

    def scores(place):
        graph, params = split(jax.jit(CONFIGS[name].build)(KEY))
        batches = [place(packed_batch()), place(batch(length=32) | {k: packed_batch()[k] for k in ("segments", "positions")})]
        return graph, params, dict(perplexity(from_logits(graph, params, chunks=2), batches, 1000))

    greedy = functools.partial(generate, prompts=prompts, max_tokens=9, sampling=SamplingConfig(temperature=0.0))
    graph, params, expected = scores(lambda data: data)
    tokens = greedy(graph, params)
    mesh, layout = MESHES[mesh_name].build(), layout_for(name)
    with use_mesh(mesh, layout):
        graph, params, got = scores(lambda data: shard_batch(data, mesh, layout))
    assert got == pytest.approx(expected, rel=1e-5)
    with use_mesh(mesh, dataclasses.replace(layout, batch=(), sequence=(), residual=())):
        assert greedy(graph, params) == tokens


def test_no_device_ever_holds_the_logits_of_the_whole_vocabulary():
    mesh, layout, data = MESHES["fsdp-tp"].build(), Layout(), batch(length=32)
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(CONFIGS["llama"].build)(KEY))
        step = jax.jit(functools.partial(gradients, graph=graph, objective=LMConfig().build()))
        text = step.lower(params, shard_batch(data, mesh, layout), KEY).compile().as_text()
    assert f"[64,{VOCAB // 2}]" in text  # of the 2 x 32 tokens of a device
    assert f"[64,{VOCAB}]" not in text and f"[2,32,{VOCAB}]" not in text


def test_rows_that_do_not_split_are_named():
    mesh = MeshShape(dp=1, cp=4).build()
    with pytest.raises(ConfigError, match="rows of 12 tokens do not split into 2 x 4 slices"):
        shard_batch(batch(length=12), mesh, Layout())
