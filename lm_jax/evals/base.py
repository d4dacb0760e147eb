"""What every evaluation of a split says of itself."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.param import Params
from lm_jax.core.types import Batch


@dataclasses.dataclass(kw_only=True)
class EvalConfig(Config):
    """Which split is read, how, and when.

    Rows are of `length` tokens (None: as in training), `batch_size` at once. `every` is in steps; 0: only at the end of training.
    `chunks` > 1 computes logits in that many chunks of a row.
    """

    name: str = "validation"
    split: str = "validation"
    every: int = 0
    batch_size: int = 64
    length: int | None = None
    chunks: int = 1

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1."""
        check_positive(self, "batch_size", "chunks")
        if self.length is not None:
            check_positive(self, "length")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of the model on the split of prepared `data`, of whose batches this process takes `rows`; `put`
        brings these to the devices."""
        raise NotImplementedError
