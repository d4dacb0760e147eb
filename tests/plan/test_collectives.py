"""What a step communicates, against the least that its layout needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, spec, use_mesh
from lm_jax.objectives.lm import LMConfig
from lm_jax.plan.collectives import Collective, bytes_sent
from lm_jax.plan.least import least_bytes
from lm_jax.train.step import gradients
from tests.models_for_tests import llama, moe

DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}


def test_counts_of_a_program_that_is_known():
    mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Explicit,) * 2)

    def local(x):
        x = jax.lax.all_gather(x, "b", axis=0, tiled=True)  # 64 floats of which 3/4 come in
        for_loop = lambda x, _: (jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]), None)  # noqa: E731
        x = jax.lax.scan(for_loop, x, None, length=5)[0]
        return jax.lax.psum(x[:8].sum(), ("a", "b"))

    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.shard_map(local, in_specs=P(("a", "b")), out_specs=P()))
        text = (
            mapped.lower(jax.ShapeDtypeStruct((128,), np.float32, sharding=NamedSharding(mesh, P(("a", "b"))))).compile().as_text()
        )
    sent = bytes_sent(text)
    assert sent[Collective("all-gather", 4)] == 64 * 4 * 3 / 4
    assert sent[Collective("collective-permute", 2)] == 5 * 64 * 4
    assert sent[Collective("all-reduce", 8)] == 2 * 4 * 7 / 8


CONFIGS = {"dense": llama(width=128), "capacity": moe(capacity_factor=1.0), "dropless": moe(), "room": moe(room=1.2)}
for config in CONFIGS.values():
    config.head.tied, config.width = False, 128
CONFIGS["tied in chunks"] = llama(width=128, vocab_size=2048)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("dense", dict(dp=8)),
        ("dense", dict(fsdp=8)),
        ("dense", dict(dp=2, fsdp=4)),
        ("dense", dict(tp=2)),
        ("dense", dict(fsdp=4, tp=2)),
        ("dense", dict(dp=2, fsdp=2, tp=2)),
        ("dense", dict(fsdp=2, cp=4)),
        ("capacity", dict(fsdp=2, ep=4)),
        ("capacity", dict(ep=2, tp=2)),
        ("dropless", dict(fsdp=2, ep=4)),
        ("dropless", dict(ep=2, tp=2)),
        ("room", dict(fsdp=2, ep=4)),
        ("room", dict(ep=2, tp=2)),
        ("capacity", dict(pp=2, fsdp=2, ep=2)),
        ("tied in chunks", dict(fsdp=8)),
        ("tied in chunks", dict(fsdp=4, tp=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{axis}{size}" for axis, size in value.items()),
)
def test_a_step_sends_no_more_than_its_layout_needs(name, sizes):
    config = CONFIGS[name]
    rows, length = 16, 64
    mesh, layout = MeshShape(**(dict(dp=1) | sizes)).build(), Layout()
    with use_mesh(mesh, layout):
        model = jax.eval_shape(config.build, jax.random.key(0))
        graph, params = split(model)
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))  # noqa: E731
        params = jax.tree.map(lambda x: place(x, x.sharding.spec), params)
        batch = {
            name: place(jax.ShapeDtypeStruct((rows, length), dtype), spec("batch", "sequence")) for name, dtype in DTYPES.items()
        }
        step = functools.partial(gradients, graph=graph, objective=LMConfig(chunks=4 if "chunks" in name else 1).build())
        text = jax.jit(step).lower(params, batch, jax.random.key(0)).compile().as_text()
    sent, least = bytes_sent(text), least_bytes(config, params, logical_axes(model), layout, mesh, rows, length)
    assert 0.97 < sum(sent.values()) / sum(least.values()) < 1.1, (sent, least)
