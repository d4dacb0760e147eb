"""The stateless permutation: a bijection, uniform, different per epoch, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.data.shuffle import permute, random_bits


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 99, 100, 101, 1023, 1024, 1025, 65_537, 300_007])
def test_is_a_bijection(n):
    for epoch in (0, 1):
        order = permute(np.arange(n), n, seed=3, epoch=epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(n))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 3000),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 2**40),
    stream=st.integers(0, 9),
)
def test_is_a_bijection_for_any_key(n, seed, epoch, stream):
    order = permute(np.arange(n), n, seed=seed, epoch=epoch, stream=stream)
    assert len(set(order.tolist())) == n and order.min() == 0 and order.max() == n - 1


def test_an_element_does_not_depend_on_its_neighbours():
    n, index = 10**12, np.array([0, 5, 123_456_789_012, 999_999_999_999])
    together = permute(index, n, seed=1, epoch=np.array([0, 1, 2, 3]))
    alone = [permute(index[i : i + 1], n, seed=1, epoch=i)[0] for i in range(4)]
    np.testing.assert_array_equal(together, alone)


def test_golden_values():
    """Stored runs depend on these: a change of the order is a change of `loader.FORMAT`."""
    assert random_bits(0, 1, 2).tolist() == [2176872171090964246]
    assert permute(np.arange(10), 10, seed=0).tolist() == [2, 3, 5, 9, 6, 4, 7, 8, 0, 1]
    far = permute(np.arange(5), 10**9, seed=7, epoch=np.array([0, 1, 2, 3, 3]), stream=2)
    assert far.tolist() == [392040524, 747995643, 36940258, 801400917, 480894252]


@pytest.mark.parametrize("n", [5, 10, 64])
def test_every_place_is_equally_likely(n):
    """Chi-square of where each index lands over many epochs; the expected value is (n - 1)^2 degrees of freedom."""
    draws = 4000
    counts = np.zeros((n, n))
    for epoch in range(draws):
        counts[np.arange(n), permute(np.arange(n), n, seed=0, epoch=epoch)] += 1
    chi_square = np.sum((counts - draws / n) ** 2) / (draws / n)
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_every_permutation_of_five_is_equally_likely():
    draws = 24_000
    index, epoch = np.tile(np.arange(5), draws), np.repeat(np.arange(draws), 5)
    orders = permute(index, 5, seed=1, epoch=epoch).reshape(draws, 5)
    _, counts = np.unique(orders @ (5 ** np.arange(5)), return_counts=True)
    assert len(counts) == 120
    chi_square = np.sum((counts - draws / 120) ** 2) / (draws / 120)
    assert abs(chi_square - 119) < 5 * np.sqrt(2 * 119)


def test_neighbours_and_epochs_are_uncorrelated():
    n = 20_000
    first, second = (permute(np.arange(n), n, seed=0, epoch=epoch) for epoch in (0, 1))
    bound = 5 / np.sqrt(n)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < bound
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert np.sum(first == second) < 10
    assert np.sum(np.diff(first) == 1) < 10
