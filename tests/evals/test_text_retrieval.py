"""Retrieval of texts: over the whole split, in its order, on any mesh, against vectors of one pair at a time."""

import jax
import numpy as np
import pytest

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.pairs import Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.text_pairs import TextPairs
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.base import Shown
from lm_jax.evals.text_retrieval import TextRetrievalConfig
from tests.models.sentences_for_tests import sentence_encoder


def test_recall_is_over_the_whole_split_on_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    draw = lambda: "".join(rng.choice(list("abcdefgh"), rng.integers(1, 12)))  # noqa: E731
    sides = {"l": [draw() for _ in range(11)], "r": [draw() for _ in range(11)]}
    for name, lines in sides.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    left, right = (TextFiles(paths=(str(tmp_path / f"{name}.txt"),), document="line") for name in "lr")
    pairs = Pairs(source=left, target=right)
    data = TextPairs(train=pairs, validation=pairs, tokenizer=Characters(), buckets=(6, 14), length=14, batch_size=4).prepare()
    graph, params = split(sentence_encoder().build(jax.random.key(0)))
    config = TextRetrievalConfig(batch_size=4, at=(1, 3), show=2)
    found = list(config.scores(graph, params, data, lambda batch: batch, slice(None)))
    scores = dict(item for item in found if not isinstance(item, Shown))
    model, vectors = sentence_encoder().build(jax.random.key(0)), {}
    for name, lines in sides.items():
        ids = [np.append(data.tokenizer.eos, data.tokenizer.encode(line)).astype(np.int32) for line in lines]
        vectors[name] = np.stack([np.asarray(model.vectors(tokens[None])[0][0]) for tokens in ids])
    near = vectors["l"] @ vectors["r"].T
    for k in (1, 3):
        top = np.argsort(-near, axis=1)[:, :k]
        assert scores[f"source_to_target_recall@{k}"] == pytest.approx(np.mean([i in row for i, row in enumerate(top)]))
        top = np.argsort(-near.T, axis=1)[:, :k]
        assert scores[f"target_to_source_recall@{k}"] == pytest.approx(np.mean([i in row for i, row in enumerate(top)]))
        assert scores[f"chance@{k}"] == pytest.approx(k / 11)
    assert 0 < scores["target_to_source_recall@3"] < 1
    first, last = (item for item in found if isinstance(item, Shown))
    assert (first.prompt, last.fields["reference"]) == (f"{sides['l'][0]}\n", sides["r"][-1])
    assert first.text.split(" / ") == [sides["r"][i] for i in np.argsort(-near[0])[:3]]
    mesh, layout = MeshShape(dp=2, fsdp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(sentence_encoder().build)(jax.random.key(0)))
        put = lambda batch: shard_batch(batch, mesh, layout)  # noqa: E731
        again = dict(item for item in config.scores(graph, params, data, put, slice(None)) if not isinstance(item, Shown))
    assert again == pytest.approx(scores)
