"""Word vectors against what people say: how alike two words are, and which words are near."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.sources import Counts, find, read_text
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.models.base import ModelConfig
from lm_jax.models.word_tables import WordTablesConfig


@dataclasses.dataclass(kw_only=True)
class WordSimilarityConfig(EvalConfig):
    """Files of pairs of words with a score (word, word, number, separated by tabs), in `paths`.

    Yields for each file, by its name without suffix, the Spearman correlation of the scores and the cosines, over the pairs whose
    words are both in the vocabulary (as they stand or in lower case), and how many there are ("NAME/pairs") and how many others
    ("NAME/missing"). Of `queries` it shows the `nearest` words by cosine. Any model with an embedding of words may be asked.

    `vectors` are those of the embedding, of "words", or where the model has two vectors of each, the "sum" with that of the same
    word as a context (Pennington et al. 2014, section 4.2; Levy et al. 2015, doi:10.1162/tacl_a_00134, section 3.3).
    """

    targets: ClassVar[frozenset[str]] = frozenset({"context words", "counts of pairs", "next words", "masked words", "classes"})

    name: str = "similarity"
    split: str = "train"
    paths: tuple[str, ...]
    queries: tuple[str, ...] = ("king", "sea", "happy", "walked", "london")
    nearest: int = 8
    vectors: str = "words"

    def validate(self) -> None:
        """Raises `ConfigError` without a file."""
        super().validate()
        check_choice("vectors", self.vectors, ("words", "sum"))
        if not self.paths:
            raise ConfigError("paths is empty: give at least one file of pairs of words")

    def check(self, model: ModelConfig, data: Any) -> None:
        """See `EvalConfig.check`: the files are read."""
        if self.vectors == "sum" and not isinstance(model, WordTablesConfig):
            raise ConfigError(f"vectors='sum' is for models with two vectors of each word, and this is a {type(model).__name__}")
        seen: dict[str, Path] = {}
        for path in (file for name in self.paths for file in find(name)):
            if path.stem in seen:
                raise ConfigError(
                    f"paths: the scores of {seen[path.stem]} and {path} would both be named {path.stem!r}; rename one"
                )
            seen[path.stem] = path
            read_pairs(path)

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        vectors = unit_vectors(graph, params, self.vectors)
        for path in (file for name in self.paths for file in find(name)):
            yield from agreement(vectors, data.tokenizer, path)
        for query in self.queries:
            number = word_id(data.tokenizer, query)
            if number is not None:
                yield Shown(f"{query}: ", ", ".join(self._near(vectors, number, data)), {})

    def _near(self, vectors: np.ndarray, number: int, data: Any) -> list[str]:
        cosines = vectors[: data.tokenizer.vocab_size] @ vectors[number]
        cosines[number] = -np.inf
        return [data.tokenizer.decode([i]) for i in np.argsort(-cosines)[: self.nearest].tolist()]


def agreement(vectors: np.ndarray, tokenizer: Tokenizer, path: Path) -> Iterator[tuple[str, float]]:
    """Yields the (name, value) pairs of one file (see `WordSimilarityConfig`) for unit vectors [V, D]; no correlation for fewer
    than two known pairs."""
    pairs, people = read_pairs(path)
    ids = [tuple(word_id(tokenizer, word) for word in pair) for pair in pairs]
    known = np.array([None not in pair for pair in ids], bool)
    yield f"{path.stem}/pairs", float(known.sum())
    yield f"{path.stem}/missing", float(len(known) - known.sum())
    if known.sum() > 1:
        one, other = np.array([pair for pair in ids if None not in pair]).T
        yield path.stem, spearman(people[known], np.sum(vectors[one] * vectors[other], axis=1))


def unit_vectors(graph: nnx.GraphDef, params: Params, kind: str) -> np.ndarray:
    """float32 [V, D]: the vectors of a model (see `WordSimilarityConfig`), each divided by its norm."""
    model = nnx.merge(graph, params)
    table = model.embedding.table[...] + (model.contexts.table[...] if kind == "sum" else 0.0)
    if not jax.sharding.get_abstract_mesh().empty:
        table = jax.sharding.reshard(table, PartitionSpec())
    return normalised(np.asarray(table, np.float32))


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors [V, D], each divided by its norm; 0 stays 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def word_id(tokenizer: Tokenizer, word: str) -> int | None:
    """The id of the one token that is this word, as it stands or in lower case; None where there is none."""
    for form in (word, word.lower()):
        ids = tokenizer.encode(form)
        if len(ids) == 1 and tokenizer.decode(ids) == form:
            return int(ids[0])
    return None


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The pairs of a file, and float64 [pairs] their scores. Raises `DataError` for a line that is no word, word, number."""
    pairs, scores = [], []
    for number, line in enumerate(read_text(path, "strict", Counts()).splitlines(), start=1):
        try:
            one, other, score = line.split("\t")
            scores.append(float(score))
        except ValueError as error:
            raise DataError(f"{path}:{number} is no pair of words with a score, separated by tabs: {line[:60]!r}") from error
        pairs.append((one, other))
    return pairs, np.array(scores)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of the ranks of two sequences, equal values having their mean rank; nan where either is constant."""
    x, y = (ranks - ranks.mean() for ranks in map(_ranks, (a, b)))
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / norm) if norm else float("nan")


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, which, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
