"""The classifier: pooling against loops, texts that share a row against the same texts alone, and any mesh against one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.evals.classification import ClassificationConfig, confusion_matrix, most_confused
from lm_jax.models.classifier import ClassifierConfig, pooled
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests.models_for_tests import LOUD, VOCAB
from tests.train.test_parallel import packed_batch

KEY = jax.random.key(0)


def classifier(pool="mean", **more):
    mixer = AttentionConfig(num_heads=4, rotary=RotaryConfig(), causal=False)
    block = BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=48))
    stack = StackConfig(pattern=(block,), repeats=2)
    fields = {"vocab_size": VOCAB, "classes": 6, "width": 32, "stack": stack, "init": dataclasses.replace(LOUD), "pool": pool}
    return ClassifierConfig(**(fields | more))


def labelled_batch():
    data = packed_batch()
    return data | {"targets": data["targets"] % 6}


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooling_is_over_the_text_only(pool):
    rng = np.random.default_rng(0)
    x, segments = rng.normal(size=(3, 10, 4)).astype(np.float32), np.array([[1] * 4 + [2] * 3 + [0] * 3, [1] * 10, [1, 2] * 5])
    got = np.asarray(pooled(x, segments, pool))
    for row in range(3):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            expected = getattr(x[row, here].astype(np.float64), pool)(axis=0)
            np.testing.assert_allclose(got[row, here], np.broadcast_to(expected, (here.sum(), 4)), atol=1e-6)


def test_a_mean_of_many_tokens_is_right_in_bfloat16():
    x = np.random.default_rng(0).normal(1.0, 1.0, size=(1, 1024, 4))
    got = pooled(jnp.asarray(x, jnp.bfloat16), np.ones((1, 1024), np.int32), "mean")
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got[0, 0], np.float64), x[0].mean(0), rtol=0.01)


@pytest.mark.parametrize("pool", ["none", "mean", "max"])
def test_texts_that_share_a_row_do_not_see_each_other(pool):
    model, data = classifier(pool).build(KEY), labelled_batch()
    forward = jax.jit(lambda batch: model.logits(model(batch).hidden))
    names = ("tokens", "segments", "positions")
    together = np.asarray(forward({name: data[name] for name in names}))
    assert together.shape == (8, 32, 6)
    texts = [(row, segment) for row in range(3) for segment in (1, 2, 3) if (data["segments"][row] == segment).any()][:8]
    alone = {name: np.zeros((8, 32), np.int32) for name in names}  # each at the start of a row of its own
    for at, (row, segment) in enumerate(texts):
        here = data["segments"][row] == segment
        for name in names:
            alone[name][at, : here.sum()] = data[name][row, here]
        alone["segments"][at, : here.sum()] = 1
    scores = np.asarray(forward(alone))
    for at, (row, segment) in enumerate(texts):
        here = data["segments"][row] == segment
        np.testing.assert_allclose(together[row, here], scores[at, : here.sum()], atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_mesh_of_all_kinds_equals_one_device(pool):
    graph, params = split(classifier(pool).build(KEY))
    step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=LMConfig().build()))
    grads, terms = step(params, labelled_batch())
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, sharded = split(jax.jit(classifier(pool).build)(KEY))
        step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=LMConfig().build()))
        mesh_grads, mesh_terms = step(sharded, shard_batch(labelled_batch(), mesh, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), mesh_grads, grads)
    np.testing.assert_allclose(mesh_terms["accuracy"].value, terms["accuracy"].value, rtol=1e-6)


class Split:
    """One batch as prepared data."""

    num_outputs, classes = 6, tuple("abcdef")

    def eval_batches(self, split, **sizes):
        return [labelled_batch()]


def confusion(true, found, classes):
    """The share of each true class that was taken for each class."""
    return [[np.mean(found[true == a] == b) if (true == a).any() else 0.0 for b in range(classes)] for a in range(classes)]


def test_classes_that_only_a_padded_head_has_are_one_more_column():
    counts = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, 0.0, 2.0, 1.0]])
    table = confusion_matrix(counts, ("no", "yes"))
    assert table["columns"] == ["taken for no", "taken for yes", "none of them"]
    assert table["values"] == [[0.75, 0.25, 0.0], [0.25, 0.0, 0.75]]
    assert most_confused(table, 2) == "yes none of them (75.0%), no taken for yes (25.0%)"
    assert most_confused(confusion_matrix(np.eye(2), ("no", "yes"))) == "nothing"


def test_scores_are_those_of_the_definition_on_any_mesh():
    model = classifier().build(KEY)
    data, (graph, params) = labelled_batch(), split(model)
    config = ClassificationConfig()
    *scores, shown = config.scores(graph, params, Split(), lambda batch: batch, slice(None))
    scores = dict(scores)
    logits = np.asarray(model.logits(model(data).hidden), np.float64)
    kept = data["weights"] > 0
    true, found = data["targets"][kept], logits[kept].argmax(-1)
    nats = np.log(np.exp(logits[kept]).sum(-1)) - logits[kept, true]
    assert scores["accuracy"] == pytest.approx((true == found).mean()) and scores["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    f1 = []
    for c, name in enumerate(Split.classes):
        precision = ((found == c) & (true == c)).sum() / max((found == c).sum(), 1)
        recall = ((found == c) & (true == c)).sum() / max((true == c).sum(), 1)
        f1.append(2 * precision * recall / max(precision + recall, 1e-9))
        assert scores[f"f1/{name}"] == pytest.approx(f1[-1])
    assert scores["macro_f1"] == pytest.approx(np.mean(f1)) and scores["num_examples"] == kept.sum()
    table = shown.fields["table"]
    assert table["rows"] == list(Split.classes) and table["columns"] == [f"taken for {name}" for name in Split.classes]
    shares = confusion(true, found, len(Split.classes))
    np.testing.assert_allclose(table["values"], shares, atol=1e-4)
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(classifier().build)(KEY))
        *again, _ = config.scores(graph, params, Split(), lambda batch: shard_batch(batch, mesh, layout), slice(None))
    assert dict(again) == pytest.approx(scores, rel=1e-5)


def test_bad_values_are_named():
    for more, message in (({"pool": "last"}, "pool='last'"), ({"classes": 1}, "classes=1"), ({"dropout": 1.0}, "dropout=1.0")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(classifier(**more))
