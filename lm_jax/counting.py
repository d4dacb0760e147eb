"""`lm-jax ngram`: an n-gram model of an experiment's text, scored as its neural model is."""

import time
from collections.abc import Iterator

import numpy as np

from lm_jax.config import Experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.text import PreparedText, TextData
from lm_jax.evals.perplexity import from_log_probs, perplexity
from lm_jax.models.ngram import NGram, NGramConfig

ROW, ROWS = 1024, 64  # tokens of a row that are scored, and rows at once


def ngram(experiment: Experiment, config: NGramConfig, split: str) -> Iterator[str]:
    """Counts the n-grams of all training text and yields lines: what was counted, and the scores on `split`, which are those of
    `evals.perplexity`.

    Raises `ConfigError` for an order below 1 or data that is no running text, `DataError` for a split that is not there.
    """
    validate_tree(config)
    if not isinstance(experiment.data, TextData):
        raise ConfigError(f"n-grams are counted in running text (TextData), and the data is a {type(experiment.data).__name__}")
    if experiment.data.denoise is not None:
        raise ConfigError("n-grams are counted in text as it is, and data.denoise rewrites it; set --config.data.denoise=None")
    data = experiment.data.prepare()
    data.require(split)
    start = time.perf_counter()
    model = count(data, config)
    yield f"{model.describe()}\ncounted in {time.perf_counter() - start:.1f} s"
    start = time.perf_counter()
    scores = " ".join(f"{name}={value:.6g}" for name, value in score(model, data, split))
    yield f"{split} {scores}\nscored in {time.perf_counter() - start:.1f} s"


def count(data: PreparedText, config: NGramConfig) -> NGram:
    """The model of the training text of all corpora, each once (mixture weights are for training by gradients)."""
    sources = data.sources("train")
    tokens = np.concatenate([source.store.tokens for source in sources])
    return config.count(tokens, data.vocab_size, data.tokenizer.eos)


def score(model: NGram, data: PreparedText, split: str) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of the model on a split: every token once. A row after the first of a corpus begins with the
    `order` - 2 tokens before those that it scores, so that the input of its first scored token completes a context."""
    context = max(model.order - 2, 0)
    batches = data.eval_batches(split, batch_size=ROWS, length=ROW + context, stride=ROW)
    return perplexity(from_log_probs(model.log_probs), batches, data.num_bytes(split))
