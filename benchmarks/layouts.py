"""What each layout of a Llama-style model costs: bytes sent and memory, by the compiler's account of a step on 8 devices.

    python -m benchmarks.layouts [--length=2048] [--rows=8]

Compiles one forward and backward pass per mesh for 8 pretended CPU devices, runs nothing. Prints, per device: the bytes that the
program sends beside the least that its layout needs (`lm_jax.plan.collectives`), and its temporary memory.
"""

import argparse
import functools
import os

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, MeshShape, spec, use_mesh
from lm_jax.models.decoder import DecoderConfig, HeadConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.plan.collectives import bytes_sent, least_bytes
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
)
DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}


def model() -> DecoderConfig:
    """Llama-style: 8 layers of width 512."""
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=8, num_kv_heads=8, rotary=RotaryConfig()),
        feed_forward=MLPConfig(hidden=1408, activation="silu", gated=True),
    )
    return DecoderConfig(vocab_size=8192, width=512, stack=StackConfig(pattern=(block,), repeats=8), head=HeadConfig(tied=False))


def main() -> None:
    """Prints a row per mesh."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    config = model()
    print(f"jax {jax.__version__}; {options.rows} rows of {options.length}; MB a device and step")
    for sizes in MESHES:
        mesh, layout = MeshShape(**(dict(dp=1) | sizes)).build(), Layout()
        if options.rows % layout.ways("batch", mesh):
            continue
        with use_mesh(mesh, layout):
            shapes = jax.eval_shape(config.build, jax.random.key(0))
            graph, params = split(shapes)
            place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))  # noqa: B023, E731
            params = jax.tree.map(lambda x: place(x, x.sharding.spec), params)  # noqa: B023
            batch = {
                name: place(jax.ShapeDtypeStruct((options.rows, options.length), dtype), spec("batch", "sequence"))
                for name, dtype in DTYPES.items()
            }
            step = functools.partial(gradients, graph=graph, objective=LMConfig().build())
            compiled = jax.jit(step).lower(params, batch, jax.random.key(0)).compile()
        sent = sum(bytes_sent(compiled.as_text()).values())
        least = sum(least_bytes(config, params, logical_axes(shapes), layout, mesh, options.rows, options.length).values())
        memory = compiled.memory_analysis().temp_size_in_bytes
        name = " ".join(f"{axis}={size}" for axis, size in sizes.items())
        ratio = f"ratio {sent / max(least, 1):.3f}"
        print(f"{name:20} sent {sent / 1e6:8.1f}  least {least / 1e6:8.1f}  {ratio}  memory {memory / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
