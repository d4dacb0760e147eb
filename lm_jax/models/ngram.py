"""An n-gram model with interpolated modified Kneser-Ney smoothing, counted in sorted arrays."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch

FIXED_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclasses.dataclass(kw_only=True)
class NGramConfig(Config):
    """A token is predicted from the `order` - 1 before it; see `NGram`."""

    order: int = 5

    def validate(self) -> None:
        """Raises `ConfigError` for an order below 1."""
        check_positive(self, "order")

    def count(self, tokens: np.ndarray, vocab_size: int, eos: int) -> "NGram":
        """The model of a stream of documents, integers [N] below `vocab_size`, each document ended by `eos`.

        It takes about 200 bytes a token at order 5. Raises `DataError` for no token, or one outside the vocabulary.
        """
        if not len(tokens):
            raise DataError("there is no token to count")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise DataError(f"tokens from {tokens.min()} to {tokens.max()} are not all in the vocabulary of {vocab_size}")
        targets = tokens.astype(np.int64)
        inputs = np.concatenate([[eos], targets[:-1]])
        return NGram(_levels(inputs, targets, self.order, vocab_size, eos), vocab_size, eos)


class Discounts(NamedTuple):
    """What is taken off counts of 1, of 2, and of 3 and more; `estimated` from the counts of counts, or else `FIXED_DISCOUNTS`."""

    values: tuple[float, float, float]
    estimated: bool


class Level(NamedTuple):
    """The n-grams of one order n: contexts of n - 1 tokens, each followed by a token.

    A context is numbered by its place in `contexts`, whose keys are (number of the context without its first token) * V + first
    token; at order 1 there is one, the empty one. The key of an n-gram is (number of its context) * V + its last token.
    """

    contexts: np.ndarray  # int64 [C], sorted keys
    below: np.ndarray  # float64 [C]: the weight of the distribution of order n - 1 after each
    ngrams: np.ndarray  # int64 [G], sorted keys
    shares: np.ndarray  # float64 [G]: discounted count over the count of its context
    discounts: Discounts


class NGram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998, TR-10-98, section 3; 1999, doi:10.1006/csla.1999.0128), for token
    w after a context h, which is h' without its first token:

        p_n(w | h) = (c(h w) - D(c(h w))) / c(h) + b(h) p_(n-1)(w | h')

    with c the counts at the highest order and of what begins a document, and of all else in how many different tokens can precede
    (Heafield et al. 2013, P13-2121, section 3.1); c(h) their sum over w; b(h) the mass that the discounts leave; p_0 = 1 / V. After
    a context that was never seen p_n is p_(n-1). The three discounts of an order come from its counts of counts n1 ... n4:
    D_i = i - (i + 1) Y n_(i+1) / n_i with Y = n1 / (n1 + 2 n2). Where one of these is 0, or a D_i is not above 0 and at most i,
    they are `FIXED_DISCOUNTS`, as by default in KenLM.

    A document begins after end-of-document tokens, as many as a context takes; nothing before it is seen.
    """

    def __init__(self, levels: list[Level], vocab_size: int, eos: int):
        self.levels, self.vocab_size, self.eos = levels, vocab_size, eos

    @property
    def order(self) -> int:
        """The tokens of the longest n-grams."""
        return len(self.levels)

    def log_probs(self, batch: Batch) -> np.ndarray:
        """float64 [B, T]: natural logarithms of the probabilities of `batch["targets"]` after `batch["tokens"]` up to there.

        A token is scored with its full context if `order` - 1 tokens of its row, or all of its document, stand before it (the one
        in its own place of "tokens" included). Ids are below `vocab_size`.
        """
        inputs, targets = (np.asarray(batch[name]).astype(np.int64) for name in ("tokens", "targets"))
        p_BT, context_BT = np.full(targets.shape, 1 / self.vocab_size), np.zeros_like(targets)
        for level, before_BT in zip(self.levels, _before(inputs, self.order, self.eos), strict=True):
            context_BT = _find(level.contexts, context_BT, before_BT, self.vocab_size)
            ngram_BT = _find(level.ngrams, context_BT, targets, self.vocab_size)
            share_BT = np.where(ngram_BT < 0, 0.0, level.shares[ngram_BT])
            p_BT = np.where(context_BT < 0, p_BT, share_BT + level.below[context_BT] * p_BT)
        return np.log(p_BT)

    def describe(self) -> str:
        """A line per order: n-grams and discounts."""
        lines = []
        for n, level in enumerate(self.levels, start=1):
            discounts = ", ".join(f"{value:.3f}" for value in level.discounts.values)
            how = "" if level.discounts.estimated else " (fixed: its counts of counts give none)"
            lines.append(f"order {n}: {len(level.ngrams):,} n-grams, discounts {discounts}{how}")
        return "\n".join(lines)


def _before(inputs: np.ndarray, order: int, eos: int) -> Iterator[np.ndarray]:
    """For n = 1 ... `order`, the first token of the context of order n at each place of `inputs` [..., T]: 0 for n = 1, whose
    context is empty; then the token there, the one before, and so on; `eos` beyond the start of the row or of a document."""
    yield np.zeros_like(inputs)
    token = inputs
    for back in range(1, order):
        yield token
        earlier = np.full_like(inputs, eos)
        earlier[..., back:] = inputs[..., : max(inputs.shape[-1] - back, 0)]
        token = np.where(token == eos, eos, earlier)


def _find(keys: np.ndarray, context: np.ndarray, token: np.ndarray, vocab_size: int) -> np.ndarray:
    """The places in sorted `keys` of `context` * V + `token`; -1 where there is none."""
    wanted = np.where(context < 0, -1, context * vocab_size + token)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _levels(inputs: np.ndarray, targets: np.ndarray, order: int, vocab_size: int, eos: int) -> list[Level]:
    contexts, grams, counts = [], [], []
    context = np.zeros_like(inputs)
    for before in _before(inputs, order, eos):
        keys, context = np.unique(context * vocab_size + before, return_inverse=True)
        contexts.append(keys)
        for found, value in zip((grams, counts), np.unique(context * vocab_size + targets, return_counts=True), strict=True):
            found.append(value)
    for n in range(order - 1):  # below the highest order: how many n-grams of one more token end so
        number, token = np.divmod(grams[n + 1], vocab_size)
        shorter = _find(grams[n], contexts[n + 1][number] // vocab_size, token, vocab_size)
        first = contexts[n][grams[n] // vocab_size] % vocab_size
        begins = (first == eos) if n else np.zeros(len(grams[n]), bool)  # only ends of documents can precede these
        counts[n] = np.where(begins, counts[n], np.bincount(shorter, minlength=len(grams[n])))
    return [_level(*parts, vocab_size) for parts in zip(contexts, grams, counts, strict=True)]


def _level(contexts: np.ndarray, ngrams: np.ndarray, counts: np.ndarray, vocab_size: int) -> Level:
    discounts = _discounts(counts)
    taken = np.array([0.0, *discounts.values])[np.minimum(counts, 3)]
    of_context = ngrams // vocab_size
    totals = np.bincount(of_context, counts, len(contexts))
    below = np.bincount(of_context, taken, len(contexts)) / totals
    return Level(contexts, below, ngrams, (counts - taken) / totals[of_context], discounts)


def _discounts(counts: np.ndarray) -> Discounts:
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if min(n1, n2, n3, n4):
        y = n1 / (n1 + 2 * n2)
        values = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < value <= i for i, value in enumerate(values, start=1)):
            return Discounts(values, True)
    return Discounts(FIXED_DISCOUNTS, False)
