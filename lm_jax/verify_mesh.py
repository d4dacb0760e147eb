"""`lm-jax verify mesh`: every mesh computes what one device computes."""

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view
from lm_jax.core.mesh import MESH_AXES, MeshShape
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs, shard_batch, spec, token_order, use_mesh
from lm_jax.core.types import Array, Batch
from lm_jax.models.text import TextConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.parts import build, check_mesh, initial_state, keys
from lm_jax.prepared import prepare
from lm_jax.train.step import gradients, train_step

# Relative to the norm of the array: what another order of summation may change.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


def verify_mesh(experiment: Experiment) -> int:
    """Compares logits, gradients and one update of the first batch on every legal mesh of all devices with one device.

    Prints a line per mesh, with the largest difference of each and, where one is too large, the first array that differs.
    Returns 0 or 1.
    """
    batch = prepare(experiment).train_loader()(0)
    experiment = _same_everywhere(experiment)
    tolerance = TOLERANCES[experiment.model.dtype]
    expected = _results(experiment, batch, MeshShape(dp=1).build())
    failed = 0
    for shape in legal_meshes(experiment, len(jax.devices())):
        got = _results(experiment, batch, shape.build())
        worst = {name: max(_differences(got[name], expected[name]).values()) for name in expected}
        bad = next((name for name, value in worst.items() if not value <= tolerance), None)
        line = " ".join(f"{axis}={size}" for axis in MESH_AXES if (size := getattr(shape, axis)) > 1)
        line += ": " + ", ".join(f"{name} {value:.0e}" for name, value in worst.items())
        if bad is not None:
            failed += 1
            path, value = next(item for item in _differences(got[bad], expected[bad]).items() if not item[1] <= tolerance)
            line += f"; DIFFERENT: {bad} of {path} by {value:.1e} of its norm"
        print(line, flush=True)
    print(f"{failed} meshes differ" if failed else f"equal on all, within {tolerance:.0e} of each array's norm")
    return 1 if failed else 0


def _same_everywhere(experiment: Experiment) -> Experiment:
    """The experiment without what depends on how rows are put together: bounds and balance of experts' tokens."""
    experiment, changed = copy.deepcopy(experiment), False
    stacks = [stack for _, stack in experiment.model.stacks().values()]
    for block in [block for stack in stacks for block in stack.prelude + stack.pattern]:
        mixture = block.feed_forward
        if not isinstance(mixture, MoEConfig):
            continue
        wide = mixture.num_experts / mixture.router.top_k  # all tokens of a row may go to one expert
        capacity, room = (None if bound is None else wide for bound in (mixture.capacity_factor, mixture.room))
        router = dataclasses.replace(mixture.router, balance_over="row")
        block.feed_forward = dataclasses.replace(mixture, capacity_factor=capacity, room=room, router=router)
        changed |= block.feed_forward != mixture
    if changed:
        print("compared with the balance loss by row and no bound on experts' tokens: these depend on the mesh by definition")
    return experiment


def legal_meshes(experiment: Experiment, num_devices: int) -> Iterator[MeshShape]:
    """The shapes of exactly `num_devices` devices that divide what they split in `experiment`."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for sizes in itertools.product(divisors, repeat=len(MESH_AXES)):
        if math.prod(sizes) != num_devices:
            continue
        shape = MeshShape(**dict(zip(MESH_AXES, sizes, strict=True)))
        try:
            check_mesh(experiment, shape.abstract(num_devices))
        except ConfigError:
            continue
        yield shape


def _results(experiment: Experiment, batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """Nested dicts of NumPy arrays: logits [B, T, V] where the model scores tokens, gradients, and the change in one step."""
    layout = experiment.layout
    with use_mesh(mesh, layout):
        parts, (init_key, key) = build(experiment), keys(experiment)
        objective = experiment.objective.build()
        state = jax.jit(functools.partial(initial_state, experiment, parts))(init_key)
        state = state._replace(params=jax.jit(_perturb)(state.params, init_key))
        placed = shard_batch(batch, mesh, layout)
        compute = functools.partial(gradients, graph=parts.graph, objective=objective, accumulate=experiment.step.accumulate)
        step = functools.partial(
            train_step, graph=parts.graph, objective=objective, optimizer=parts.optimizer, config=experiment.step
        )
        grads, _ = jax.jit(compute)(state.params, placed, key)
        after, _, _ = jax.jit(step)(state, placed, key)
        results = {"gradients": grads, "update": after.params}
        if isinstance(experiment.model, TextConfig):
            scores = jax.jit(functools.partial(logits, parts.graph))(state.params, placed)
            order = token_order(scores.shape[1], layout.ways("sequence", mesh))
            results = {"logits": {"logits": jax.device_get(scores)[:, np.argsort(order)]}} | results
        results, before = jax.device_get((results, state.params))
    results["update"] = jax.tree.map(np.subtract, results["update"], before)
    return results


def _perturb(params: Params, key: Array) -> Params:
    """The parameters with noise, so that those drawn as 0 (output projections, biases) take part too."""
    leaves, structure = jax.tree.flatten(params)
    draw = lambda x, key: x + 0.05 * jax.random.normal(key, x.shape, x.dtype, out_sharding=jax.typeof(x).sharding)  # noqa: E731
    return structure.unflatten(map(draw, leaves, jax.random.split(key, len(leaves))))


def logits(graph: nnx.GraphDef, params: Params, batch: Batch) -> Array:
    """float32 [B, T, V] of a batch on the current mesh."""

    def local(params: Params, batch: Batch) -> Array:
        model = nnx.merge(graph, params)
        return model.logits(model(batch).hidden)

    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), spec("batch", "sequence", "vocab"))(params, batch)


def _differences(got: Any, expected: Any) -> dict[str, float]:
    """By path: norm of the difference over the norm of what is expected."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))

    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(one, got, expected))
    return {"/".join(str(part.key) for part in path): value for path, value in leaves}
