"""Completion of text line by line: how often the model writes the next line exactly as it is."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import nnx

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.sharding import same_everywhere
from lm_jax.core.types import Batch
from lm_jax.data.prefixes import FillInTheMiddle
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.base import ModelConfig

_SHOWN_LINES = 6  # of what stands before a line


class Line(NamedTuple):
    """A line that is not blank, and the text of its document before it and from its end on."""

    before: str
    line: str
    after: str

    def is_written(self, text: str) -> bool:
        """Whether the text is the line, white space at the ends apart."""
        return text.rstrip() == self.line.rstrip()


@dataclasses.dataclass(kw_only=True)
class NextLineConfig(EvalConfig):
    """Yields "exact", the share of lines that greedy generation completes exactly (white space at their ends apart), and
    "num_lines".

    `limit` lines are read, evenly spread over all lines of the split that are neither blank nor the first of their document. The
    model sees as much of the text before a line as half a row holds, and writes up to `max_tokens` tokens. With `fill` it sees
    a quarter of a row before the line and a quarter after it, and fills the hole, as data with `FillInTheMiddle` trains it to. The
    first `show` are shown. Every device writes all lines.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})
    reads: ClassVar[tuple[str, ...]] = ("corpora",)

    max_tokens: int = 48
    limit: int = 200
    show: int = 4
    fill: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1."""
        super().validate()
        check_positive(self, "max_tokens", "limit")
        if self.show < 0:
            raise ConfigError(f"show={self.show} must not be negative")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`."""
        if model.inputs != {"tokens"}:
            raise ConfigError(f"lines are completed by a model that reads their text alone, not {', '.join(sorted(model.inputs))}")
        if self.fill and not isinstance(data.config.denoise, FillInTheMiddle):
            raise ConfigError(
                "fill=True: holes are filled by what data.denoise=FillInTheMiddle() trains; set that, or leave fill out"
            )
        self.lines(data)
        limit, longest = model.max_length(), self._room(data) + self.max_tokens + (4 if self.fill else 0)  # sentinels
        if limit is not None and longest > limit:
            raise ConfigError(
                f"max_tokens={self.max_tokens} after {self._room(data)} tokens, half a row, exceed the position table of {limit}"
            )

    def _room(self, data: Any) -> int:
        """The most tokens of a prompt."""
        return (self.length or data.config.length) // 2

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        lines = self.lines(data)
        with same_everywhere():
            written = [text for group in self._groups(lines) for text in self._complete(graph, params, data, group)]
        right = [line.is_written(text) for line, text in zip(lines, written, strict=True)]
        yield "exact", sum(right) / len(right)
        yield "num_lines", float(len(right))
        for line, text, hit in list(zip(lines, written, right, strict=True))[: self.show]:
            before = "\n".join(line.before.split("\n")[-_SHOWN_LINES - 1 :])
            yield Shown(before, text, {"eval": self.name, "reference": line.line, "exact": hit})

    def lines(self, data: Any) -> list[Line]:
        """The lines of the split of running text (see `data/text.py`) that are read."""
        texts, found = [], []
        for _, store in data.sources(self.split):
            for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
                texts.append(data.tokenizer.decode(np.asarray(store.tokens[start : end - 1])))
                place = 0
                for line in texts[-1].split("\n"):
                    if place and line.strip():
                        found.append((len(texts) - 1, place, place + len(line)))
                    place += len(line) + 1
        if not found:
            raise ConfigError(f"the split {self.split!r} has no line after the first of a document")
        chosen = np.unique(np.linspace(0, len(found) - 1, self.limit).astype(int))
        spans = [(texts[number], first, end) for number, first, end in (found[i] for i in chosen)]
        return [Line(text[:first], text[first:end], text[end:]) for text, first, end in spans]

    def prompt(self, data: Any, line: Line) -> list[int]:
        """The tokens of what is known of a line. The end of the line before is left to the model: tokens often hold it together
        with what follows."""
        tokenizer, room = data.tokenizer, self._room(data)
        before = tokenizer.encode(line.before.rstrip("\n")).tolist()
        if not self.fill:
            return [tokenizer.eos, *before][-room:]
        return data.config.denoise.hole(tokenizer, before[-(room // 2) :], tokenizer.encode(line.after).tolist()[: room // 2])

    def _groups(self, lines: list[Line]) -> Iterator[list[Line]]:
        for first in range(0, len(lines), self.batch_size):
            yield lines[first : first + self.batch_size]

    def _complete(self, graph: nnx.GraphDef, params: Params, data: Any, lines: list[Line]) -> list[str]:
        """The first line that is not blank of what the model writes after each."""
        tokenizer = data.tokenizer
        prompts = [self.prompt(data, line) for line in lines]
        filled = prompts + prompts[-1:] * (self.batch_size - len(prompts))  # one shape, one program
        found = generate(
            graph,
            params,
            filled,
            max_tokens=self.max_tokens,
            sampling=SamplingConfig(temperature=0.0),
            stop_tokens=(tokenizer.eos,),
            num_tokens=tokenizer.vocab_size,
            bidirectional="prefix" in data.config.inputs,
        )
        return [first_line(tokenizer.decode(samples[0])) for samples in found[: len(lines)]]


def first_line(text: str) -> str:
    """The first line that is not blank; "" where all are."""
    return next((line for line in text.split("\n") if line.strip()), "")
