"""Texts that a model writes, compared with those it should have written: translations, summaries, answers."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from flax import nnx

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.sharding import same_everywhere
from lm_jax.core.types import Batch
from lm_jax.evals.alignment import can_align, tables
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.text_metrics import METRICS, check_metrics
from lm_jax.infer.beam import beam_search
from lm_jax.models.base import ModelConfig


@dataclasses.dataclass(kw_only=True)
class GenerationConfig(EvalConfig):
    """Yields the scores of `metrics` ("bleu", "bleu_zh", "chrf", "rouge", "rouge_words", "exact", "f1": `evals/text_metrics.py`)
    of the texts that beam search finds for a split of pairs (1 beam: greedy), and their number.

    Texts are of up to `max_tokens` tokens. With `limit` only the first so many examples are read; the first `show` are shown,
    beside what an encoder-decoder attends to while it writes each token (not where layers are split over a pipeline). Every device
    writes all texts: a mesh does not make this faster.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})
    reads: ClassVar[tuple[str, ...]] = ("sources", "references")

    metrics: tuple[str, ...] = ("bleu",)
    beam: int = 1
    length_penalty: float = 1.0
    max_tokens: int = 64
    limit: int | None = None
    show: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1 or an unknown metric."""
        super().validate()
        check_positive(self, "beam", "max_tokens")
        if self.limit is not None:
            check_positive(self, "limit")
        for name in self.metrics:
            check_choice("metrics", name, tuple(METRICS))
        if self.show < 0 or self.length_penalty < 0:
            raise ConfigError(f"show={self.show} and length_penalty={self.length_penalty} must not be negative")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`."""
        check_metrics(self.metrics, data.references(self.split)[: self.limit])
        limit, sources = model.max_length(), data.sources(self.split)[: self.limit]
        if not sources:
            raise ConfigError(f"the split {self.split!r} holds no example to evaluate")
        if limit is None:
            return
        prompts, _ = data.config.prompts(data.tokenizer, sources)
        longest = max(map(len, prompts), default=0)
        if longest + self.max_tokens > limit:
            raise ConfigError(
                f"max_tokens={self.max_tokens} after a prompt of {longest} tokens exceeds the model's position table of {limit}"
            )

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`; `data` has `sources` and `references` of a split (see `data/pairs.py`)."""
        sources, references = data.sources(self.split)[: self.limit], data.references(self.split)[: self.limit]
        with same_everywhere():
            ids = self.answers(graph, params, data, sources)
        written = [data.tokenizer.decode(answer).strip() for answer in ids]
        for name in self.metrics:
            yield from METRICS[name](written, references)
        yield "num_examples", float(len(written))
        looks: list[dict[str, Any]] = []
        if self.show and can_align(graph, params):
            _, inputs = data.config.prompts(data.tokenizer, sources[: self.show])
            looks = tables(graph, params, inputs, ids[: self.show], data.tokenizer, self.max_tokens)
        for number, (source, text, known) in enumerate(zip(sources[: self.show], written, references, strict=False)):
            look = {"table": looks[number]} if looks else {}
            yield Shown(f"{source}\n", text, {"eval": self.name, "reference": "\n".join(known), **look})

    def answers(self, graph: nnx.GraphDef, params: Params, data: Any, sources: Sequence[str]) -> list[list[int]]:
        """The tokens that the model writes for each source, without the end. Sources of about one length are read together."""
        if not sources:
            raise ConfigError(f"the split {self.split!r} holds no example to evaluate")
        tokenizer, found = data.tokenizer, {}
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        for first in range(0, len(order), self.batch_size):
            group = order[first : first + self.batch_size]
            full = group + group[-1:] * (self.batch_size - len(group))  # one shape, one program
            prompts, inputs = data.config.prompts(tokenizer, [sources[i] for i in full])
            results = beam_search(
                graph,
                params,
                prompts,
                beam=self.beam,
                max_tokens=self.max_tokens,
                eos=tokenizer.eos,
                length_penalty=self.length_penalty,
                num_tokens=tokenizer.vocab_size,
                inputs=inputs,
            )
            found |= {i: hypotheses[0][1] for i, hypotheses in zip(group, results[: len(group)], strict=True)}
        return [found[i] for i in range(len(sources))]
