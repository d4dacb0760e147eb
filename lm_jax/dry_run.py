"""`lm-jax plan`: what an experiment needs on a mesh, by arithmetic, without the devices."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from lm_jax.config import Experiment
from lm_jax.core.hardware import chip as find_chip
from lm_jax.core.mesh import MESH_AXES
from lm_jax.core.sharding import use_mesh
from lm_jax.parts import abstract_state, build, check_mesh, pipeline_schedule
from lm_jax.plan.least import least_bytes


def plan(experiment: Experiment, num_devices: int, chip: str | None = None) -> list[str]:
    """Lines to print: mesh, parameters, state a device, bytes that a device sends in a step, FLOPs and the least time on `chip`.

    Activations are not counted. Raises `ConfigError` where the mesh does not fit, or for a chip that is not known.
    """
    kind = None if chip is None else find_chip(chip)
    mesh, layout, data = experiment.mesh.abstract(num_devices), experiment.layout, experiment.data
    check_mesh(experiment, mesh)
    with use_mesh(mesh, layout):
        parts = build(experiment)
        state = abstract_state(experiment, parts, mesh)
    bytes_of = lambda x: int(np.prod(NamedSharding(mesh, x.sharding.spec).shard_shape(x.shape))) * x.dtype.itemsize  # noqa: E731
    held = sum(map(bytes_of, jax.tree.leaves(state)))
    gradients = sum(map(bytes_of, jax.tree.leaves(state.params)))
    axes = " ".join(f"{axis}={mesh.shape[axis]}" for axis in MESH_AXES if mesh.shape[axis] > 1)
    lines = [
        f"{mesh.size} devices: {axes or 'no axis is split'}",
        f"{parts.num_params:,} parameters",
        f"a device holds {_gib(held)} of state, and {_gib(gradients)} of gradients in a step; activations are not counted",
    ]
    if kind is not None and kind.memory is not None and held + gradients > kind.memory * 1e9:
        lines.append(f"this does not fit: a {chip} has {_gib(kind.memory * 1e9)}")
    schedule = pipeline_schedule(experiment, mesh)
    if schedule is not None:
        lines.append(f"pipeline: {schedule}")
    rows, accumulate = data.batch_size // experiment.step.accumulate, experiment.step.accumulate
    texts = rows * data.texts_per_row
    least = least_bytes(experiment.model, parts.shapes, parts.axes, layout, mesh, texts, data.length)
    sent = {name: value * accumulate / 1e9 for name, value in least.items() if value}
    total = f"{sum(sent.values()):,.2f} GB" + (f" ({', '.join(f'{n} {v:,.2f}' for n, v in sent.items())})" if sent else "")
    lines.append(f"it sends at least {total} a step, without rematerialisation")
    tokens = data.batch_size * data.texts_per_row * data.length
    flops = tokens * experiment.model.flops_per_token(data.length, causal=True)
    line = f"{tokens:,} tokens and {flops:.3g} FLOPs a step"
    if kind is not None:
        line += f": at least {flops / mesh.size / kind.flops:.3g} s on {mesh.size} x {chip}"
    return [*lines, line]


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
