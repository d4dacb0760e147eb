"""Span corruption of T5 and the mixture of denoisers of UL2: an encoder reads what is left, a decoder writes what is missing."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Batch
from lm_jax.data.denoising import Denoise, Denoiser, Draws
from lm_jax.data.tokenizers import Tokenizer

_KEPT, _NOISE, _WHICH = range(3)  # what random bits are for
MODES = "RSX"


@dataclasses.dataclass(kw_only=True)
class Corruption(Denoise):
    """Base of what an encoder reads with parts missing, which a decoder writes."""

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "memory_tokens"})

    def memory_length(self, length: int) -> int:
        """How many "memory_tokens" an example of a row of `length` tokens has."""
        raise NotImplementedError

    def shapes(self, rows: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """See `Denoise.shapes`."""
        size, length = rows["tokens"].shape
        memory = jax.ShapeDtypeStruct((size, self.memory_length(length)), np.int32)
        return super().shapes(rows) | {"memory_tokens": memory, "memory_segments": memory}

    def check(self, *, documents: bool) -> None:
        """See `Denoise.check`."""
        if documents:
            raise ConfigError(
                f"{type(self).__name__} takes a row for one text: leave document_mask False and packing.method 'stream'"
            )


@dataclasses.dataclass(kw_only=True)
class SpanCorruption(Corruption):
    """A share `rate` of a row is cut out in spans of `mean_span` tokens (T5, Raffel et al. 2020, arXiv:1910.10683, section 3.1.4).

    The number of tokens cut out and of spans follow from the length of a row; where they are is drawn. With `mean_span` None it
    is one span, at the end (a prefix-LM). "memory_tokens" are what is left, with a sentinel in place of each span; "targets" the
    spans, each after its sentinel, and the end of document; "tokens" the same one place later. Text of weight 0 is hidden from the
    encoder ("memory_segments" 0) and has weight 0. The `sentinels` are the tokens after those of the tokenizer.
    """

    rate: float = 0.15
    mean_span: float | None = 3.0
    sentinels: int = 100

    def validate(self) -> None:
        """Raises `ConfigError` for numbers out of range."""
        check_positive(self, "sentinels")
        if not 0 < self.rate < 1 or (self.mean_span is not None and self.mean_span < 1):
            raise ConfigError(f"rate={self.rate} must be between 0 and 1, and mean_span={self.mean_span} at least 1")

    @property
    def num_added(self) -> int:
        """The sentinels."""
        return self.sentinels

    @property
    def mode(self) -> str:
        """What UL2 calls it (section 3.1): "S" is sequential, "X" extreme (long spans or a high rate), "R" regular."""
        if self.mean_span is None:
            return "S"
        return "X" if self.mean_span >= 12 or self.rate >= 0.3 else "R"

    def sizes(self, length: int) -> tuple[int, int]:
        """(tokens cut out, spans) of a row of `length` tokens. Raises `ConfigError` where there is no room or no sentinel."""
        if length < 2:
            raise ConfigError(f"a row of length={length} has no span that could be cut out; 2 or more do")
        noise = min(max(round(length * self.rate), 1), length - 1)
        spans = 1 if self.mean_span is None else min(max(round(noise / self.mean_span), 1), length - noise)
        if spans > self.sentinels:
            raise ConfigError(f"{spans} spans in a row of length={length} need as many sentinels, not {self.sentinels}")
        return noise, spans

    def row_length(self, length: int) -> int:
        """See `Denoise.row_length`: that of the targets."""
        return sum(self.sizes(length)) + 1

    def memory_length(self, length: int) -> int:
        """See `Corruption.memory_length`."""
        noise, spans = self.sizes(length)
        return length - noise + spans

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `Denoise.prompts`: each text with one span missing, at its end."""
        return _prompts(tokenizer, texts, [])

    def build(self, tokenizer: Tokenizer, length: int) -> "SpanCorrupter":
        """See `Denoise.build`."""
        return SpanCorrupter(self, tokenizer, length)


class SpanCorrupter(Denoiser):
    """See `SpanCorruption`."""

    def __init__(self, config: SpanCorruption, tokenizer: Tokenizer, length: int):
        self._length, self._eos, self._sentinel = length, tokenizer.eos, tokenizer.vocab_size
        self._noise, self._spans = config.sizes(length)

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """See `Denoiser.__call__`."""
        text, R = batch["targets"], len(batch["targets"])
        real = (batch["weights"] > 0).astype(np.int32)
        cut, starts = self._cut(draws)
        sentinel = (self._sentinel - 1 + np.cumsum(starts, axis=1)).astype(np.int32)
        kept = ~cut | starts
        written = np.stack([starts, cut], axis=2)  # of each place its sentinel, then its token
        pairs = lambda first, second: np.stack([first, second], axis=2)[written].reshape(R, -1)  # noqa: E731
        targets = np.pad(pairs(sentinel, text), ((0, 0), (0, 1)), constant_values=self._eos)
        weights = pairs(real, real)
        return {
            "memory_tokens": np.where(starts, sentinel, text)[kept].reshape(R, -1),
            "memory_segments": real[kept].reshape(R, -1),
            "tokens": _one_later(targets, self._eos),
            "targets": targets,
            "weights": np.concatenate([weights, weights[:, -1:]], axis=1).astype(np.float32),
        }

    def invert(self, batch: Batch) -> np.ndarray:
        """See `Denoiser.invert`."""
        rows = zip(batch["memory_tokens"].tolist(), batch["targets"].tolist(), strict=True)
        return np.array([restored(memory, targets, self._length, self._sentinel) for memory, targets in rows], np.int32)

    def _cut(self, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """bool [R, T] twice: whether a token is cut out, and whether a span begins with it."""
        kept = draws.partition(_KEPT, self._length - self._noise, self._spans)
        noise = draws.partition(_NOISE, self._noise, self._spans)
        ends = np.cumsum(np.stack([kept, noise], axis=2).reshape(len(kept), -1), axis=1)
        steps = np.zeros((len(kept), self._length + 1), np.int8)
        np.put_along_axis(steps, ends[:, 0::2], 1, axis=1)
        starts = steps[:, :-1] > 0
        np.put_along_axis(steps, ends[:, 1::2], -1, axis=1)
        return np.cumsum(steps, axis=1, dtype=np.int8)[:, :-1] > 0, starts


def restored(memory: list[int], targets: list[int], length: int, sentinel: int) -> list[int]:
    """The row of `length` tokens that `memory` and `targets` were made of; sentinels are the ids from `sentinel` on."""
    num_spans = sum(token >= sentinel for token in memory)
    noise = length - (len(memory) - num_spans)
    spans: list[list[int]] = []
    for token in targets[: noise + num_spans]:
        if token >= sentinel:
            spans.append([])
        else:
            spans[-1].append(token)
    text: list[int] = []
    for token in memory:
        text += spans[token - sentinel] if token >= sentinel else [token]
    return text


def _default_denoisers() -> tuple[SpanCorruption, ...]:
    spans = ((3.0, 0.15), (8.0, 0.15), (None, 0.25), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))
    return tuple(SpanCorruption(mean_span=mean_span, rate=rate) for mean_span, rate in spans)


@dataclasses.dataclass(kw_only=True)
class UL2(Corruption):
    """Each row is denoised by one of `denoisers`, drawn alike (Tay et al. 2023, arXiv:2205.05131, section 3.1 and table 1).

    "memory_tokens" begin with the token of its mode: of "R", "S" and "X", the three after the sentinels, of which there are as many
    as the denoiser with the most has. Examples are padded to the longest, a memory with its mode; padding has weight 0 and
    "memory_segments" 0.
    """

    denoisers: tuple[SpanCorruption, ...] = dataclasses.field(default_factory=_default_denoisers)

    def validate(self) -> None:
        """Raises `ConfigError` where there is no denoiser."""
        if not self.denoisers:
            raise ConfigError("denoisers is empty; give at least one SpanCorruption")

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        return max(denoiser.sentinels for denoiser in self.denoisers)

    @property
    def num_added(self) -> int:
        """The sentinels and the modes."""
        return self.sentinels + len(MODES)

    def row_length(self, length: int) -> int:
        """See `Denoise.row_length`."""
        return max(denoiser.row_length(length) for denoiser in self.denoisers)

    def memory_length(self, length: int) -> int:
        """See `Corruption.memory_length`."""
        return 1 + max(denoiser.memory_length(length) for denoiser in self.denoisers)

    def mode_token(self, mode: str, vocab_size: int) -> int:
        """The id of one of the `MODES`."""
        return vocab_size + self.sentinels + MODES.index(mode)

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `Denoise.prompts`: as for the sequential denoiser."""
        return _prompts(tokenizer, texts, [self.mode_token("S", tokenizer.vocab_size)])

    def build(self, tokenizer: Tokenizer, length: int) -> "MixedDenoiser":
        """See `Denoise.build`."""
        return MixedDenoiser(self, tokenizer, length)


class MixedDenoiser(Denoiser):
    """See `UL2`."""

    def __init__(self, config: UL2, tokenizer: Tokenizer, length: int):
        self._parts = [denoiser.build(tokenizer, length) for denoiser in config.denoisers]
        self._modes = [config.mode_token(denoiser.mode, tokenizer.vocab_size) for denoiser in config.denoisers]
        self._memory_length, self._row_length = config.memory_length(length), config.row_length(length)
        self._length, self._eos, self._sentinel = length, tokenizer.eos, tokenizer.vocab_size

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """See `Denoiser.__call__`."""
        R = len(batch["targets"])
        made = {
            "memory_tokens": np.full((R, self._memory_length), self._eos, np.int32),
            "memory_segments": np.zeros((R, self._memory_length), np.int32),
            "tokens": np.full((R, self._row_length), self._eos, np.int32),
            "targets": np.full((R, self._row_length), self._eos, np.int32),
            "weights": np.zeros((R, self._row_length), np.float32),
        }
        which = self.which(draws)
        for number, (part, mode) in enumerate(zip(self._parts, self._modes, strict=True)):
            rows = np.flatnonzero(which == number)
            if not rows.size:
                continue
            example = part({name: value[rows] for name, value in batch.items()}, dataclasses.replace(draws, rows=draws.rows[rows]))
            made["memory_tokens"][rows], made["memory_segments"][rows, 0] = mode, 1
            for name, value in example.items():
                first = int(name.startswith("memory_"))
                made[name][rows, first : first + value.shape[1]] = value
        return made

    def which(self, draws: Draws) -> np.ndarray:
        """int64 [R]: the number of the denoiser of each row."""
        return (draws.uniform(_WHICH, 1)[:, 0] * len(self._parts)).astype(np.int64)

    def invert(self, batch: Batch) -> np.ndarray:
        """See `Denoiser.invert`."""
        texts = [[token for token in memory if token != memory[0]] for memory in batch["memory_tokens"].tolist()]
        pairs = zip(texts, batch["targets"].tolist(), strict=True)
        return np.array([restored(memory, targets, self._length, self._sentinel) for memory, targets in pairs], np.int32)


def _one_later(targets: np.ndarray, eos: int) -> np.ndarray:
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=eos)


def _prompts(tokenizer: Tokenizer, texts: Sequence[str], mode: list[int]) -> tuple[list[list[int]], Batch]:
    rows = [[*mode, *ids.tolist(), tokenizer.vocab_size] for ids in tokenizer.encode_batch(texts)]
    longest = max(map(len, rows))
    pad = lambda rows: np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)  # noqa: E731
    batch = {"memory_tokens": pad(rows), "memory_segments": pad([[1] * len(row) for row in rows])}
    return [[tokenizer.eos, tokenizer.vocab_size] for _ in texts], batch
