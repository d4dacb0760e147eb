"""Retrieval and captions: ranks by hand, chance by counting, and the evals of small models on any mesh."""

import base64
import io
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.image_batches import Captioned
from lm_jax.data.image_table import ImageTable
from lm_jax.data.images import ImageTextPairs, PreparedImages
from lm_jax.data.pixels import PixelsConfig
from lm_jax.data.tokenizers import Words
from lm_jax.evals.base import Shown
from lm_jax.evals.captions import CaptionsConfig
from lm_jax.evals.retrieval import RetrievalConfig, image_ranks, text_chance, text_ranks
from lm_jax.nn.head import HeadConfig
from tests.models.images_for_tests import coca, two_tower

WORDS = [f"w{i}" for i in range(30)]


def test_ranks_are_those_of_a_sorted_list():
    rng = np.random.default_rng(0)
    images, texts = rng.integers(-2, 3, (7, 3)).astype(np.float32), rng.integers(-2, 3, (12, 3)).astype(np.float32)  # with ties
    of_text = np.sort(np.concatenate([np.arange(7), rng.integers(0, 7, 5)]))
    similar = images @ texts.T
    for i, rank in enumerate(text_ranks(images, texts, of_text)):
        order = sorted(range(12), key=lambda t: (-similar[i, t], of_text[t] == i))  # of equal ones the right one comes last
        assert rank == next(place for place, t in enumerate(order) if of_text[t] == i)
    for t, rank in enumerate(image_ranks(images, texts, of_text)):
        order = sorted(range(7), key=lambda i: (-similar[i, t], i == of_text[t]))
        assert rank == order.index(of_text[t])


def test_vectors_that_are_no_numbers_are_never_found():
    nothing, of_text = np.full((5, 3), np.nan, np.float32), np.arange(5)
    assert text_ranks(nothing, nothing, of_text).tolist() == image_ranks(nothing, nothing, of_text).tolist() == [4] * 5


def test_chance_is_the_share_of_orders():
    of_text, k = [0, 0, 1, 2], 2
    orders = list(itertools.permutations(range(4)))
    found = [sum(any(of_text[t] == image for t in order[:k]) for order in orders) / len(orders) for image in range(3)]
    assert text_chance(np.bincount(of_text), k) == pytest.approx(np.mean(found)) and text_chance(np.bincount(of_text), 4) == 1


def prepared(config):
    """7 images of noise with 1 to 3 captions, as a split."""
    rng = np.random.default_rng(0)
    data = config(
        train=ImageTable(path="none"), tokenizer=Words(), pixels=PixelsConfig(height=8, width=12), length=16, batch_size=4
    )
    tokenizer = Words(min_count=1).train(WORDS)
    pictures = []
    for number in range(7):
        captions = tuple(" ".join(rng.choice(WORDS, rng.choice([3, 6]))) for _ in range(1 + number % 3))
        pixels = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
        rows = tuple(data.row(tokenizer.encode(caption), tokenizer) for caption in captions)
        pictures.append(Captioned(f"{number}.png", pixels, captions, rows))
    return PreparedImages(config=data, tokenizer=tokenizer, examples={"validation": pictures})


@pytest.mark.slow
def test_retrieval_is_over_the_whole_split_on_any_mesh():
    data, config, model = prepared(ImageTextPairs), RetrievalConfig(batch_size=4, show=2, at=(1, 3)), two_tower()
    graph, params = split(model.build(jax.random.key(0)))
    found = list(config.scores(graph, params, data, lambda batch: batch, slice(None)))
    scores = dict(item for item in found if not isinstance(item, Shown))
    tower, vectors = model.build(jax.random.key(0)), {"images": [], "texts": []}
    for picture in data.examples["validation"]:  # one at a time, unpadded
        for row in picture.rows:
            pair = tower({"images": data.config.pixels.floats(picture.pixels[None]), "memory_tokens": row["memory_tokens"][None]})
            vectors["texts"].append((picture.name, np.asarray(pair.right[0])))
        vectors["images"].append((picture.name, np.asarray(pair.left[0])))

    def recall(queries, answers, k):
        near = [sorted(answers, key=lambda answer: -float(answer[1] @ query[1]))[:k] for query in vectors[queries]]
        return np.mean([any(n[0] == q[0] for n in top) for q, top in zip(vectors[queries], near, strict=True)])

    for k in (1, 3):
        assert scores[f"image_to_text_recall@{k}"] == pytest.approx(recall("images", vectors["texts"], k))
        assert scores[f"text_to_image_recall@{k}"] == pytest.approx(recall("texts", vectors["images"], k))
    assert 0 < scores["text_to_image_recall@3"] < 1
    assert scores["text_to_image_chance@3"] == pytest.approx(3 / 7)
    first, last = (item for item in found if isinstance(item, Shown))
    assert (first.prompt, last.prompt) == ("0.png", "6.png") and len(first.text.split(" / ")) == 5
    mesh, layout = MeshShape(dp=2, fsdp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(model.build)(jax.random.key(0)))
        again = list(config.scores(graph, params, data, lambda batch: shard_batch(batch, mesh, layout), slice(None)))
    assert dict(item for item in again if not isinstance(item, Shown)) == scores


@pytest.mark.slow
def test_captions_are_written_and_compared():
    data, config = prepared(ImageTextPairs), CaptionsConfig(batch_size=4, show=2, beam=2, max_tokens=6)
    model = coca(head=HeadConfig(tied=False))  # a tied head would repeat the end-of-document token that texts begin with
    graph, params = split(model.build(jax.random.key(0)))
    found = list(config.scores(graph, params, data, lambda batch: batch, slice(None)))
    scores = dict(item for item in found if not isinstance(item, Shown))
    assert scores["num_images"] == 7 and 0 <= scores["bleu"] < 100
    shown = [item for item in found if isinstance(item, Shown)]
    pictures = data.examples["validation"]
    assert shown[1].fields["reference"] == " / ".join(pictures[6].captions) and set(shown[1].text.split()) <= set(WORDS)
    image = Image.open(io.BytesIO(base64.b64decode(shown[1].fields["image"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(image), pictures[6].pixels)
    assert shown[0].text != shown[1].text  # it looks at the image
    mesh, layout = MeshShape(dp=2, fsdp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(model.build)(jax.random.key(0)))
        again = list(config.scores(graph, params, data, lambda batch: shard_batch(batch, mesh, layout), slice(None)))
    assert [item.text for item in again if isinstance(item, Shown)] == [item.text for item in shown]


def test_bad_values_are_named():
    for config, message in (
        (RetrievalConfig(at=()), r"at=\(\)"),
        (CaptionsConfig(beam=0), "beam=0"),
        (CaptionsConfig(limit=0), "limit=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config)
