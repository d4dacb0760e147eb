"""Kneser-Ney against the formulas in exact fractions, worked examples, and the scoring of whole splits."""

import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.counting import score
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import Bytes, ByteTokenizer
from lm_jax.evals.perplexity import from_log_probs, perplexity
from lm_jax.models.ngram import FIXED_DISCOUNTS, NGramConfig

EOS = 0


def slow_model(documents, order, vocab_size):
    """p(word, history) as a Fraction, from Chen and Goodman's formulas; documents are lists of ids without the end."""
    raw, counts = ([Counter() for _ in range(order + 1)] for _ in range(2))
    for document in documents:
        padded = [EOS] * (order - 1) + [*document, EOS]
        for end in range(order - 1, len(padded)):
            for n in range(1, order + 1):
                raw[n][tuple(padded[end - n + 1 : end + 1])] += 1
    counts[order] = raw[order]
    for n in range(order - 1, 0, -1):
        for longer in raw[n + 1]:
            counts[n][longer[1:]] += 1
        if n > 1:
            counts[n] |= {gram: number for gram, number in raw[n].items() if gram[0] == EOS}
    discounts = [None] * (order + 1)
    followers = [defaultdict(Counter) for _ in range(order + 1)]
    for n in range(1, order + 1):
        n1, n2, n3, n4 = (sum(c == i for c in counts[n].values()) for i in (1, 2, 3, 4))
        discounts[n] = tuple(map(Fraction, FIXED_DISCOUNTS))
        if n1 * n2 * n3 * n4:
            y = Fraction(n1, n1 + 2 * n2)
            estimate = (1 - 2 * y * Fraction(n2, n1), 2 - 3 * y * Fraction(n3, n2), 3 - 4 * y * Fraction(n4, n3))
            if all(0 < d <= i for i, d in enumerate(estimate, start=1)):
                discounts[n] = estimate
        for gram, c in counts[n].items():
            followers[n][gram[:-1]][gram[-1]] = c

    def p(word, history, n=order):
        if n == 0:
            return Fraction(1, vocab_size)
        history = ([EOS] * n + list(history))[len(history) + 1 :]
        seen = followers[n][tuple(history)]
        lower = p(word, history[1:], n - 1)
        if not seen:
            return lower
        total, taken = sum(seen.values()), {w: discounts[n][min(c, 3) - 1] for w, c in seen.items()}
        kept = seen[word] - taken[word] if word in seen else 0
        return Fraction(kept, total) + sum(taken.values()) / total * lower

    return p, discounts[1:]


def zipf(rng, vocab_size, size):
    ranks = np.arange(1, vocab_size)
    return rng.choice(ranks, size, p=(1 / ranks) / (1 / ranks).sum()).tolist()


def stream_of(documents):
    return np.array([token for document in documents for token in [*document, EOS]])


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [zipf(rng, 30, int(size)) for size in rng.integers(1, 120, 20)]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_equals_the_formulas_in_fractions_and_sums_to_one(documents, order):
    vocab_size = 32  # ids 30 and 31 never occur
    model = NGramConfig(order=order).count(stream_of(documents), vocab_size, EOS)
    p, discounts = slow_model(documents, order, vocab_size)
    for level, expected in zip(model.levels, discounts, strict=True):
        assert level.discounts.values == pytest.approx(tuple(map(float, expected)), rel=1e-12)
    assert any(level.discounts.estimated for level in model.levels) == (order > 1)
    rng = np.random.default_rng(1)
    histories = [[], documents[0][:1], documents[1][:2], documents[2][:7], zipf(rng, 32, 5), [31, 31, 31, 1], [1, 2, 31]]
    for history in histories:
        tokens = np.tile([EOS, *history], (vocab_size, 1))
        targets = np.zeros_like(tokens)
        targets[:, -1] = np.arange(vocab_size)
        log_p = model.log_probs({"tokens": tokens, "targets": targets})[:, -1]
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(np.exp(log_p), [float(p(w, history)) for w in range(vocab_size)], rtol=1e-10)


def test_a_corpus_worked_out_by_hand():
    # One document, "a b a b", at order 2. Bigrams: ^a 1, ab 2, ba 1, b$ 1: there are no counts of 3, so discounts are the fixed.
    a, b, V = 1, 2, 3
    model = NGramConfig(order=2).count(np.array([a, b, a, b, EOS]), V, EOS)
    # Continuation counts: a follows ^ and b: 2; b follows a: 1; $ follows b: 1. Of 4, discounts 1, 0.5 and 0.5 leave 2 for 1/V.
    once, twice = (1 - 0.5) / 4 + 2 / 4 / V, (2 - 1) / 4 + 2 / 4 / V
    expected = {
        (EOS, a): 0.5 + 0.5 * twice,
        (a, b): (2 - 1) / 2 + 1 / 2 * once,
        (b, a): 0.5 / 2 + 1 / 2 * twice,
        (b, EOS): 0.5 / 2 + 1 / 2 * once,
        (a, a): 1 / 2 * twice,
        (EOS, b): 0.5 * once,
    }
    for (before, word), p in expected.items():
        found = model.log_probs({"tokens": np.array([[before]]), "targets": np.array([[word]])})
        assert found.item() == pytest.approx(math.log(p), rel=1e-12), (before, word)
    assert (
        model.describe().splitlines()[1]
        == "order 2: 4 n-grams, discounts 0.500, 1.000, 1.500 (fixed: its counts of counts give none)"
    )


def test_order_1_codes_at_the_entropy_of_the_words(documents):
    # Every word of the vocabulary occurs three times or more: what the equal discounts take, the uniform distribution gives back.
    stream, V = stream_of(documents), 30
    frequencies = np.bincount(stream, minlength=V) / len(stream)
    assert frequencies.min() * len(stream) >= 3
    model = NGramConfig(order=1).count(stream, V, EOS)
    batch = {"tokens": np.roll(stream, 1)[None], "targets": stream[None], "weights": np.ones((1, len(stream)), np.float32)}
    scores = dict(perplexity(from_log_probs(model.log_probs), [batch], num_bytes=len(stream)))
    assert scores["bits_per_byte"] == pytest.approx(-sum(frequencies * np.log2(frequencies)), rel=1e-12)
    assert scores["num_tokens"] == len(stream)


def test_a_split_is_scored_once_with_the_context_of_its_own_document(documents, monkeypatch):
    from lm_jax import counting
    from tests.data.token_stores import TokenStore

    monkeypatch.setattr(counting, "ROW", 8)
    monkeypatch.setattr(counting, "ROWS", 3)
    order, V = 4, 257
    train, test = documents[:15], documents[15:]

    def store(documents):
        stream = stream_of(documents)
        ends = np.flatnonzero(stream == EOS) + 1
        return TokenStore(stream.astype(np.uint16), np.array([0, *ends]), EOS, 77, ("x",) * len(ends), "")

    class Ids(ByteTokenizer):
        eos = EOS

    config = TextData(corpora=(), tokenizer=Bytes())
    data = PreparedText(config, Ids(), {"one": {"train": store(train), "test": store(test)}}, {})
    model = counting.count(data, NGramConfig(order=order))
    scores = dict(score(model, data, "test"))
    p, _ = slow_model(train, order, V)
    nats = -sum(math.log(p(w, document[:i])) for document in test for i, w in enumerate([*document, EOS]))
    assert scores["num_tokens"] == sum(len(document) + 1 for document in test)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 77, rel=1e-10)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="order=0 must be above 0"):
        validate_tree(NGramConfig(order=0))
    with pytest.raises(DataError, match="no token"):
        NGramConfig().count(np.array([], int), 3, EOS)
    with pytest.raises(DataError, match="from 1 to 7 are not all in the vocabulary of 7"):
        NGramConfig().count(np.array([1, 7]), 7, EOS)
