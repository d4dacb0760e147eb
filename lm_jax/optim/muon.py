"""Muon for matrices, AdamW for everything else."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array
from lm_jax.optim.base import OptimizerConfig, Params, check_decay_rates, from_optax
from lm_jax.optim.groups import MatrixDims, kind, map_axes, matrix_dims, merge, select

Coefficients = tuple[tuple[float, float, float], ...]

# Jordan 2024: steepest at 0, so that 5 steps lift small singular values; the rest end between 0.68 and 1.21, not at 1.
JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
# Amsel et al. 2025, arXiv:2505.16932: each step is the best of degree 5 on what the ones before make of [0.005, 1]. One
# step less than Jordan, and all values from 0.005 on end between 0.91 and 1.09.
POLAR_EXPRESS: Coefficients = (
    (8.2987, -24.4305, 18.0903),
    (3.9152, -2.9211, 0.5592),
    (3.1746, -2.3804, 0.4978),
    (2.1895, -1.5672, 0.4079),
)


class MuonState(NamedTuple):
    """`momentum` is the tree of the matrices, `adam` optax's state of the tree of all other parameters."""

    momentum: Params
    adam: Any


@dataclasses.dataclass(kw_only=True)
class Muon(OptimizerConfig):
    """Orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    m = momentum m + (1 - momentum) g; direction = scale orthogonalise(momentum m + (1 - momentum) g), or of m itself
    without `nesterov`. ("embed", "heads", "head_dim") is a matrix of embed x (heads * head_dim); every layer and every
    expert is a matrix of its own. `scale` is "shape": sqrt(max(1, columns / rows)), columns being outputs (Jordan), or
    "adam_rms": 0.2 sqrt(max(rows, columns)), with which AdamW's learning rate and weight decay fit (Liu et al. 2025,
    arXiv:2502.16982). `newton_schulz` has the coefficients of each iteration, which run in `iteration_dtype`.

    `learning_rate` is that of the matrices. Embeddings, head, positions and vectors are updated by AdamW with peak
    `adam_learning_rate` and the same schedule.
    """

    learning_rate: float = 0.02
    weight_decay: float = 0.01
    momentum: float = 0.95
    nesterov: bool = True
    scale: str = "shape"
    newton_schulz: Coefficients = JORDAN
    iteration_dtype: str = "float32"
    adam_learning_rate: float = 3e-3
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8

    def validate(self) -> None:
        """Raises `ConfigError` for a number out of range or an unknown choice."""
        super().validate()
        check_positive(self, "adam_learning_rate", "adam_eps")
        check_decay_rates(self, "momentum", "adam_b1", "adam_b2")
        check_choice("scale", self.scale, ("shape", "adam_rms"))
        if not self.newton_schulz:
            raise ConfigError("newton_schulz is empty; give one (a, b, c) per iteration")
        check_choice("iteration_dtype", self.iteration_dtype, ("float32", "bfloat16"))

    def peaks(self, axes: Any) -> Any:
        """See `OptimizerConfig.peaks`."""
        return map_axes(lambda names: self.learning_rate if kind(names) == "matrix" else self.adam_learning_rate, axes)

    # optax.contrib.muon cannot run on an explicit mesh, keeps coefficients in its state, iterates in the gradient's
    # dtype only, and corrects the momentum's bias in a way that Jordan's does not.
    def transform(self, axes: Any) -> optax.GradientTransformation:
        """See `OptimizerConfig.transform`."""
        is_matrix = map_axes(lambda names: kind(names) == "matrix", axes)
        dims = map_axes(matrix_dims, select(axes, is_matrix))
        adam = from_optax(optax.scale_by_adam(self.adam_b1, self.adam_b2, self.adam_eps))

        def init(params: Params) -> MuonState:
            matrices, others = select(params, is_matrix), select(params, is_matrix, False)
            return MuonState(jax.tree.map(jnp.zeros_like, matrices), adam.init(others))

        def update(grads: Params, state: MuonState, params: Params | None = None) -> tuple[Params, MuonState]:
            matrices, others = select(grads, is_matrix), select(grads, is_matrix, False)
            momentum = jax.tree.map(self._average, state.momentum, matrices)
            ahead = jax.tree.map(self._average, momentum, matrices) if self.nesterov else momentum
            orthogonal = map_axes(lambda dims, m: self._direction(m, dims), dims, ahead)
            others, adam_state = adam.update(others, state.adam)
            return merge(orthogonal, others), MuonState(momentum, adam_state)

        return optax.GradientTransformation(init, update)

    def _average(self, m: Array, g: Array) -> Array:
        return self.momentum * m + (1 - self.momentum) * g

    def _direction(self, m: Array, dims: MatrixDims) -> Array:
        shape, route = m.shape, _route(m, dims.batch)
        for target in route[1:]:
            m = jax.sharding.reshard(m, target)
        rows, columns = math.prod(shape[dims.batch : dims.split]), math.prod(shape[dims.split :])
        m = m.reshape(*shape[: dims.batch], rows, columns)
        shape_scale = max(1.0, columns / rows) ** 0.5
        scale = shape_scale if self.scale == "shape" else 0.2 * max(rows, columns) ** 0.5
        m = scale * orthogonalise(m, self.newton_schulz, self.iteration_dtype)
        m = m.reshape(shape)
        for target in reversed(route[:-1]):
            m = jax.sharding.reshard(m, target)
        return m


def orthogonalise(x: Array, coefficients: Coefficients = JORDAN, dtype: str = "float32") -> Array:
    """Approximately U V^T for each matrix x = U S V^T of [..., rows, columns]; float32, iterated in `dtype`.

    Newton-Schulz: x / |x|_F, then for each (a, b, c): x = (a + b A + c A^2) x with A = x x^T, on the smaller side.
    """
    norm = jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
    x = (x / (norm + 1e-7)).astype(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    for a, b, c in coefficients:
        gram = jnp.einsum("...ik,...jk->...ij" if wide else "...ki,...kj->...ij", x, x)
        polynomial = b * gram + c * (gram @ gram)
        x = a * x + (polynomial @ x if wide else x @ polynomial)
    return x.astype(jnp.float32)


def _route(x: Array, num_batch: int) -> list[PartitionSpec]:
    """The shardings from that of `x` to one where every matrix is whole on a device; empty where there is no mesh.

    A product of a split matrix with itself would communicate in every iteration. Matrices are dealt out: each mesh axis
    is moved to the leading dimension where it divides (else gathered), one at a time, because XLA has an efficient
    collective for one axis and replicates the whole array for several.
    """
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty:
        return []
    sizes = sharding.mesh.shape
    parts = [() if part is None else (part,) if isinstance(part, str) else part for part in sharding.spec]
    route = [sharding.spec]
    for axis in sizes:
        holder = next((i for i, part in enumerate(parts) if axis in part), None)
        if (holder is None and sizes[axis] == 1) or (holder is not None and holder < num_batch):
            continue
        if holder is not None:
            parts[holder] = tuple(other for other in parts[holder] if other != axis)
        if num_batch and x.shape[0] % math.prod(sizes[other] for other in (*parts[0], axis)) == 0:
            parts[0] = (*parts[0], axis)
        route.append(PartitionSpec(*parts))
    return route
