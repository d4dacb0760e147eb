"""Stateless shuffling: element i of a pseudo-random permutation of range(n), without making the permutation.

A Feistel network over Z_a x Z_b with a * b just above n, and cycle walking for the few values that leave the range
(Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Everything is uint64 arithmetic, so the order does
not depend on the NumPy version, the platform or the number of processes.
"""

import math

import numpy as np

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64 that mixes all bits."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """uint64 bits, at least 1-D, that are a pure function of `seed` and the (broadcast, non-negative) counters."""
    bits = _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
    for counter in counters:
        bits = _mix(bits ^ (np.atleast_1d(np.asarray(counter, np.uint64)) * _GOLDEN + _GOLDEN))
    return bits


def permute(index: np.ndarray, n: int, *, seed: int, epoch: int | np.ndarray = 0, stream: int = 0) -> np.ndarray:
    """Where the permutation of range(n) drawn by (seed, epoch, stream) sends `index`.

    Args:
      index: integers [R] in range(n).
      n: size of the permuted range, at least 1.
      epoch: one for all, or one per index [R]; every epoch has a permutation of its own.

    Returns int64 [R]. Over all indices of one (n, seed, epoch, stream) each value of range(n) occurs once.
    """
    columns = math.isqrt(n - 1) + 1
    sides = np.uint64(-(-n // columns)), np.uint64(columns)
    key = np.broadcast_to(random_bits(seed, stream, epoch), np.shape(index))
    value = _cipher(np.asarray(index, np.uint64), sides, key)
    outside = np.flatnonzero(value >= n)
    while outside.size:
        value[outside] = _cipher(value[outside], sides, key[outside])
        outside = outside[value[outside] >= n]
    return value.astype(np.int64)


def _cipher(value: np.ndarray, sides: tuple[np.uint64, np.uint64], key: np.ndarray) -> np.ndarray:
    """A keyed permutation of range(sides[0] * sides[1]), element by element."""
    left, right = np.divmod(value, sides[1])
    for _ in range(_ROUNDS):
        key = key + _GOLDEN
        left = (left + _mix(right ^ key)) % sides[0]
        key = key + _GOLDEN
        right = (right + _mix(left ^ key)) % sides[1]
    return left * sides[1] + right
