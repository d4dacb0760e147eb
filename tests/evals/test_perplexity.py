"""Perplexity of a distribution that is known by hand."""

import math

import jax
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.core.types import Mean
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import Bytes, ByteTokenizer
from lm_jax.evals.perplexity import PerplexityConfig, from_logits, perplexity
from tests.models_for_tests import VOCAB, llama


def bigram_model():
    """A model whose logits are a table of the current token: no layers act, the head is the table."""
    config = llama(width=VOCAB)
    config.stack.pattern[0].mixer.head_dim = 8
    config.stack.final_norm = None
    config.head.tied = False
    config.init.outputs = "zeros"  # every block is the identity
    graph, params = split(config.build(jax.random.key(0)))
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    params["embedding"]["table"], params["head"] = np.eye(VOCAB, dtype=np.float32), table
    return graph, params, table.astype(np.float64)


def test_equals_a_bigram_model_computed_by_hand():
    graph, params, table = bigram_model()
    rng = np.random.default_rng(1)
    text = rng.integers(0, VOCAB, 8 * 16 + 5)
    stream = np.concatenate([text, np.zeros(16 * 16 - len(text), int)]).astype(np.int32)
    tokens = np.concatenate([[0], stream[:-1]]).astype(np.int32).reshape(2, 8, 16)
    weights = (np.arange(256) < len(text)).astype(np.float32).reshape(2, 8, 16)
    batches = [{"tokens": t, "targets": y, "weights": w} for t, y, w in zip(tokens, stream.reshape(2, 8, 16), weights, strict=True)]
    log_probs = table - np.log(np.exp(table).sum(-1, keepdims=True))
    before = np.concatenate([[0], text[:-1]])
    nats = -log_probs[before, text].sum()
    scores = dict(perplexity(from_logits(graph, params), batches, num_bytes=500))
    assert scores["num_tokens"] == len(text)
    assert scores["loss"] == pytest.approx(nats / len(text), rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / len(text)), rel=1e-5)
    assert scores["bits_per_token"] == pytest.approx(nats / len(text) / math.log(2), rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 500, rel=1e-6)


def test_an_empty_split_is_an_error():
    graph, params, _ = bigram_model()
    with pytest.raises(ConfigError, match="no token"):
        dict(perplexity(from_logits(graph, params), [], num_bytes=0))


def test_a_loss_that_is_no_number_has_no_perplexity():
    score = lambda _: Mean(np.float32(np.nan), np.float32(4))  # noqa: E731
    assert all(np.isnan(dict(perplexity(score, [{}], num_bytes=0))[name]) for name in ("loss", "perplexity"))


def test_only_running_text_is_read_by_a_sliding_window():
    with pytest.raises(ConfigError, match="stride=64 is for running text"):
        PerplexityConfig(stride=64).check(llama(), object())
    asked = []

    class Text(PreparedText):
        def eval_batches(self, split, **how):
            asked.append((split, how))

    config = PerplexityConfig(stride=64, length=128, batch_size=2)
    config.check(llama(), Text(TextData(corpora=(), tokenizer=Bytes()), ByteTokenizer(), {}, {}))
    both = {"batch_size": 2, "length": 128}, {"batch_size": 2, "length": 128, "stride": 64}
    assert asked == [("validation", how) for how in both]  # so that what cannot be read is known before training
