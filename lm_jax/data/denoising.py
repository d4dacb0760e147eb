"""From rows of running text to examples of another objective than the next word, and back.

A row is what the loader cuts from the stream (`packing.fill`): its "targets" are the text itself, of weight 0 where there is none
or where it is context only. What becomes of it is a pure function of the row and of random bits of (seed, number of the row), so
that every epoch of training sees another version of a text, and every evaluation the same one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from lm_jax.core.config import Config, to_json
from lm_jax.core.types import Batch
from lm_jax.data.shuffle import random_bits
from lm_jax.data.tokenizers import Tokenizer

FORMAT = 2  # raised whenever the same rows would become other examples than before
TRAINING, EVALUATION = 0, 1  # streams of random bits
_DENOISING = 2  # sets the draws apart from those of the loader


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers for each of `rows` (their numbers [R]): a pure function of (seed, stream, row) and of what they are for."""

    seed: int
    stream: int
    rows: np.ndarray

    def bits(self, purpose: int, size: int) -> np.ndarray:
        """uint64 [R, size]; another `purpose` gives others."""
        return random_bits(self.seed, _DENOISING, self.stream, purpose, self.rows[:, None], np.arange(size))

    def uniform(self, purpose: int, size: int) -> np.ndarray:
        """float64 [R, size] in [0, 1)."""
        return unit_interval(self.bits(purpose, size))

    def partition(self, purpose: int, total: int, parts: int) -> np.ndarray:
        """int64 [R, parts]: sizes of at least 1 that add up to `total`, all ways being equally likely."""
        cuts = np.zeros((len(self.rows), 0), np.int64)
        if parts > 1:
            order = np.argpartition(self.bits(purpose, total - 1), parts - 2, axis=1)
            cuts = np.sort(order[:, : parts - 1], axis=1) + 1
        ends = np.broadcast_to([total], (len(self.rows), 1))
        return np.diff(np.concatenate([np.zeros_like(ends), cuts, ends], axis=1), axis=1)


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of uint64."""
    return (bits >> np.uint64(11)) * 2.0**-53


class Denoiser:
    """Makes examples of rows of one length, and rows of examples."""

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """The examples of a batch of rows, one each, that these draws make."""
        raise NotImplementedError

    def invert(self, batch: Batch) -> np.ndarray:
        """int32 [R, T]: the text of the rows that the examples were made of."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class Denoise(Config):
    """Base of all ways to make examples of running text. `inputs` and `targets` are as in `DataConfig`.

    The tokens that it adds to the text have the ids from the vocabulary size of the tokenizer on.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    targets: ClassVar[frozenset[str]] = frozenset({"next words"})

    @property
    def num_added(self) -> int:
        """How many tokens it adds to the vocabulary."""
        raise NotImplementedError

    def num_outputs(self, vocab_size: int) -> int:
        """How many targets there are to choose from, where the tokenizer has `vocab_size`."""
        return vocab_size + self.num_added

    def row_length(self, length: int) -> int:
        """How many "tokens" an example of a row of `length` tokens of text has. Raises `ConfigError` where it cannot be made."""
        return length

    def shapes(self, rows: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arrays of a batch of examples, given those of the rows of text that they are made of."""
        size, length = rows["tokens"].shape
        return {name: jax.ShapeDtypeStruct((size, self.row_length(length)), x.dtype) for name, x in rows.items()}

    def check(self, *, documents: bool) -> None:
        """Raises `ConfigError` where it does not fit rows whose `documents` are kept apart."""

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch] | None:
        """See `DataConfig.prompts`; None: as without denoising."""
        return None

    def shown_prompt(self, prompt: str) -> str:
        """See `DataConfig.shown_prompt`."""
        return prompt

    def build(self, tokenizer: Tokenizer, length: int) -> Denoiser:
        """What denoises rows of `length` tokens."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """What a loader does to its rows, by their numbers."""

    config: Denoise
    denoiser: Denoiser
    seed: int
    stream: int

    def __call__(self, batch: Batch, rows: np.ndarray) -> Batch:
        """The examples of the rows with these numbers [R]."""
        return self.denoiser(batch, Draws(self.seed, self.stream, rows))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON that differs where the examples of the same rows do."""
        return {"format": FORMAT, "config": to_json(self.config)}
