"""What an experiment builds: model, optimizer, state and step, and whether they fit a mesh. Allocates nothing by itself."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params, logical_axes, split
from lm_jax.core.sharding import batch_specs, check_divisible, parameter_sizes
from lm_jax.nn.attend import Case, choose
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.pipeline import Schedule
from lm_jax.optim.base import Optimizer
from lm_jax.train.step import TrainState, gradients, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an experiment builds, before any array exists."""

    graph: nnx.GraphDef
    shapes: Params  # ShapeDtypeStructs
    axes: Params
    optimizer: Optimizer

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(x.size for x in jax.tree.leaves(self.shapes))


def build(experiment: Experiment) -> Parts:
    """The model's structure and the optimizer; allocates nothing. Call it inside `use_mesh` to have shardings in types."""
    model = jax.eval_shape(experiment.model.build, _abstract_key())
    graph, shapes = split(model)
    axes = logical_axes(model)
    return Parts(graph, shapes, axes, experiment.optimizer.build(axes, experiment.train.num_steps))


def _abstract_key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def initial_state(
    experiment: Experiment, parts: Parts, key: jax.Array, change: Callable[[Params], Params] = lambda params: params
) -> TrainState:
    """The state before the first step: parameters drawn from `key`, then changed by `change`. Traceable; the same values on every
    mesh."""
    return init_state(change(split(experiment.model.build(key))[1]), parts.optimizer, experiment.step)


def replaced(tree: Params, given: Params) -> Params:
    """The nested dict `tree` with the leaves of `given` in place of its own."""
    swap = lambda old, new: replaced(old, new) if isinstance(old, dict) else new  # noqa: E731
    return {name: swap(value, given[name]) if name in given else value for name, value in tree.items()}


def abstract_state(experiment: Experiment, parts: Parts, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes, dtypes and shardings of the state on `mesh` (inside `use_mesh`): what a checkpoint is restored onto."""
    shapes = jax.eval_shape(functools.partial(initial_state, experiment, parts), _abstract_key())

    def place(x: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec  # optax's step counters are made without one
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def keys(experiment: Experiment) -> tuple[jax.Array, jax.Array]:
    """The random keys of a run: (initialisation, dropout)."""
    first, second = jax.random.split(jax.random.key(experiment.train.seed))
    return first, second


def jit_step(experiment: Experiment, parts: Parts) -> Any:
    """`train_step` of this experiment, compiled; it takes over (donates) the state."""

    def step(state: TrainState, batch: dict, key: jax.Array) -> Any:
        return train_step(
            state,
            batch,
            key,
            graph=parts.graph,
            objective=objective,
            optimizer=parts.optimizer,
            config=experiment.step,
        )

    objective = experiment.objective.build()
    step.__name__ = "train_step"  # how compilation events name it
    return jax.jit(step, donate_argnums=0)


def check_mesh(experiment: Experiment, mesh: Mesh | AbstractMesh) -> None:
    """Raises `ConfigError` where the layout does not divide a batch, a row or a parameter, or attention or a pipeline cannot run
    as asked.

    Call it outside `use_mesh`.
    """
    attention_backends(experiment, mesh)
    data, layout, parts = experiment.data, experiment.layout, build(experiment)
    sizes = [("data.batch_size / step.accumulate", data.batch_size // experiment.step.accumulate, "batch")]
    sizes += [(f"batch_size of eval {e.name!r}", e.batch_size, "batch") for e in experiment.evals]
    check_divisible([*sizes, *parameter_sizes(parts.shapes, parts.axes)], layout, mesh)
    for name, num_rows, _ in sizes:
        try:
            pipeline_schedule(experiment, mesh, num_rows)
        except ConfigError as error:
            raise ConfigError(f"{name}={num_rows}: {error}") from error
    rows = [("data.length", data.row_length(), experiment.objective.chunks)]
    rows += [(f"length of eval {e.name!r}", data.row_length(e.length), e.chunks) for e in experiment.evals]
    sequence, residual = layout.ways("sequence", mesh), layout.ways("residual", mesh)
    for name, length, chunks in rows:
        pieces = (sequence if sequence == 1 else 2 * sequence) * residual * chunks
        if length % pieces:
            raise ConfigError(
                f"{name}={length} is not divisible by {pieces}: {sequence} devices of the sequence (2 slices each), {residual} of "
                f"the residual stream, {chunks} chunks of the loss; {max(length // pieces, 1) * pieces} is"
            )


def check_batch(experiment: Experiment, parts: Parts, mesh: Mesh) -> None:
    """Raises `ConfigError` where model or objective cannot read a batch of the data: traces the loss, and computes nothing.

    Call it inside `use_mesh`.
    """
    shapes = experiment.data.shapes()
    batch = {
        name: jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=NamedSharding(mesh, where))
        for name, where in batch_specs(shapes).items()
    }
    how = {"graph": parts.graph, "objective": experiment.objective.build(), "accumulate": experiment.step.accumulate}
    jax.eval_shape(functools.partial(gradients, **how), parts.shapes, batch, _abstract_key())


def pipeline_schedule(experiment: Experiment, mesh: Mesh | AbstractMesh, num_rows: int | None = None) -> Schedule | None:
    """How the stack runs a batch of `num_rows` rows (default: those of a micro-batch of `step.accumulate`) on a mesh that splits
    layers; None on others. Raises `ConfigError` where it cannot."""
    layout = experiment.layout
    stages = layout.ways("layers", mesh)
    if stages == 1:
        return None
    if num_rows is None:
        num_rows = experiment.data.batch_size // experiment.step.accumulate
    num_rows *= experiment.data.texts_per_row
    rest = dataclasses.replace(layout, batch=tuple(axis for axis in layout.batch if axis not in layout.layers))
    stacks = experiment.model.stacks().values()
    return [stack.schedule(num_rows // rest.ways("batch", mesh), stages, layout.micro_batches) for _, stack in stacks][-1]


def attention_backends(experiment: Experiment, mesh: Mesh | AbstractMesh) -> list[str]:
    """For each kind of attention among the tokens of a row, which backend runs and why. Raises `ConfigError` where the
    one named cannot."""
    model, split_ways = experiment.model, experiment.layout.ways("sequence", mesh)
    lines = []
    for path, (width, stack) in model.stacks().items():
        for number, block in enumerate((*stack.prelude, *stack.pattern)):
            if not isinstance(block.mixer, AttentionConfig | LatentAttentionConfig):
                continue
            spec = block.mixer.spec(width, segments=experiment.data.masks_documents(), prefix="prefix" in experiment.data.inputs)
            length, sizes = experiment.data.length, block.mixer.sizes(width)
            # What an encoder reads is whole on every device.
            ways = split_ways if path == "stack" and "tokens" in model.inputs else 1
            case = Case(spec, jnp.dtype(model.dtype), *sizes, length, length, ways, jax.default_backend())
            name, why = choose(block.mixer.implementation, case)
            lines.append(f"{path} block {number}: {name} ({why})")
    return lines
