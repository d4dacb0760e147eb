"""Text scored by word vectors: against loops in float64, and probabilities that sum to 1."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import ListedSplit
from lm_jax.data.store import Corpus
from lm_jax.data.tokenizers import Words
from lm_jax.data.word_windows import WordWindows
from lm_jax.evals.word_perplexity import WordPerplexityConfig
from lm_jax.models.glove import GloVeConfig
from lm_jax.models.word_vectors import WordVectorsConfig

TRAIN, HELD_OUT = "the sea , the ship . the king", ("the king , new sea\nship the sea .", "king the ship")
MODELS = {"skip-gram": WordVectorsConfig(vocab_size=8, width=4), "glove": GloVeConfig(vocab_size=8, width=4)}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "a.txt").write_text(TRAIN)
    for name, text in zip("bc", HELD_OUT, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "splits.json").write_text('{"train": ["a.txt"], "validation": ["b.txt", "c.txt"]}')
    source = TextFiles(paths=(f"{tmp_path}/*.txt",), document="file")
    corpus = Corpus(name="x", source=source, split=ListedSplit(path=f"{tmp_path}/splits.json"))
    words = WordWindows(corpora=(corpus,), tokenizer=Words(min_count=1), cache_dir=str(tmp_path / "c"), num_workers=1)
    return words.prepare()


def tables(name):
    """Random, also where a model begins at 0."""
    graph, params = split(MODELS[name].build(jax.random.key(0)))
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def by_loops(data, params, glove, context):
    """The sum of -log p in nats over the tokens of the held-out text, and their number."""
    encode = lambda text: [*data.tokenizer.encode(text).tolist(), data.tokenizer.eos]  # noqa: E731
    train, texts = encode(TRAIN), [encode(text) for text in HELD_OUT]
    words = [i for i in range(data.vocab_size) if any(map(str.isalpha, data.tokenizer.decode([i]))) and i > 1]
    occurs = [1 + train.count(i) for i in range(data.vocab_size)]
    tables = [np.asarray(params[name]["table"], np.float64) for name in ("embedding", "contexts")]
    tellers, told = tables[::-1] if glove else tables
    bias = np.asarray(params["bias"], np.float64)[:, 0] if glove else np.log(occurs)
    total, in_words = 0.0, sum(occurs[i] for i in words) / sum(occurs)
    for text, at, token in ((whole, at, token) for whole in texts for at, token in enumerate(whole)):
        if token not in words:
            total -= math.log(occurs[token] / sum(occurs))
            continue
        before = [i for i in text[max(at - context, 0) : at] if i in words]
        mean = np.mean([tellers[i] for i in before], axis=0) if before else np.zeros(4)
        scores = {i: math.exp(told[i] @ mean + bias[i]) for i in words}
        total -= math.log(in_words * scores[token] / sum(scores.values()))
    return total, sum(map(len, texts))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [1, 3])
def test_every_token_is_scored_as_defined(data, name, context):
    graph, params = tables(name)
    config = WordPerplexityConfig(context=context, batch_size=2, length=16)
    config.check(MODELS[name], data)
    scores = dict(config.scores(graph, params, data, None, slice(None)))
    total, number = by_loops(data, params, name == "glove", context)
    assert scores["num_tokens"] == number
    assert scores["loss"] == pytest.approx(total / number, rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(map(len, HELD_OUT)), rel=1e-5)


def test_a_mesh_scores_as_one_device(data):
    graph, params = tables("glove")
    config = WordPerplexityConfig(batch_size=2, length=16)
    want = dict(config.scores(graph, params, data, None, slice(None)))
    with use_mesh(MeshShape(dp=1, fsdp=2, tp=4).build(), Layout()):
        like = split(jax.jit(dataclasses.replace(MODELS["glove"]).build)(jax.random.key(0)))[1]
        placed = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), params, like)
        assert dict(config.scores(graph, placed, data, None, slice(None))) == pytest.approx(want)
