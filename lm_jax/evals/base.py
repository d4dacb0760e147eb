"""What every evaluation of a split says of itself."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.models.base import ModelConfig


class Shown(NamedTuple):
    """An output of the model for people to look at: it appears among the samples of the run page, and in samples.jsonl.

    `fields` are JSON-ready. "reference" is the text to expect, "image" a PNG as a data URL that stands beside the text,
    "table" {"rows": [...], "columns": [...], "values": [[...]]} numbers from 0 to 1 drawn as shades; all others are a note.
    """

    prompt: str
    text: str
    fields: dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class EvalConfig(Config):
    """Which split is read, how, and when.

    Rows are of `length` tokens (None: as in training), `batch_size` at once. `every` is in steps; 0: only at the end of training.
    `chunks` > 1 computes logits in that many chunks of a row. `reads` are attributes of prepared data that not all data has;
    `reads_batches` says whether it reads `eval_batches`.
    """

    targets: ClassVar[frozenset[str]]
    reads: ClassVar[tuple[str, ...]] = ()
    reads_batches: ClassVar[bool] = False

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

    def check_rows(self, length: int) -> None:
        """Raises `ConfigError` where rows of `length` tokens cannot be read so."""
        if length % self.chunks:
            raise ConfigError(f"its length={length} is not divisible by its chunks={self.chunks}")

    def check(self, model: ModelConfig, data: Any) -> None:
        """Raises `ConfigError` or `DataError` before training for what would fail after it: a library or a file that is missing, a
        text that the model cannot read or write, an example longer than `length`. `data` is prepared."""
        if self.reads_batches:
            data.eval_batches(self.split, batch_size=self.batch_size, length=self.length)

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """Yields (name, value) of the model on the split of prepared `data`, and outputs to look at. This process takes `rows` of
        the batches; `put` brings these to the devices."""
        raise NotImplementedError
