"""Mixing corpora by weight: which corpus, and which of its rows, the n-th row of training is."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from lm_jax.core.config import Config
from lm_jax.core.errors import ConfigError

SLOTS = 10_000  # weights are multiples of 1 / SLOTS


@dataclasses.dataclass(kw_only=True)
class Stage(Config):
    """From step `start_step` on, rows come from the corpora in proportion to `weights`, one per corpus."""

    start_step: int = 0
    weights: tuple[float, ...] = ()


def check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    """Raises `ConfigError` unless there is one finite, non-negative weight per corpus, and one above 0."""
    if len(weights) != len(names):
        raise ConfigError(
            f"{len(weights)} mixture weights {tuple(weights)} for {len(names)} corpora ({', '.join(names)}): "
            "give one weight for each"
        )
    for weight, name in zip(weights, names, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the mixture weight of corpus {name!r} is {weight}; it must be a finite number >= 0")
    total = math.fsum(weights)
    if total == 0:
        raise ConfigError(f"the mixture weights {tuple(weights)} are all 0: at least one must be above 0")
    for weight, name in zip(weights, names, strict=True):
        if weight and weight / total * SLOTS < 1:
            raise ConfigError(
                f"the mixture weight of corpus {name!r} is {weight / total:.2g} of the whole, below the resolution "
                f"of 1/{SLOTS}: raise it, or set it to 0"
            )


def check_stages(stages: Sequence[Stage], names: Sequence[str]) -> None:
    """Raises `ConfigError` unless the stages start at step 0, in order, and their weights are valid."""
    starts = [stage.start_step for stage in stages]
    if starts[:1] != [0] or any(b <= a for a, b in itertools.pairwise(starts)):
        raise ConfigError(f"mixture stages start at steps {starts}; the first must be 0 and the rest ascending")
    for stage in stages:
        check_weights(stage.weights, names)


class Mixture:
    """A pure function from the number of a row of training to (corpus, number of the row within that corpus).

    Each stage repeats a table of `SLOTS` corpora in which every corpus has exactly its share, spread evenly: after any
    number of rows each of C corpora is within (C + 1) / 2 rows of its weight.
    """

    def __init__(self, stages: Sequence[Stage], batch_size: int):
        """`stages` as `check_stages` wants them; `batch_size` rows make a step."""
        self._starts = np.array([stage.start_step * batch_size for stage in stages])
        self._counts = np.stack([_quantise(stage.weights) for stage in stages])  # [stage, corpus]
        self._tables = np.stack([_spread(counts) for counts in self._counts])  # [stage, slot]
        self._ranks = np.stack([_ranks(table) for table in self._tables])  # [stage, slot]
        self._base = np.zeros_like(self._counts)  # rows that each corpus gave before the stage
        for stage in range(1, len(stages)):
            cycles, rest = divmod(int(self._starts[stage] - self._starts[stage - 1]), SLOTS)
            given = np.bincount(self._tables[stage - 1, :rest], minlength=self._counts.shape[1])
            self._base[stage] = self._base[stage - 1] + cycles * self._counts[stage - 1] + given

    @property
    def weights(self) -> list[list[float]]:
        """The realised weights of each stage: multiples of 1 / `SLOTS`."""
        return (self._counts / SLOTS).tolist()

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corpus [R], row of that corpus from the start of training [R]) of the rows [R] of training; int64."""
        stage = np.searchsorted(self._starts, rows, side="right") - 1
        cycle, slot = np.divmod(rows - self._starts[stage], SLOTS)
        corpus = self._tables[stage, slot]
        within = cycle * self._counts[stage, corpus] + self._ranks[stage, slot]
        return corpus, self._base[stage, corpus] + within


def _quantise(weights: Sequence[float]) -> np.ndarray:
    """`SLOTS` shared out in proportion to the weights, by largest remainder; int64 [corpora]."""
    share = np.asarray(weights, np.float64) / math.fsum(weights) * SLOTS
    counts = np.floor(share).astype(np.int64)
    most_missed = np.argsort(counts - share, kind="stable")
    counts[most_missed[: SLOTS - counts.sum()]] += 1
    return counts


def _spread(counts: np.ndarray) -> np.ndarray:
    """A table in which corpus c stands `counts[c]` times, its j-th place near (j + 1/2) / counts[c] of the way."""
    corpus = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(corpus)) - np.repeat(np.cumsum(counts) - counts, counts)
    return corpus[np.argsort((nth + 0.5) / counts[corpus], kind="stable")]


def _ranks(table: np.ndarray) -> np.ndarray:
    """How often the corpus of each slot occurred in the slots before."""
    ranks = np.empty_like(table)
    for corpus in np.unique(table):
        here = table == corpus
        ranks[here] = np.arange(here.sum())
    return ranks
