"""How often words of running text stand near each other: batches of pairs of words with their counts."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
import scipy.sparse

from lm_jax.core.config import check_positive
from lm_jax.core.errors import DataError
from lm_jax.core.types import Batch
from lm_jax.data.base import DataConfig
from lm_jax.data.shuffle import permute
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import Words
from lm_jax.data.word_windows import PreparedWords

FORMAT = 1  # raised whenever the same config would give other batches than before


@dataclasses.dataclass(kw_only=True)
class Cooccurrences(DataConfig):
    """Pairs of words with how often they occur near each other, for GloVe (Pennington et al. 2014).

    Two words of one document that are d <= `window` words apart count 1 / d, in either order. Left out first, and so not counted in
    d, are unknown words and those without a letter or digit. An epoch has each pair of a count above 0 once, in another order each
    time. The counts are made once, in memory: 12 bytes for each pair.

    A batch has "tokens" and "contexts" int32 [B, T], the words of B T pairs, and "counts" float32 [B, T]. Other fields are as in
    `TextData`.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "contexts"})
    targets: ClassVar[frozenset[str]] = frozenset({"counts of pairs"})

    corpora: tuple[Corpus, ...]
    tokenizer: Words
    window: int = 10
    cache_dir: str | None = None
    num_workers: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "window")

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions": no, pairs do not stand in a text."""
        return False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        rows = (self.batch_size, self.length)
        dtypes = {"tokens": np.int32, "contexts": np.int32, "counts": np.float32}
        return {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in dtypes.items()}

    def prepare(self, progress: Callable[..., Any] | None = None) -> "PreparedCooccurrences":
        """See `DataConfig.prepare`."""
        text = TextData(corpora=self.corpora, tokenizer=self.tokenizer, cache_dir=self.cache_dir, num_workers=self.num_workers)
        return PreparedCooccurrences(self, text.prepare(progress))


@dataclasses.dataclass(frozen=True)
class PreparedCooccurrences(PreparedWords):
    """See `data.base.Prepared`."""

    config: Cooccurrences  # type: ignore[assignment]

    def train_loader(self, rows: slice = slice(None)) -> "CooccurrenceLoader":  # type: ignore[override]
        """See `Prepared.train_loader`."""
        return CooccurrenceLoader(self, rows)


class CooccurrenceLoader:
    """Training batches: `loader(step)` is a pure function, without end."""

    def __init__(self, data: PreparedCooccurrences, rows: slice):
        """A loader of which this process takes the given `rows`. Raises `DataError` for fewer pairs than a batch has."""
        config, text = data.config, data.running_text()
        places = np.flatnonzero(data.words()[text.tokens])
        counts = cooccurrences(text.tokens[places], text.document(places), config.window, data.vocab_size).tocoo()
        self._words, self._contexts = (x.astype(np.int32) for x in counts.coords)
        self._counts = counts.data
        self._config, self._local, self._num_documents = config, rows, len(text.names)
        if len(self._counts) < config.batch_size * config.length:
            raise DataError(
                f"the training text has {len(self._counts)} pairs of words, fewer than one batch of batch_size={config.batch_size} "
                f"rows of length={config.length}: give more text, or a smaller length or batch_size"
            )
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "corpora": text.fingerprints,
            **{name: getattr(config, name) for name in ("length", "batch_size", "seed", "window")},
        }

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0)."""
        B, T = self._config.batch_size, self._config.length
        number = (step * B + np.arange(B)[self._local, None]) * T + np.arange(T)
        epoch, index = np.divmod(number.ravel(), len(self._counts))
        pair = permute(index, len(self._counts), seed=self._config.seed, epoch=epoch).reshape(number.shape)
        return {"tokens": self._words[pair], "contexts": self._contexts[pair], "counts": self._counts[pair]}

    def documents(self, step: int) -> list[list[str]]:
        """What each row of the global batch `step` was made from: a count is over all documents."""
        return [[f"pairs of all {self._num_documents:,} documents"]] * self._config.batch_size


def cooccurrences(tokens: np.ndarray, document: np.ndarray, window: int, vocab_size: int) -> scipy.sparse.csr_array:
    """float32 [V, V], symmetric: the sum of 1 / d over all d <= `window` and all places at which two words stand d apart in one
    document; tokens and the numbers of their documents are integers [N]."""
    total = scipy.sparse.csr_array((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, window + 1):
        same = document[distance:] == document[:-distance]
        pair = tokens[:-distance][same], tokens[distance:][same]
        weights = np.full(len(pair[0]), 1 / distance, np.float32)
        total = total + scipy.sparse.csr_array((weights, pair), shape=total.shape)
    return total + total.T.tocsr()
