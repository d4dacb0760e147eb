"""Objectives of decoders that see more than what stands before: prefix-LM, and fill-in-the-middle."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Batch
from lm_jax.data.denoising import Denoise, Denoiser, Draws
from lm_jax.data.tokenizers import Tokenizer

_PREFIX, _WHETHER, _ORDER, _CUT, _OTHER_CUT, _SUFFIX_FIRST = range(6)  # what random bits are for


def documents_of(batch: Batch, eos: int) -> np.ndarray:
    """int64 [R, T]: the number, from 0, of the document in its row that each token of text is in.

    By "segments" where there are any; else a document ends with `eos`.
    """
    if "segments" in batch:
        new = batch["segments"][:, 1:] != batch["segments"][:, :-1]
    else:
        new = batch["targets"][:, :-1] == eos
    return np.concatenate([np.zeros((len(new), 1), np.int64), np.cumsum(new, axis=1)], axis=1)


def _firsts(documents: np.ndarray) -> np.ndarray:
    """int64 [R, T]: where the document of each token begins."""
    begins = np.pad(documents[:, 1:] != documents[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return np.maximum.accumulate(np.where(begins, np.arange(documents.shape[1]), 0), axis=1)


def _ends(documents: np.ndarray) -> np.ndarray:
    """int64 [R, T]: the place after the document of each token."""
    return documents.shape[1] - _firsts(documents[:, ::-1])[:, ::-1]


@dataclasses.dataclass(kw_only=True)
class PrefixLM(Denoise):
    """The first tokens of a row see each other both ways, and those after them are predicted (T5, arXiv:1910.10683, section 3.2.1).

    Any number of the row's tokens from 1 on, padding left out, is equally likely to be its prefix; where documents are kept apart
    each has its own. "prefix" is 1 for the inputs in it. What the prefix holds already has weight 0: the first target is the token
    after it.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "prefix"})

    @property
    def num_added(self) -> int:
        """None."""
        return 0

    def shapes(self, rows: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """See `Denoise.shapes`."""
        return super().shapes(rows) | {"prefix": rows["tokens"]}

    def build(self, tokenizer: Tokenizer, length: int) -> "Prefixer":
        """See `Denoise.build`."""
        return Prefixer()


class Prefixer(Denoiser):
    """See `PrefixLM`."""

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """See `Denoiser.__call__`."""
        text = batch["targets"]
        documents = batch.get("segments", np.zeros_like(text))
        padding = np.maximum.accumulate(batch["weights"][:, ::-1] > 0, axis=1)[:, ::-1] == 0
        documents = np.where(padding, -1, documents)  # no part of a document
        first, end, places = _firsts(documents), _ends(documents), np.arange(text.shape[1])
        u = np.take_along_axis(draws.uniform(_PREFIX, text.shape[1]), first, axis=1)
        last = first + (u * (end - first)).astype(np.int64)  # of the prefix; its target is the first to be predicted
        return batch | {
            "prefix": ((places <= last) & ~padding).astype(np.int32),
            "weights": np.where(places >= last, batch["weights"], np.float32(0)),
        }

    def invert(self, batch: Batch) -> np.ndarray:
        """See `Denoiser.invert`."""
        return batch["targets"]


@dataclasses.dataclass(kw_only=True)
class FillInTheMiddle(Denoise):
    """A document is cut in three at random and its middle moved to the end (Bavarian et al. 2022, arXiv:2207.14255).

    That happens to a share `rate` of the documents of a row, at most `documents` of them; a part of a document that a row begins or
    ends with counts as one. A share `spm` of them becomes <PRE> <SUF> suffix <MID> prefix middle, the others
    <PRE> prefix <SUF> suffix <MID> middle; what ends a document stays at the end. Cuts are between tokens, anywhere. The three
    sentinels are the tokens after those of the tokenizer.

    A row has room for its text and the sentinels of `documents`; what is left of that is padding. The sentinels are targets too.

    In a prompt `HOLE` stands for what is missing: the model writes the middle, up to the end-of-document token.
    """

    rate: float = 0.5
    spm: float = 0.5
    documents: int = 1

    HOLE: ClassVar[str] = "<FILL>"

    def validate(self) -> None:
        """Raises `ConfigError` for shares outside [0, 1] or no document."""
        check_positive(self, "documents")
        if not 0 <= self.rate <= 1 or not 0 <= self.spm <= 1:
            raise ConfigError(f"rate={self.rate} and spm={self.spm} must be in [0, 1]")

    @property
    def num_added(self) -> int:
        """The sentinels."""
        return 3

    def row_length(self, length: int) -> int:
        """See `Denoise.row_length`."""
        return length + 3 * self.documents

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `Denoise.prompts`. Raises `ConfigError` for a text with more than one hole."""
        return [self._prompt(tokenizer, text) for text in texts], {}

    def shown_prompt(self, prompt: str) -> str:
        """See `DataConfig.shown_prompt`: what fills a hole stands after the text that has it."""
        return f"{prompt}\n{self.HOLE} = " if self.HOLE in prompt else prompt

    def _prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        prefix, *others = (tokenizer.encode(part).tolist() for part in text.split(self.HOLE))
        if not others:
            return [tokenizer.eos, *prefix]
        if len(others) > 1:
            raise ConfigError(f"a prompt has {len(others)} times {self.HOLE!r}, and one hole is filled: {text[:60]!r}")
        return self.hole(tokenizer, prefix, others[0])

    def hole(self, tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The tokens after which a model writes what stands between those of `prefix` and `suffix`."""
        pre, suf, mid = range(tokenizer.vocab_size, tokenizer.vocab_size + 3)
        if self.spm < 1:
            return [tokenizer.eos, pre, *prefix, suf, *suffix, mid]
        return [tokenizer.eos, pre, suf, *suffix, mid, *prefix]

    def build(self, tokenizer: Tokenizer, length: int) -> "MiddleFiller":
        """See `Denoise.build`."""
        return MiddleFiller(self, tokenizer, length)


class _Cuts(NamedTuple):
    """The documents [R, K] of each row that are cut in three, before the places `first` and `second`."""

    there: np.ndarray  # bool: a row may have fewer
    begin: np.ndarray
    first: np.ndarray
    second: np.ndarray
    end: np.ndarray  # of what is cut: the end-of-document token, or the place after the document
    suffix_first: np.ndarray  # bool


# The order of the parts of a document: sentinels have ranks 0, 2 and 4; here those of prefix, middle, suffix and end.
_SENTINELS, _PSM, _SPM, _RANKS = (0, 2, 4), (1, 5, 3, 7), (5, 6, 3, 7), 8


class MiddleFiller(Denoiser):
    """See `FillInTheMiddle`."""

    def __init__(self, config: FillInTheMiddle, tokenizer: Tokenizer, length: int):
        self._config, self._length, self._eos = config, length, tokenizer.eos
        self._names = tokenizer.vocab_size + np.arange(3, dtype=np.int32)

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """See `Denoiser.__call__`."""
        documents = documents_of(batch, self._eos)
        cuts, T = self._cuts(batch, documents, draws), self._length
        where = np.where(cuts.there, np.take_along_axis(documents, cuts.begin, axis=1), T)  # after all others
        sentinels = (where[:, :, None] * _RANKS + _SENTINELS).reshape(len(documents), -1)
        keys = np.concatenate([documents * _RANKS + self._ranks(documents, cuts), sentinels], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")
        there = np.repeat(cuts.there, 3, axis=1)

        def moved(x: np.ndarray, of_sentinels: np.ndarray) -> np.ndarray:
            """The values of the tokens and then those of the sentinels, in the new order."""
            return np.take_along_axis(np.concatenate([x, of_sentinels.astype(x.dtype)], axis=1), order, axis=1)

        targets = moved(batch["targets"], np.where(there, np.tile(self._names, self._config.documents), self._eos))
        new = moved(documents, np.repeat(where, 3, axis=1))
        first = _firsts(new)
        # A document goes on from what stood before it.
        before = moved(batch["tokens"], self._before(batch, cuts))
        tokens = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
        made = {
            "tokens": np.where(first == np.arange(targets.shape[1]), before, tokens),
            "targets": targets,
            "weights": moved(batch["weights"], there),
        }
        if "segments" in batch:
            segments = np.repeat(np.take_along_axis(batch["segments"], cuts.begin, axis=1), 3, axis=1)
            made["segments"] = moved(batch["segments"], segments * there)
            made["positions"] = (np.arange(targets.shape[1]) - first).astype(np.int32)
        return made

    def invert(self, batch: Batch) -> np.ndarray:
        """See `Denoiser.invert`."""
        documents = documents_of(batch, self._eos)
        rows = zip(batch["targets"], documents, strict=True)
        return np.array([self._restored(*row) for row in rows], np.int32)

    def _cuts(self, batch: Batch, documents: np.ndarray, draws: Draws) -> _Cuts:
        size = documents.shape[1]
        begins = (_firsts(documents) == np.arange(size)) & (batch["weights"] > 0)  # not padding, not context
        chosen = begins & (draws.uniform(_WHETHER, size) < self._config.rate)
        score = np.where(chosen, draws.uniform(_ORDER, size), 1.0)
        begin = np.argsort(score, axis=1, kind="stable")[:, : self._config.documents]
        at = lambda x: np.take_along_axis(x, begin, axis=1)  # noqa: E731
        end = at(_ends(documents))
        end = end - (np.take_along_axis(batch["targets"], end - 1, axis=1) == self._eos)
        cuts = [begin + (at(draws.uniform(purpose, size)) * (end - begin + 1)).astype(np.int64) for purpose in (_CUT, _OTHER_CUT)]
        spm = at(draws.uniform(_SUFFIX_FIRST, size)) < self._config.spm
        return _Cuts(at(chosen), begin, np.minimum(*cuts), np.maximum(*cuts), end, spm)

    def _ranks(self, documents: np.ndarray, cuts: _Cuts) -> np.ndarray:
        """int64 [R, T]: the rank within its document of the part that a token is in; 0 in documents that are not cut."""
        ranks, places = np.zeros_like(documents), np.arange(documents.shape[1])
        for k in range(self._config.documents):
            there, begin, first, second, end, suffix_first = (x[:, k : k + 1] for x in cuts)
            part = (places >= first).astype(np.int64) + (places >= second) + (places >= end)
            inside = there & (documents == np.take_along_axis(documents, begin, axis=1))
            ranks = np.where(inside, np.where(suffix_first, np.array(_SPM)[part], np.array(_PSM)[part]), ranks)
        return ranks

    def _before(self, batch: Batch, cuts: _Cuts) -> np.ndarray:
        return np.repeat(np.where(cuts.there, np.take_along_axis(batch["tokens"], cuts.begin, axis=1), self._eos), 3, axis=1)

    def _restored(self, targets: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """The text of a row. What pads it is cut off, also where it looks like the end of the last document."""
        starts = np.flatnonzero(np.diff(documents)) + 1
        return np.concatenate([self._document(part) for part in np.split(targets, starts)])[: self._length]

    def _document(self, tokens: np.ndarray) -> np.ndarray:
        pre, suf, mid = (np.flatnonzero(tokens == name) for name in self._names)
        if not pre.size:
            return tokens
        end = len(tokens) - int(tokens[-1] == self._eos)
        prefix, suffix, middle = tokens[1 : suf[0]], tokens[suf[0] + 1 : mid[0]], tokens[mid[0] + 1 : end]
        return np.concatenate([prefix, middle, suffix, tokens[end:]])
