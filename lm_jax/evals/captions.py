"""Captions that a model writes of the images of a split, compared with those that people wrote."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.sharding import same_everywhere
from lm_jax.core.types import Batch
from lm_jax.data.pixels import png_url
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.text_metrics import METRICS, check_metrics
from lm_jax.infer.beam import beam_search
from lm_jax.models.base import ModelConfig


@dataclasses.dataclass(kw_only=True)
class CaptionsConfig(EvalConfig):
    """Yields the scores of `metrics` (see `evals/text_metrics.py`) of all captions, each against all references of its
    image, "different", the share of captions that are not equal to another, and "num_images".

    A caption is the best of a `beam` (1: greedy) of at most `max_tokens` tokens; `length_penalty` is as in `infer.beam`. `limit`
    takes only the first images (None: all). `show` images appear with caption and references. Every device writes all captions.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})
    reads: ClassVar[tuple[str, ...]] = ("pictures",)

    metrics: tuple[str, ...] = ("bleu",)
    beam: int = 3
    max_tokens: int = 24
    length_penalty: float = 1.0
    limit: int | None = None
    show: int = 8

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or an unknown metric."""
        super().validate()
        check_positive(self, "beam", "max_tokens")
        for name in self.metrics:
            check_choice("metrics", name, tuple(METRICS))
        if self.limit is not None:
            check_positive(self, "limit")
        if self.show < 0 or self.length_penalty < 0:
            raise ConfigError(f"show={self.show} and length_penalty={self.length_penalty} must not be negative")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`."""
        check_metrics(self.metrics, [picture.captions for picture in data.pictures(self.split)[: self.limit]])
        limit = model.max_length()
        if limit is not None and 1 + self.max_tokens > limit:
            raise ConfigError(f"max_tokens={self.max_tokens} after the first token exceeds the model's position table of {limit}")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        pictures = data.pictures(self.split)[: self.limit]
        written: list[str] = []
        for first in range(0, len(pictures), self.batch_size):
            part = [picture.pixels for picture in pictures[first : first + self.batch_size]]
            # Of one shape, so that there is one program.
            images = np.stack(part + [part[0]] * (self.batch_size - len(part)))
            written += self._write(graph, params, data, data.config.pixels.floats(images))[: len(part)]
        references = [picture.captions for picture in pictures]
        for name in self.metrics:
            yield from METRICS[name](written, references)
        yield "different", sum(written.count(text) == 1 for text in written) / len(written)
        yield "num_images", float(len(written))
        for number in np.linspace(0, len(pictures) - 1, min(self.show, len(pictures))).astype(int):
            fields = {"image": png_url(pictures[number].pixels), "reference": " / ".join(references[number])}
            yield Shown(pictures[number].name, written[number], fields)

    def _write(self, graph: nnx.GraphDef, params: Params, data: Any, images_BHWC: np.ndarray) -> list[str]:
        tokenizer = data.tokenizer
        with same_everywhere():
            found = beam_search(
                graph,
                params,
                [[tokenizer.eos]] * len(images_BHWC),
                beam=self.beam,
                max_tokens=self.max_tokens,
                eos=tokenizer.eos,
                length_penalty=self.length_penalty,
                num_tokens=tokenizer.vocab_size,
                inputs={"images": images_BHWC},
            )
        return [tokenizer.decode(hypotheses[0][1]) for hypotheses in found]
