"""What each layout of a Llama-style model costs: bytes sent and memory, by the compiler's account of a step on 8 devices.

    python -m benchmarks.layouts [--length=2048] [--rows=8]

Compiles one forward and backward pass per mesh for 8 pretended CPU devices, runs nothing. Prints, per device: the bytes that the
program sends beside the least that its layout needs (`lm_jax.plan.least`), and its temporary memory.
"""

import argparse
import functools
import os

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, spec, use_mesh
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.plan.collectives import bytes_sent
from lm_jax.plan.least import least_bytes
from lm_jax.train.step import gradients

MESHES = (
    dict(dp=8),
    dict(fsdp=8),
    dict(dp=2, fsdp=4),
    dict(tp=8),
    dict(fsdp=4, tp=2),
    dict(dp=2, fsdp=2, tp=2),
    dict(cp=1),
    dict(cp=2),
    dict(cp=4),
    dict(cp=8),
    dict(fsdp=2, cp=4),
    dict(fsdp=2, cp=2, tp=2),
    dict(pp=8),
    dict(pp=4, fsdp=2),
    dict(pp=2, dp=2, tp=2),
)
CHUNKED_MESHES = (dict(fsdp=8), dict(fsdp=4, tp=2), dict(fsdp=2, cp=2, tp=2), dict(pp=4, fsdp=2))
# Mixtures of 8 experts, by how tokens reach them.
MIXTURES = {"capacity 1.25": dict(capacity_factor=1.25), "room 1.25": dict(room=1.25), "dropless": {}}
MIXTURE_MESHES = (dict(fsdp=8), dict(ep=8), dict(fsdp=2, ep=4), dict(ep=4, tp=2), dict(pp=2, fsdp=2, ep=2))
DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}


def model(mixture: dict | None = None, *, tied: bool = False) -> DecoderConfig:
    """Llama-style: 8 layers of width 512; with `mixture`, feed-forward layers of 8 experts of which a token uses 2."""
    mlp: MLPConfig | MoEConfig = MLPConfig(hidden=1408, activation="silu", gated=True)
    if mixture is not None:
        mlp = MoEConfig(expert=MLPConfig(hidden=704, activation="silu", gated=True), **mixture)
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=8, num_kv_heads=8, rotary=RotaryConfig()),
        feed_forward=mlp,
    )
    return DecoderConfig(vocab_size=8192, width=512, stack=StackConfig(pattern=(block,), repeats=8), head=HeadConfig(tied=tied))


def main() -> None:
    """Prints a row per mesh."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    print(f"jax {jax.__version__}; {options.rows} rows of {options.length}; MB a device and step")
    print("dense")
    for sizes in MESHES:
        measure(model(), sizes, options.rows, options.length)
    print("dense, head tied to the embedding, loss in 4 chunks")
    for sizes in CHUNKED_MESHES:
        measure(model(tied=True), sizes, options.rows, options.length, chunks=4)
    for name, mixture in MIXTURES.items():
        print(f"mixture of experts, {name}")
        for sizes in MIXTURE_MESHES:
            measure(model(mixture), sizes, options.rows, options.length)


def measure(config: DecoderConfig, sizes: dict[str, int], rows: int, length: int, chunks: int = 1) -> None:
    """Prints the row of a mesh, where the rows of the batch can be split over it."""
    mesh, layout = MeshShape(**(dict(dp=1) | sizes)).build(), Layout()
    if rows % layout.ways("batch", mesh):
        return
    with use_mesh(mesh, layout):
        shapes = jax.eval_shape(config.build, jax.random.key(0))
        graph, params = split(shapes)
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))  # noqa: E731
        params = jax.tree.map(lambda x: place(x, x.sharding.spec), params)
        batch = {
            name: place(jax.ShapeDtypeStruct((rows, length), dtype), spec("batch", "sequence")) for name, dtype in DTYPES.items()
        }
        step = functools.partial(gradients, graph=graph, objective=LMConfig(chunks=chunks).build())
        compiled = jax.jit(step).lower(params, batch, jax.random.key(0)).compile()
    sent = sum(bytes_sent(compiled.as_text()).values())
    least = sum(least_bytes(config, params, logical_axes(shapes), layout, mesh, rows, length).values())
    memory = compiled.memory_analysis().temp_size_in_bytes
    name = " ".join(f"{axis}={size}" for axis, size in sizes.items())
    ratio = f"ratio {sent / max(least, 1):.3f}"
    print(f"{name:20} sent {sent / 1e6:8.1f}  least {least / 1e6:8.1f}  {ratio}  memory {memory / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
