"""Perplexity of text by word vectors: the next word, given the words before it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.config import check_positive
from lm_jax.core.param import Params
from lm_jax.core.types import Batch
from lm_jax.data.loader import EvalBatches
from lm_jax.data.text import PreparedText
from lm_jax.data.word_windows import PreparedWords
from lm_jax.evals.base import EvalConfig
from lm_jax.evals.perplexity import from_log_probs, perplexity
from lm_jax.models.base import ModelConfig


@dataclasses.dataclass(kw_only=True)
class WordPerplexityConfig(EvalConfig):
    """Scores running text as `evals/perplexity.py` does, every token once. Of a word w after h, the `context` tokens before it (as
    far as they are in its row and its document):

        p(w | h) = s exp(u_w v_h + b_w) / (the same of all words, without s)

    v_h is the mean of the vectors of the words in h, u_w the vector of w as what they tell. With negative sampling, which learns
    u v = log p(w | h) / p(w) (Levy and Goldberg 2014, but for a constant), b_w is the logarithm of how often w occurs in the
    training text, plus 1; GloVe has learned its own. s is the share of words in that text; a token that is none (signs, the end
    of a document, an unknown word) has its own share, whatever stands before it.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"context words", "counts of pairs"})
    reads: ClassVar[tuple[str, ...]] = ("text", "words")

    context: int = 5
    batch_size: int = 4
    length: int | None = 256

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1."""
        super().validate()
        check_positive(self, "context")

    def check(self, model: ModelConfig, data: PreparedWords) -> None:
        """See `EvalConfig.check`."""
        self._batches(data.text)

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: PreparedWords, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float]]:
        """See `EvalConfig.scores`. Every process scores all rows."""
        model, words_V = nnx.merge(graph, params), data.words()
        tellers_VD, told_VD, bias_V = (None if x is None else _whole(x)[: len(words_V)] for x in model.tables())
        occurs_V = np.bincount(data.running_text().tokens, minlength=len(words_V)) + 1
        bias_V = np.log(occurs_V).astype(np.float32) if bias_V is None else bias_V
        shares_V = np.where(words_V, occurs_V[words_V].sum(), occurs_V) / occurs_V.sum()
        tables = NextWord(tellers_VD, told_VD[words_V], bias_V[words_V], words_V, np.log(shares_V).astype(np.float32))
        score = lambda batch: log_probs(batch, tables, data.tokenizer.eos, self.context)  # noqa: E731
        return perplexity(from_log_probs(score), self._batches(data.text), data.text.num_bytes(self.split))

    def _batches(self, text: PreparedText) -> EvalBatches:
        return text.eval_batches(self.split, batch_size=self.batch_size, length=self.length)


class NextWord(NamedTuple):
    """What `log_probs` needs of a model and its training text; of W words among V tokens."""

    tellers_VD: np.ndarray  # float32: of words before
    told_WD: np.ndarray  # float32: of words that are told by them
    bias_W: np.ndarray  # float32
    words_V: np.ndarray  # bool: which tokens are words
    log_share_V: np.ndarray  # float32: of all words together, or of a token that is none


def log_probs(batch: Batch, tables: NextWord, eos: int, context: int) -> np.ndarray:
    """float32 [B, T]: natural logarithms of the probabilities of `batch["targets"]`, as `WordPerplexityConfig` defines them."""
    tokens_BT, targets_BT, words_V = batch["tokens"], batch["targets"], tables.words_V
    place, document_BT = np.arange(tokens_BT.shape[1]), np.cumsum(tokens_BT == eos, axis=1)
    back = place[:, None] - place[None, :]
    near_BTS = (back >= 0) & (back < context) & (document_BT[:, :, None] == document_BT[:, None, :])
    near_BTS = (near_BTS & words_V[tokens_BT][:, None, :]).astype(np.float32)
    mean_BTD = near_BTS @ tables.tellers_VD[tokens_BT] / np.maximum(near_BTS.sum(-1, keepdims=True), 1)
    scores_BTW = mean_BTD @ tables.told_WD.T + tables.bias_W
    number_V = np.cumsum(words_V) - 1  # of a word among the words
    told_BT = np.take_along_axis(scores_BTW, np.maximum(number_V[targets_BT], 0)[:, :, None], axis=-1)[:, :, 0]
    top_BT = scores_BTW.max(axis=-1)
    log_z_BT = top_BT + np.log(np.exp(scores_BTW - top_BT[:, :, None]).sum(axis=-1))
    return tables.log_share_V[targets_BT] + np.where(words_V[targets_BT], told_BT - log_z_BT, 0)


def _whole(x: jax.Array) -> np.ndarray:
    if not jax.sharding.get_abstract_mesh().empty:
        x = jax.sharding.reshard(x, PartitionSpec())
    return np.asarray(x, np.float32)
