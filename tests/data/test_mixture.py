"""Mixtures: exact proportions, spread evenly, every row of a corpus in turn, and what bad weights get."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.errors import ConfigError
from lm_jax.data.mixture import SLOTS, Mixture, Stage, check_stages

weights_lists = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6).map(tuple)


@settings(max_examples=50, deadline=None)
@given(weights=weights_lists)
def test_proportions_are_exact_and_even(weights):
    mixture = Mixture([Stage(weights=weights)], 1)
    share = np.array(weights) / sum(weights)
    np.testing.assert_allclose(mixture.weights[0], share, atol=1 / SLOTS)
    corpus, _ = mixture(np.arange(2 * SLOTS))
    counts = np.cumsum(corpus[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.arange(1, 2 * SLOTS + 1)[:, None] * np.array(mixture.weights[0])
    assert np.abs(counts - wanted).max() <= 0.5 * len(weights) + 0.5
    np.testing.assert_array_equal(counts[SLOTS - 1], np.round(SLOTS * np.array(mixture.weights[0])))


@settings(max_examples=50, deadline=None)
@given(
    first=st.tuples(*[st.floats(0.1, 1.0)] * 3),
    second=st.tuples(*[st.floats(0.1, 1.0)] * 3),
    starts=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    batch_size=st.integers(1, 9),
)
def test_each_corpus_gives_its_rows_in_turn_over_all_stages(first, second, starts, batch_size):
    a, b = starts[0], starts[0] + starts[1]
    stages = [
        Stage(weights=first),
        Stage(start_step=a, weights=second),
        Stage(start_step=b, weights=(0.0, 1.0, 0.0)),
    ]
    rows = np.arange((b + 10) * batch_size)
    corpus, index = Mixture(stages, batch_size)(rows)
    for number in range(3):
        here = index[corpus == number]
        np.testing.assert_array_equal(here, np.arange(len(here)))
    assert np.all(corpus[b * batch_size :] == 1)


def test_is_a_function_of_the_row_alone():
    mixture = Mixture([Stage(weights=(0.2, 0.8)), Stage(start_step=30, weights=(0.5, 0.5))], 7)
    rows = np.arange(1000)
    order = np.random.default_rng(0).permutation(rows)
    corpus, index = mixture(rows)
    shuffled = mixture(order)
    np.testing.assert_array_equal(shuffled[0], corpus[order])
    np.testing.assert_array_equal(shuffled[1], index[order])
    assert mixture(np.array([10**14]))[1][0] > 10**12


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "1 mixture weights .* for 2 corpora"),
        ((1.0, 2.0, 3.0), "3 mixture weights .* for 2 corpora"),
        ((1.0, -0.5), "corpus 'b' is -0.5"),
        ((1.0, math.nan), "corpus 'b' is nan"),
        ((math.inf, 1.0), "corpus 'a' is inf"),
        ((0.0, 0.0), "all 0"),
        ((1.0, 1e-6), "corpus 'b' is 1e-06 of the whole, below the resolution of 1/10000"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ConfigError, match=message):
        check_stages([Stage(weights=weights)], ["a", "b"])


@pytest.mark.parametrize("starts", [[5], [0, 0], [0, 9, 4], []])
def test_stages_start_at_zero_and_ascend(starts):
    with pytest.raises(ConfigError, match="first must be 0"):
        check_stages([Stage(start_step=start, weights=(1.0,)) for start in starts], ["a"])
