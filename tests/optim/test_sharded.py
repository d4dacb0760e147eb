"""On an explicit mesh of 8 devices optimizers compute what they do on one, and state is split as parameters are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.optim.adafactor import Adafactor
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.base import OptimizerConfig, clip_by_norm, update_ema
from lm_jax.optim.groups import map_axes
from lm_jax.optim.lion import Lion
from lm_jax.optim.muon import Muon
from tests.optim.trees import draw

AXES = {
    "embedding": {"table": ("vocab", "embed")},
    "mixer": {
        "query": ("layers", "embed", "heads", "head_dim"),
        "output": ("layers", "heads", "head_dim", "embed"),
        "key_bias": ("layers", "kv_heads", "head_dim"),
    },
    "experts": {"up": ("layers", "experts", "expert_embed", "expert_mlp")},
    "projection": ("embed", "mlp"),
}
NUM_STEPS = 3
# Gradients that never are zero: a sign or an rms of rounding errors would differ between meshes.
GRADS = [draw(seed, 0.01, AXES) for seed in range(1, NUM_STEPS + 1)]
CONFIGS = [
    AdamW(),
    Lion(),
    Adafactor(min_factored=16, momentum=0.9),
    Muon(),
    Muon(scale="adam_rms", iteration_dtype="bfloat16"),
]
MESHES = {
    "data": MeshShape(dp=8),
    "fsdp": MeshShape(dp=1, fsdp=8),
    "mixed": MeshShape(dp=1, fsdp=2, ep=2, tp=2),
    "pipeline": MeshShape(dp=1, pp=2, fsdp=2, tp=2),
}


def one_step(optimizer):
    def step(grads, state, params, ema, number):
        grads = clip_by_norm(grads, jnp.float32(2.0), 1.0)
        params, state = optimizer.update(grads, state, params, number)
        return params, state, update_ema(ema, params, 0.9, number)

    return jax.jit(step)


def train(config: OptimizerConfig, place):
    optimizer = config.build(AXES, NUM_STEPS)
    step = one_step(optimizer)
    params = ema = place(draw(0, axes=AXES))
    state = jax.jit(optimizer.init)(params)
    for number, grads in enumerate(GRADS):
        params, state, ema = step(place(grads), state, params, ema, jnp.int32(number))
    assert step._cache_size() == 1, "the state changes its type from one step to the next"
    return params, state, ema


@pytest.fixture(scope="module")
def single():
    results = {}

    def get(index: int):
        if index not in results:
            results[index] = train(CONFIGS[index], lambda tree: jax.tree.map(jnp.asarray, tree))
        return results[index]

    return get


@pytest.mark.parametrize(
    "mesh_name,index",
    [("fsdp", 1), ("fsdp", 3), ("data", 3), ("pipeline", 3), *(("mixed", index) for index in range(len(CONFIGS)))],
    ids=lambda value: f"{type(CONFIGS[value]).__name__}{value}" if isinstance(value, int) else value,
)
def test_sharded_equals_single_device(mesh_name, index, single):
    mesh, layout = MESHES[mesh_name].build(), Layout()
    shardings = map_axes(lambda names: NamedSharding(mesh, layout.spec(names)), AXES)
    with use_mesh(mesh, layout):
        params, state, ema = train(CONFIGS[index], lambda tree: jax.device_put(tree, shardings))
    expected, expected_state, expected_ema = single(index)
    # bfloat16 rounds products that were summed in another order; nothing else may differ visibly.
    atol = 1e-3 if getattr(CONFIGS[index], "iteration_dtype", "") == "bfloat16" else 1e-6
    for a, b in ((params, expected), (ema, expected_ema)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    jax.tree.map(lambda p, s: assert_same_sharding(p, s), params, shardings)
    assert_state_is_sharded(state, shardings)


def assert_same_sharding(x, sharding):
    assert x.sharding.is_equivalent_to(sharding, x.ndim), (x.sharding, sharding)


def assert_state_is_sharded(state, shardings):
    """Moments have their parameter's sharding; factors keep that of the dimensions they kept."""
    by_path = {jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_flatten_with_path(shardings)[0]}
    found = 0
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = "".join(f"[{part.key!r}]" for part in path if hasattr(part, "key"))
        factor = next((f for f in ("rows", "columns", "full", "momentum") if name.endswith(f"['{f}']")), None)
        sharding = by_path.get(name.removesuffix(f"['{factor}']"))
        if sharding is None:
            assert x.ndim == 0
            continue
        spec = [part if size > 1 else None for part, size in zip(sharding.spec, x.shape, strict=True)]
        assert_same_sharding(x, NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec)))
        found += 1
    assert found >= len(by_path)


def test_shapes_of_a_large_state_are_known_without_devices():
    """`jax.eval_shape` on an abstract mesh gives the state's shardings: the target of a restore."""
    mesh, layout = MeshShape(dp=1, fsdp=64, tp=8).abstract(512), Layout()
    axes = {"query": ("layers", "embed", "heads", "head_dim"), "head": ("embed", "vocab")}
    sizes = {"query": (32, 4096, 32, 128), "head": (4096, 32768)}
    with use_mesh(mesh, layout):
        params = {
            name: jax.ShapeDtypeStruct(sizes[name], jnp.float32, sharding=NamedSharding(mesh, layout.spec(names)))
            for name, names in axes.items()
        }
        optimizer, step = Muon().build(axes, 100), jax.ShapeDtypeStruct((), jnp.int32)
        state = jax.eval_shape(optimizer.init, params)
        new, new_state = jax.eval_shape(optimizer.update, params, state, params, step)
    assert state.momentum["query"].sharding.spec == layout.spec(axes["query"])
    assert state.adam.mu["head"].sharding.spec == layout.spec(axes["head"])
    before, after = jax.tree.leaves((params, state)), jax.tree.leaves((new, new_state))
    assert [x.sharding for x in before if x.ndim] == [x.sharding for x in after if x.ndim]
