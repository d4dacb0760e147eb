"""Classes by their descriptions: which images are of which, against one image and one text at a time, on any mesh."""

import itertools

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.images import ImageTextPairs
from lm_jax.evals.base import Shown
from lm_jax.evals.zero_shot import ZeroShotConfig, zero_shot
from tests.evals.test_retrieval import prepared
from tests.models.images_for_tests import two_tower


def test_the_class_is_that_of_the_nearest_prompts():
    prompts = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    images = np.array([[1.0, 0.1], [0.0, 1.0], [0.8, 0.6]])
    assert zero_shot(np.array([[np.nan, 1.0], *images[1:]]), prompts, [0, 1, 1]).tolist() == [-1, 1, 1]
    assert zero_shot(images, prompts, [0, 1, 1]).tolist() == [0, 1, 1]  # by the mean alone the last were of class 0
    with pytest.raises(ConfigError, match=r"classes \[0, 2\]"):
        zero_shot(images, prompts, [0, 2, 2])


def _of_one(words, pair):
    """The least of how many images have the one of two words, and not the other; 0 where none has both."""
    return any({*pair} <= w for w in words) * min(sum(a in w and b not in w for w in words) for a, b in (pair, pair[::-1]))


def test_images_of_one_class_are_scored_on_any_mesh():
    data = prepared(ImageTextPairs)
    words = [set(" ".join(picture.captions).split()) for picture in data.examples["validation"]]
    # Two words that many images have, but not the same.
    names = max(itertools.combinations(sorted(set.union(*words)), 2), key=lambda pair: _of_one(words, pair))
    config = ZeroShotConfig(classes=names, templates=("w1 {}", "{} w2 w3"), batch_size=4, show=1)
    config.check(two_tower(), data)
    model = two_tower()
    graph, params = split(model.build(jax.random.key(0)))
    found = list(config.scores(graph, params, data, lambda batch: batch, slice(None)))
    scores = dict(item for item in found if not isinstance(item, Shown))

    tower, pixels = model.build(jax.random.key(0)), data.config.pixels
    pair = lambda picture, text: tower(  # noqa: E731
        {
            "images": pixels.floats(picture.pixels[None]),
            "memory_tokens": data.config.row(data.tokenizer.encode(text), data.tokenizer)["memory_tokens"][None],
        }
    )
    pictures = data.examples["validation"]
    classes = [sum(np.asarray(pair(pictures[0], t.format(name)).right[0]) for t in config.templates) for name in names]
    right, labels = [], []
    for picture, seen in zip(pictures, words, strict=True):
        if len(seen & set(names)) == 1:
            labels.append(names.index((seen & set(names)).pop()))
            near = [float(np.asarray(pair(picture, "w1").left[0]) @ (v / np.linalg.norm(v))) for v in classes]
            right.append(int(np.argmax(near)) == labels[-1])
    assert 3 <= len(labels) < 7 and len(set(labels)) == 2
    largest = max(labels.count(0), labels.count(1)) / len(labels)
    assert scores == pytest.approx({"accuracy": np.mean(right), "largest_class": largest, "num_images": len(labels)})

    mesh, layout = MeshShape(dp=2, fsdp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(model.build)(jax.random.key(0)))
        again = list(config.scores(graph, params, data, lambda batch: shard_batch(batch, mesh, layout), slice(None)))
    assert dict(item for item in again if not isinstance(item, Shown)) == scores


def test_bad_values_are_named():
    for config, message in (
        (ZeroShotConfig(classes=("a",)), r"classes=\('a',\) must be two or more"),
        (ZeroShotConfig(classes=("a", "b"), templates=("photo",)), "must each have {}"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config)
    with pytest.raises(ConfigError, match="no image of 'validation' is of zebra"):
        ZeroShotConfig(classes=("w1", "zebra")).check(two_tower(), prepared(ImageTextPairs))
