"""Memory of the large experiments on TPUs, by the compiler's account: compiles their train step for chips that are not there.

    pip install libtpu
    TPU_WORKER_HOSTNAMES=localhost TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu_memory [--names llama_8b]

Prints, per device: what the state takes, what the step needs beside it, and nothing more. Nothing is
run; the real compiler refuses what does not fit.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax import parts
from lm_jax.config import load_experiment
from lm_jax.core.sharding import spec, use_mesh

TOPOLOGIES = {8: "v5p:2x2x2", 256: "v5p:4x8x8", 4096: "v5p:16x16x16"}
NAMES = ("llama_8b", "mixtral_8x7b", "deepseek_style_moe", "llama_405b")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def main() -> None:
    """Prints a line per run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", nargs="*", default=NAMES)
    options = parser.parse_args()
    jax.default_backend = lambda: "tpu"  # which attention runs is chosen by it
    print(f"jax {jax.__version__}; GiB a device")
    for name in options.names:
        for chips, topology in TOPOLOGIES.items():
            try:
                measure(name, chips, topology)
            except jax.errors.JaxRuntimeError as error:
                print(f"{name:20} {topology:14} refused: {str(error)[:250]}", flush=True)


def measure(name: str, chips: int, topology: str) -> None:
    """Compiles one experiment and prints its line."""
    experiment = load_experiment([f"--config={EXPERIMENTS / name}.py:{chips}"])
    mesh = experiment.mesh.build(list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices))
    parts.check_mesh(experiment, mesh)
    start = time.perf_counter()
    with use_mesh(mesh, experiment.layout):
        built = parts.build(experiment)
        rows = NamedSharding(mesh, spec("batch", "sequence"))
        shape = (experiment.data.batch_size, experiment.data.length)
        dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        if experiment.data.masks_documents():
            dtypes |= {"segments": jnp.int32, "positions": jnp.int32}
        batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
        key = jax.ShapeDtypeStruct(
            (), jax.eval_shape(lambda: jax.random.key(0)).dtype, sharding=NamedSharding(mesh, PartitionSpec())
        )
        traced = parts.jit_step(experiment, built).trace(parts.abstract_state(experiment, built, mesh), batch, key)
        memory = traced.lower(lowering_platforms=("tpu",)).compile().memory_analysis()
    seconds = time.perf_counter() - start
    state, more = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    print(f"{name:20} {topology:14} state {state:6.1f}  step {more:6.1f}  compiled in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
