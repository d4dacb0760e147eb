import collections

import jax
import numpy as np
import pytest

from lm_jax.optim.groups import KINDS, is_decayed, kind, map_axes, matrix_dims, merge, select
from tests.optim.trees import AXES, draw, paths

EXPECTED = {
    "embedding/table": "embedding",
    "embedding/positions/table": "positions",
    "stack/block0/mixer/query": "matrix",
    "stack/block0/mixer/key_bias": "vector",
    "stack/block0/mixer/output": "matrix",
    "stack/block0/experts/up": "matrix",
    "stack/block0/router/balance": "balance",
    "stack/block0/norm/scale": "vector",
    "projection": "matrix",
    "head": "head",
    "head_bias": "vector",
}


def test_every_parameter_is_in_the_expected_group():
    assert {path: kind(axes) for path, axes in paths(AXES).items()} == EXPECTED
    assert set(EXPECTED.values()) == set(KINDS)


def test_what_is_decayed():
    decayed = {path for path, axes in paths(AXES).items() if is_decayed(axes, decay_embeddings=True)}
    assert decayed == {path for path, group in EXPECTED.items() if group in ("matrix", "head", "embedding")}
    without = {path for path, axes in paths(AXES).items() if is_decayed(axes, decay_embeddings=False)}
    assert decayed - without == {"embedding/table"}


@pytest.mark.parametrize(
    "axes,dims",
    [
        (("embed", "heads", "head_dim"), (0, 1)),
        (("layers", "heads", "head_dim", "embed"), (1, 3)),
        (("layers", "experts", "expert_mlp", "expert_embed"), (2, 3)),
        (("layers", "embed", "experts"), (1, 2)),  # a router: its experts are outputs, not separate matrices
        (("layers", "experts", "mlp"), None),
        (("layers", "head_dim"), None),
        (("heads",), None),
        (("layers",), None),
    ],
)
def test_matrix_dims(axes, dims):
    assert matrix_dims(axes) == dims


def test_axes_of_no_known_form_are_refused():
    with pytest.raises(AssertionError, match="mlp"):
        kind(("embed", "mlp", "heads"))


def test_select_and_merge_partition_the_tree():
    tree = draw(0)
    mask = map_axes(lambda axes: kind(axes) == "matrix", AXES)
    chosen, rest = select(tree, mask), select(tree, mask, False)
    counts = collections.Counter([*paths(chosen), *paths(rest)])
    assert set(counts) == set(paths(tree)) and set(counts.values()) == {1}
    assert "embedding" not in chosen and "projection" not in rest
    jax.tree.map(np.testing.assert_array_equal, merge(chosen, rest), tree)
    assert select(tree, jax.tree.map(lambda _: False, mask)) == {}
