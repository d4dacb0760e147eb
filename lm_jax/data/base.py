"""What every kind of data says of itself, and what it gives once it is prepared."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from lm_jax.core.config import Config, check_positive
from lm_jax.core.types import Batch
from lm_jax.data.tokenizers import Tokenizer


class Loader(Protocol):
    """Training batches as a pure function of the step.

    Attributes:
      fingerprint: JSON that differs where the batches do.
    """

    fingerprint: dict[str, Any]

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0), as NumPy arrays."""
        ...

    def documents(self, step: int) -> list[list[Any]]:
        """What each row of the global batch `step` was made from."""
        ...


class Prepared(Protocol):
    """Data that is ready to be batched.

    Attributes:
      tokenizer: that of its text.
      record: counts of what was read, changed or left out, JSON-ready.
    """

    tokenizer: Tokenizer
    record: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """Token ids are below this: those of the tokenizer, and what the data adds to them."""
        ...

    @property
    def num_outputs(self) -> int:
        """How many targets there are to choose from."""
        ...

    @property
    def tokens_per_row(self) -> float:
        """How many tokens a row of a training batch has, padding included, a mean over an epoch."""
        ...

    def require(self, split: str) -> Any:
        """What the split holds. Raises `DataError`, naming those that exist, where there is none."""
        ...

    def describe(self) -> str:
        """Lines that say what there is."""
        ...

    def train_loader(self, rows: slice = slice(None)) -> Loader:
        """Training batches, of which this process takes the given `rows`."""
        ...

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> Iterable[Batch]:
        """The whole split once, in batches of one shape, or of few; sizes default to those of training."""
        ...

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the targets, of which bits per byte are counted; 0 where the targets are no text."""
        ...


@dataclasses.dataclass(kw_only=True)
class DataConfig(Config):
    """Base of all data: batches of `batch_size` rows of `length` tokens, in an order that `seed` draws.

    `inputs` and `targets` say what is in a batch, in the words of `core.types.Batch`: a model must find its inputs among these, and
    model, objective and evals must be for one of the targets. Inputs that are not `optional` must be read.
    """

    inputs: ClassVar[frozenset[str]]
    targets: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset({"tokens", "prefix"})
    texts_per_row: ClassVar[int] = 1  # each of `length` tokens

    length: int = 256
    batch_size: int = 8
    seed: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        check_positive(self, "length", "batch_size")

    @property
    def sampling_rate(self) -> int | None:
        """Samples a second of the sound in a batch; None: there is none."""
        return None

    def row_length(self, length: int | None = None) -> int:
        """How many "tokens" a row of a batch has that is made of `length` tokens of text (None: of as many as in training).

        Raises `ConfigError` where it cannot be made.
        """
        return self.length if length is None else length

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions"."""
        raise NotImplementedError

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arrays of a training batch: what can be checked before there is any data."""
        rows = (self.batch_size, self.length)
        names = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        if self.masks_documents():
            names |= {"segments": jnp.int32, "positions": jnp.int32}
        return {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in names.items()}

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """What a model goes on from, given each text: the first tokens of what it writes, and what its encoder reads of each.

        Here a document that begins with the text, and nothing for an encoder.
        """
        return [[tokenizer.eos, *map(int, tokenizer.encode(text))] for text in texts], {}

    def shown_prompt(self, prompt: str) -> str:
        """The prompt as it stands before the text that a model writes, for people to read."""
        return prompt

    def prepare(self, progress: Callable[..., Any] | None = None) -> Prepared:
        """Reads and tokenises what there is; `progress` gets lines to show. Raises `DataError` for bad or missing data."""
        raise NotImplementedError
