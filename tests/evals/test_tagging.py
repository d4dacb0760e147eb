"""Span scores against seqeval, the best valid sequence against all sequences, and scores of a model on any mesh."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, local_rows, shard_batch, use_mesh
from lm_jax.data.tagged import TaggedLines, TaggedText
from lm_jax.data.tokenizers import Bytes
from lm_jax.evals.base import Shown
from lm_jax.evals.tagging import Span, TaggingConfig, best_valid, span_scores, spans
from tests.models.test_tagger import tagger

CLASSES = ("O", "B-A", "I-A", "B-B", "I-B")
PAIRS = st.lists(
    st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)),
    min_size=1,
    max_size=6,
)


def flat(sentences):
    return np.concatenate(sentences), np.concatenate([np.arange(len(s)) == 0 for s in sentences])


@settings(max_examples=150, deadline=None)
@given(PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_seqeval(pairs):
    seqeval = pytest.importorskip("seqeval.metrics")
    sides = [[list(s) for s in side] for side in zip(*pairs, strict=True)]
    names = [[[CLASSES[i] for i in s] for s in side] for side in sides]
    ours = dict(span_scores(*(spans(*flat(side), CLASSES) for side in sides)))
    theirs = seqeval.classification_report(*names, output_dict=True, zero_division=0)
    for kind in ("A", "B"):
        if kind in theirs:
            for name, key in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
                assert ours[f"{name}/{kind}"] == pytest.approx(theirs[kind][key])
    found = any(t != 0 for side in sides for s in side for t in s)
    assert ours["f1"] == pytest.approx(seqeval.f1_score(*names, zero_division=0) if found else 0.0)
    assert ours["precision"] == pytest.approx(seqeval.precision_score(*names, zero_division=0) if found else 0.0)
    assert ours["recall"] == pytest.approx(seqeval.recall_score(*names, zero_division=0) if found else 0.0)


def test_spans_by_hand():
    tags, begins = flat([[1, 2, 0, 3, 3, 4], [2, 4, 4], [0], [1]])
    assert spans(tags, begins, CLASSES) == [
        Span(0, 1, "A"),
        Span(3, 3, "B"),
        Span(4, 5, "B"),
        Span(6, 6, "A"),
        Span(7, 8, "B"),
        Span(10, 10, "A"),
    ]


def test_the_best_valid_sequence_is_the_best_of_all():
    rng = np.random.default_rng(0)

    def valid(tags):
        before = ("O", *(CLASSES[t] for t in tags))
        return all(not CLASSES[t].startswith("I-") or b[1:] == CLASSES[t][1:] for b, t in zip(before, tags, strict=False))

    for length in (1, 2, 4):
        sequences = [tags for tags in itertools.product(range(5), repeat=length) if valid(tags)]
        for _ in range(10):
            scores = rng.normal(size=(length, 5))
            best = max(sequences, key=lambda tags: sum(scores[i, t] for i, t in enumerate(tags)))
            assert tuple(best_valid(scores, CLASSES)) == best


def test_a_model_is_scored_by_words_on_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    text = ""
    for _ in range(30):
        for _ in range(rng.integers(1, 9)):
            text += f"{''.join(rng.choice(list('abAB'), rng.integers(1, 4)))}\t{rng.choice(['O', 'B-A', 'B-B'])}\n"
        text += "\n"
    (tmp_path / "train.txt").write_text(text)
    data = TaggedText(train=TaggedLines(paths=(str(tmp_path / "train.txt"),)), tokenizer=Bytes(), length=16, batch_size=4).prepare()
    assert data.record["sentences cut into several"]
    model = tagger().build(jax.random.key(0))
    graph, params = split(model)
    config = TaggingConfig(split="train", batch_size=4, shown=2)
    results = list(config.scores(graph, params, data, lambda batch: batch, slice(None)))
    scores, shown = dict(r for r in results if not isinstance(r, Shown)), [r for r in results if isinstance(r, Shown)]
    words = [word for sentence in data.sentences["train"] for word in sentence.words]
    tags = [data.classes.index(tag) for sentence in data.sentences["train"] for tag in sentence.tags]
    assert [r.prompt for r in shown] == [" ".join(s.words) for s in data.sentences["train"][:2]]
    found, nats = [], []
    score = jax.jit(lambda batch: model.logits(model(batch).hidden))
    for example in data.examples["train"]:  # each alone in a row
        heads, pad = example.arrays["weights"] > 0, 16 - example.length()
        row = {n: np.pad(example.arrays[n], [(0, pad), (0, 0)][: example.arrays[n].ndim])[None] for n in ("tokens", "features")}
        row |= {"segments": (np.arange(16) < 16 - pad)[None].astype(np.int32), "positions": np.arange(16, dtype=np.int32)[None]}
        logits = np.asarray(score(row)[0, : 16 - pad], np.float64)[heads, :3]
        found += list(np.argmax(logits, axis=-1))
        nats += list(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), example.arrays["targets"][heads]])
    assert len(found) == len(words) == len(tags)
    assert scores["accuracy"] == pytest.approx(np.mean(np.array(found) == tags))
    assert scores["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    begins = np.concatenate([np.arange(len(s.words)) == 0 for s in data.sentences["train"]])
    expected = dict(span_scores(*(spans(np.array(t), begins, data.classes) for t in (tags, found))))
    assert {name: scores[name] for name in expected} == expected and scores["num_spans"] == sum(t != 0 for t in tags)
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(tagger().build)(jax.random.key(0)))
        put = lambda batch: shard_batch(batch, mesh, layout, 4)  # noqa: E731
        again = dict(r for r in config.scores(graph, params, data, put, local_rows(4, mesh, layout)) if not isinstance(r, Shown))
    assert again == pytest.approx(scores, rel=1e-5)


def test_bad_values_are_named():
    for more, message in (({"decoding": "beam"}, "decoding='beam'"), ({"shown": -1}, "shown=-1")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(TaggingConfig(**more))
