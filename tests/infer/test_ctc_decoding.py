"""Decoding of connectionist temporal classification against all alignments, one by one."""

import collections
import itertools

import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.infer.ctc import best_path, prefix_beam_search


def collapse(path, blank):
    """What an alignment spells: repeats once, blanks not at all."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def brute(log_probs, blank):
    """The probability of every transcript: the sum over all its alignments."""
    found = collections.Counter()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found[collapse(path, blank)] += np.exp(sum(log_probs[t, token] for t, token in enumerate(path)))
    return found


def log_probs(positions, tokens, seed, sharp=1.0):
    x = np.random.default_rng(seed).normal(size=(positions, tokens)) * sharp
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_is_exact(blank, seed):
    scores = log_probs(5, 3, seed)
    found, expected = prefix_beam_search(scores, beam=1000, blank=blank), brute(scores, blank)
    assert len(found) == len(expected) and [score for score, _ in found] == sorted((s for s, _ in found), reverse=True)
    for score, tokens in found:
        assert np.exp(score) == pytest.approx(expected[tuple(tokens)], rel=1e-9)


def test_a_narrow_beam_finds_what_the_best_path_misses():
    """Two alignments of one label together beat the likeliest one, of none (Graves et al. 2006, figure 2)."""
    scores = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert best_path(scores[None].astype(np.float32), np.ones((1, 2), np.int32), 0).tolist() == [[-1, -1]]
    score, tokens = prefix_beam_search(scores, beam=2, blank=0)[0]
    assert tokens == [1] and np.exp(score) == pytest.approx(0.64)


def test_a_narrow_beam_is_close():
    hits = 0
    for seed in range(20):
        scores = log_probs(6, 4, seed, sharp=2.0)
        found = prefix_beam_search(scores, beam=6, blank=0)
        assert len(found) == 6
        best, probability = brute(scores, 0).most_common(1)[0]
        hits += tuple(found[0][1]) == best
        assert np.exp(found[0][0]) <= probability + 1e-12
    assert hits >= 18


def test_the_best_path_is_collapsed_up_to_the_padding():
    rng = np.random.default_rng(0)
    logits, sizes = rng.normal(size=(40, 12, 4)).astype(np.float32), rng.integers(0, 13, 40)
    heard = (np.arange(12)[None] < sizes[:, None]).astype(np.int32)
    for row, ids in enumerate(np.asarray(best_path(logits, heard, 3))):
        assert tuple(ids[ids >= 0]) == collapse(logits[row, : sizes[row]].argmax(axis=1), 3)


def test_no_position_spells_nothing_and_no_beam_is_refused():
    assert prefix_beam_search(np.zeros((0, 3)), beam=4, blank=0) == [(0.0, [])]
    with pytest.raises(ConfigError, match="beam=0 must be at least 1"):
        prefix_beam_search(np.zeros((2, 3)), beam=0, blank=0)
