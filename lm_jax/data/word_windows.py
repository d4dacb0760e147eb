"""Words of running text with their contexts and noise words: batches for word vectors."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.base import DataConfig
from lm_jax.data.shuffle import permute, random_bits
from lm_jax.data.store import Corpus
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import Words, WordTokenizer

FORMAT = 1  # raised whenever the same config would give other batches than before
_KEEP, _REACH, _NOISE = 1, 2, 3  # set the draws apart from those of the shuffle


@dataclasses.dataclass(kw_only=True)
class WordWindows(DataConfig):
    """Rows of running text, of which frequent words are left out at random, for skip-gram and CBOW (Mikolov et al. 2013,
    arXiv:1310.4546, with the details of the authors' program).

    In each epoch a word of relative frequency f stays with probability min(1, sqrt(t / f) + t / f), t being `subsample` (None: all
    stay); what stays is cut into rows of `length` words, in another order each epoch. Left out are also unknown words and those
    without a letter or digit. The context of a word are the words of its row and document up to a distance that is drawn for each
    word from 1 to `window`. A row has `noise` words, drawn with probability proportional to count^`noise_power`, which are noise
    for all its words (Ji et al. 2016, arXiv:1604.04661).

    A batch has "tokens" int32 [B, T], "windows" float32 [B, T, T] (1 where the second word is context of the first, else 0) and
    "negatives" int32 [B, `noise`]. Other fields are as in `TextData`.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "windows", "negatives"})
    targets: ClassVar[frozenset[str]] = frozenset({"context words"})

    corpora: tuple[Corpus, ...]
    tokenizer: Words
    window: int = 5
    subsample: float | None = 1e-4
    noise: int = 64
    noise_power: float = 0.75
    cache_dir: str | None = None
    num_workers: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        super().validate()
        check_positive(self, "window", "noise")
        if self.subsample is not None:
            check_positive(self, "subsample")
        if self.window >= self.length:
            raise ConfigError(f"window={self.window} must be below length={self.length}")

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions": no, "windows" end where documents do."""
        return False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        B, T = self.batch_size, self.length
        return {
            "tokens": jax.ShapeDtypeStruct((B, T), np.int32),
            "windows": jax.ShapeDtypeStruct((B, T, T), np.float32),
            "negatives": jax.ShapeDtypeStruct((B, self.noise), np.int32),
        }

    def prepare(self, progress: Callable[..., Any] | None = None) -> "PreparedWords":
        """See `DataConfig.prepare`."""
        text = TextData(corpora=self.corpora, tokenizer=self.tokenizer, cache_dir=self.cache_dir, num_workers=self.num_workers)
        return PreparedWords(self, text.prepare(progress))


@dataclasses.dataclass(frozen=True)
class PreparedWords:
    """See `data.base.Prepared`. `text` is the tokenised text; all its corpora are read, one after the other."""

    config: WordWindows
    text: PreparedText

    @property
    def tokenizer(self) -> WordTokenizer:
        """That of the text."""
        return self.text.tokenizer

    @property
    def record(self) -> dict[str, Any]:
        """See `Prepared.record`."""
        return self.text.record

    @property
    def vocab_size(self) -> int:
        """See `Prepared.vocab_size`."""
        return self.text.vocab_size

    @property
    def num_outputs(self) -> int:
        """See `Prepared.num_outputs`: the words."""
        return self.vocab_size

    @property
    def tokens_per_row(self) -> float:
        """See `Prepared.tokens_per_row`."""
        return self.config.row_length()

    def require(self, split: str) -> Any:
        """See `Prepared.require`."""
        return self.text.require(split)

    def describe(self) -> str:
        """See `Prepared.describe`."""
        return self.text.describe()

    def num_bytes(self, split: str) -> int:
        """See `Prepared.num_bytes`: 0, as nothing is coded."""
        return 0

    def train_loader(self, rows: slice = slice(None)) -> "WordLoader":
        """See `Prepared.train_loader`."""
        return WordLoader(self, rows)

    def eval_batches(
        self, split: str, batch_size: int | None = None, length: int | None = None, rows: slice = slice(None)
    ) -> Iterator[Batch]:
        """Raises `ConfigError`: word vectors are evaluated by themselves, not on text."""
        raise ConfigError("word vectors are not evaluated on batches; use WordSimilarityConfig")

    def running_text(self) -> "RunningText":
        """The training text of all corpora, one after the other."""
        sources = self.text.sources("train")
        streams = [np.asarray(source.store.tokens) for source in sources]
        begins = np.cumsum([0, *map(len, streams)])
        return RunningText(
            np.concatenate(streams).astype(np.int32),
            np.concatenate([begin + source.store.offsets[:-1] for begin, source in zip(begins, sources, strict=False)]),
            [f"{source.name}: {name}" for source in sources for name in source.store.document_names],
            {source.name: source.store.fingerprint for source in sources},
        )

    def words(self) -> np.ndarray:
        """bool [V]: which ids are words, and not the end of a document, unknown, or signs only."""
        texts = [self.tokenizer.decode([i]) for i in range(self.vocab_size)]
        found = np.array([any(map(str.isalnum, text)) for text in texts])
        found[[self.tokenizer.eos, self.tokenizer.unknown]] = False
        return found


class RunningText(NamedTuple):
    """Documents, one after the other: int32 tokens [N], where in them each document begins, and its name; and a fingerprint of each
    corpus."""

    tokens: np.ndarray
    offsets: np.ndarray
    names: list[str]
    fingerprints: dict[str, Any]

    def document(self, places: np.ndarray) -> np.ndarray:
        """The number of the document that each of these places is in."""
        return np.searchsorted(self.offsets, places, side="right") - 1


class WordLoader:
    """Training batches: `loader(step)` is a pure function, without end.

    An epoch has as many rows as the words that stay fill in the mean; the few words more or fewer that it has are left out, or
    read again from its start.
    """

    def __init__(self, data: PreparedWords, rows: slice):
        """A loader of which this process takes the given `rows`. Raises `DataError` for less than a batch."""
        config, self._text = data.config, data.running_text()
        self._config, self._local = config, rows
        counts = np.bincount(self._text.tokens, minlength=data.vocab_size) * data.words()
        self._keep = keep_probabilities(counts, config.subsample)
        self.num_rows = int(np.sum(counts * self._keep) // config.length)
        if self.num_rows < config.batch_size:
            raise DataError(
                f"the training text fills {self.num_rows} rows of {config.length} words, fewer than one batch of "
                f"batch_size={config.batch_size}: give more text, or a smaller length or batch_size"
            )
        noise = np.cumsum(counts.astype(np.float64) ** config.noise_power * (counts > 0))
        self._noise = noise / noise[-1]
        self._epoch = functools.lru_cache(maxsize=2)(self._places)  # a batch may end one epoch and begin the next
        self.fingerprint: dict[str, Any] = {
            "format": FORMAT,
            "corpora": self._text.fingerprints,
            **{
                name: getattr(config, name)
                for name in ("length", "batch_size", "seed", "window", "subsample", "noise", "noise_power")
            },
        }

    def __call__(self, step: int) -> Batch:
        """This process's rows of batch `step` (from 0)."""
        config, numbers = self._config, self._numbers(step)[self._local]
        places = self._rows(numbers)
        tokens = self._text.tokens[places]
        reach = 1 + _uniform(config.seed, _REACH, numbers[:, None], np.arange(config.length)) * config.window
        draws = _uniform(config.seed, _NOISE, numbers[:, None], np.arange(config.noise))
        return {
            "tokens": tokens,
            "windows": windows(self._text.document(places), reach.astype(np.int64)),
            "negatives": np.searchsorted(self._noise, draws, side="right").astype(np.int32),
        }

    def documents(self, step: int) -> list[list[str]]:
        """The names of the documents that each row of the global batch `step` was cut from."""
        return [[self._text.names[i] for i in np.unique(row)] for row in self._text.document(self._rows(self._numbers(step)))]

    def _numbers(self, step: int) -> np.ndarray:
        return step * self._config.batch_size + np.arange(self._config.batch_size)

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [R, T]: where in the text the words of these rows stand; rows are numbered from the start of training."""
        epoch, index = np.divmod(numbers, self.num_rows)
        index = permute(index, self.num_rows, seed=self._config.seed, epoch=epoch)
        places = np.empty((len(numbers), self._config.length), np.int64)
        for e in np.unique(epoch).tolist():
            places[epoch == e] = self._epoch(e)[index[epoch == e]]
        return places

    def _places(self, epoch: int) -> np.ndarray:
        """int64 [num_rows, T]: the places of the words that stay in an epoch."""
        keep, block = [], 1 << 20
        for first in range(0, len(self._text.tokens), block):
            at = np.arange(first, min(first + block, len(self._text.tokens)))
            keep.append(at[_uniform(self._config.seed, _KEEP, epoch, at) < self._keep[self._text.tokens[at]]])
        return np.resize(np.concatenate(keep), (self.num_rows, self._config.length))


def keep_probabilities(counts: np.ndarray, subsample: float | None) -> np.ndarray:
    """float64 [V]: with which probability an occurrence of each word stays; 0 for words that do not occur."""
    if subsample is None:
        return (counts > 0).astype(np.float64)
    ratio = subsample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(np.sqrt(ratio) + ratio, 1.0) * (counts > 0)


def windows(document: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """float32 [B, T, T]: 1 where the second word is context of the first: another word of its `document` [B, T], at most its
    `reach` [B, T] away."""
    place = np.arange(document.shape[1])
    distance = np.abs(place[:, None] - place)
    near = (distance > 0) & (distance <= reach[:, :, None])
    return (near & (document[:, :, None] == document[:, None, :])).astype(np.float32)


def _uniform(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1), a pure function of seed and counters."""
    return (random_bits(seed, *counters) >> np.uint64(11)) * 2.0**-53
