"""Parameter groups by logical axes: which parameters are matrices, and which are decayed.

`axes` is a nested dict of tuples of logical names, the tree of the parameters (`lm_jax.core.param.logical_axes`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lm_jax.core.config import nearest
from lm_jax.core.errors import ConfigError

Axes = tuple[str, ...]
KINDS = ("matrix", "embedding", "head", "positions", "vector", "balance")

_BATCH = ("rounds", "layers", "experts", "kernel")  # leading dimensions along which independent parameters are stacked
# Neighbours that are one dimension of a matrix.
_ONE = {("heads", "head_dim"), ("kv_heads", "head_dim"), ("patch", "patch"), ("gates", "recurrent"), ("gates", "inner")}


class MatrixDims(NamedTuple):
    """Dimensions [0, batch) are batch, [batch, split) the rows (inputs), [split, ndim) the columns (outputs)."""

    batch: int
    split: int


def num_batch(axes: Axes) -> int:
    """How many leading dimensions only stack independent parameters (layers, experts, places of a depthwise kernel)."""
    return next((i for i, name in enumerate(axes) if name not in _BATCH), len(axes))


def matrix_dims(axes: Axes) -> MatrixDims | None:
    """How to see a parameter as a (batch of) matrices; None where it is not two groups of dimensions but one (or none).

    ("layers", "embed", "heads", "head_dim") is a batch of embed x (heads * head_dim).
    """
    batch = num_batch(axes)
    starts = [i for i in range(batch, len(axes)) if i == batch or axes[i - 1 : i + 1] not in _ONE]
    assert len(starts) <= 2, f"no optimizer group for a parameter with axes {axes}"
    return MatrixDims(batch, starts[1]) if len(starts) == 2 else None


def kind(axes: Axes) -> str:
    """The group of a parameter, one of `KINDS`.

    "embedding" maps tokens to vectors and "head" vectors to tokens, "positions" is a table of position vectors,
    "vector" is a bias or a norm's scale, "balance" a router's bias, whose gradient is the load of its experts, "matrix" is every
    other linear map.
    """
    if "balance" in axes:
        return "balance"
    if "positions" in axes:
        return "positions"
    dims = matrix_dims(axes)
    if dims is None:
        return "vector"
    if "vocab" in axes:
        return "embedding" if axes[dims.batch] == "vocab" else "head"
    return "matrix"


def is_decayed(axes: Axes, decay_embeddings: bool) -> bool:
    """Whether weight decay applies: to matrices and the head, to the embedding if asked, to nothing else."""
    return kind(axes) in (("matrix", "head", "embedding") if decay_embeddings else ("matrix", "head"))


def map_axes(f: Callable[..., Any], axes: Any, *trees: Any) -> Any:
    """`jax.tree.map(f, axes, *trees)` with the tuples of names as the leaves."""
    return jax.tree.map(f, axes, *trees, is_leaf=lambda x: isinstance(x, tuple))


def below(tree: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """For each leaf of a nested dict whether it is (in) one of `parts`: paths such as "embedding" or "stack/block0/mixer".

    Raises `ConfigError` for a part that is not there.
    """
    used: set[str] = set()

    def visit(tree: dict[str, Any], path: str) -> dict[str, Any]:
        found = {}
        for name, value in tree.items():
            here = f"{path}{name}"
            seen.append(here)
            inside = [part for part in parts if here == part or here.startswith(f"{part}/")]
            used.update(inside)
            found[name] = visit(value, f"{here}/") if isinstance(value, dict) else bool(inside)
        return found

    seen: list[str] = []
    mask = visit(tree, "")
    for part in parts:
        if part not in used:
            raise ConfigError(f"the model has no part {part!r}{nearest(part, seen if '/' in part else list(tree))}")
    return mask


def select(tree: dict[str, Any], mask: dict[str, Any], chosen: bool = True) -> dict[str, Any]:
    """The nested dict of the leaves whose `mask` is `chosen`; a branch without any is left out.

    Unlike masked nodes this leaves nothing but arrays in an optimizer's state, and so in a checkpoint.
    """
    picked: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            branch = select(value, mask[name], chosen)
            if branch:
                picked[name] = branch
        elif mask[name] == chosen:
            picked[name] = value
    return picked


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The union of two nested dicts that share no leaf: `merge(select(x, m), select(x, m, False))` is `x`."""
    merged = dict(a)
    for name, value in b.items():
        if name in merged:
            assert isinstance(merged[name], dict) and isinstance(value, dict), f"{name} is in both groups"
            value = merge(merged[name], value)
        merged[name] = value
    return merged
