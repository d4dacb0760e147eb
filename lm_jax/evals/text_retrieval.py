"""Finding the text that belongs to a text among all those of a split."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.evals.base import Shown
from lm_jax.evals.retrieval import RetrievalConfig, image_ranks, pair_vectors


@dataclasses.dataclass(kw_only=True)
class TextRetrievalConfig(RetrievalConfig):
    """As `RetrievalConfig` for two texts: yields "source_to_target_recall@k", the share of sources whose target is among the k
    nearest of all targets of the split, the same the other way round, and "chance@k", what a random order gives. `show` sources
    appear with the targets that are nearest to them.
    """

    reads: ClassVar[tuple[str, ...]] = ("pairs", "numbered_batches")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`; `data` are `data.text_pairs.TextPairs`."""
        pairs = data.pairs[self.split]
        width = nnx.merge(graph, params).config.width
        sources, targets = np.zeros((2, len(pairs), width), np.float32)
        for numbers, batch in data.numbered_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows):
            there = np.array(numbers) >= 0
            for side, vectors in zip(
                (sources, targets), jax.device_get(pair_vectors(params, put(batch), graph=graph)), strict=True
            ):
                side[np.array(numbers)[there]] = vectors[there]
        number = np.arange(len(pairs))
        ranks = {
            "source_to_target": image_ranks(targets, sources, number),
            "target_to_source": image_ranks(sources, targets, number),
        }
        for k in self.at:
            for name, found in ranks.items():
                yield f"{name}_recall@{k}", float(np.mean(found < k))
            yield f"chance@{k}", min(k / len(pairs), 1.0)
        for i in np.linspace(0, len(pairs) - 1, min(self.show, len(pairs))).astype(int):
            near = np.argsort(-(targets @ sources[i]), kind="stable")[:3]
            text = " / ".join(pairs[n].target for n in near)
            yield Shown(f"{pairs[i].source}\n", text, {"eval": self.name, "reference": pairs[i].target})
