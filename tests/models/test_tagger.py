"""The tagger: what features add to a token, sentences that share a row, and any mesh against one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.models.tagger import TaggerConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests.models_for_tests import LOUD
from tests.train.test_parallel import packed_batch

KEY = jax.random.key(0)


def tagger(**more):
    layer = BlockConfig(mixer=RecurrentConfig(direction="both", size=16), feed_forward=None)
    fields = {"vocab_size": 258, "classes": 4, "width": 32, "stack": StackConfig(pattern=(layer,), repeats=1)}
    fields |= {
        "init": dataclasses.replace(LOUD),
        "features": FeaturesConfig(buckets=24, initial_std=1.0),
        "head": TaggerConfig().head,
    }
    return TaggerConfig(**(fields | more))


def tagged_batch():
    data = packed_batch()
    features = np.random.default_rng(1).integers(0, 2**31, (*data["tokens"].shape, 3)).astype(np.int32)
    return data | {"targets": data["targets"] % 4, "features": features}


def test_features_add_the_rows_of_their_numbers_modulo_the_buckets():
    model, data = tagger().build(KEY), tagged_batch()
    table = np.asarray(model.features.table[...], np.float64)
    expected = np.zeros((*data["tokens"].shape, 32))
    for place in np.ndindex(*data["features"].shape):
        expected[place[:2]] += table[data["features"][place] % 24]
    np.testing.assert_allclose(model.features(data["features"], jnp.float32, None), expected, atol=1e-6)
    other = data | {"features": data["features"] + 1}
    score = jax.jit(lambda model, batch: model(batch).hidden)
    assert np.abs(score(model, data) - score(model, other)).max() > 0.1
    plain = tagger(features=None).build(KEY)
    np.testing.assert_array_equal(score(plain, data), score(plain, other))
    assert not np.any(FeaturesConfig(buckets=24).build(nnx.Rngs(params=KEY), 32).table)  # what was never met adds nothing
    assert tagger().inputs == {"tokens", "features"} and tagger(features=None).inputs == {"tokens"}


def test_dropout_takes_whole_features():
    rate, features = 0.25, np.arange(8 * 32, dtype=np.int32).reshape(8, 32, 1)
    layer = FeaturesConfig(buckets=256, dropout=rate, initial_std=1.0).build(nnx.Rngs(params=KEY), 16)
    whole, some = (np.asarray(layer(features, jnp.float32, key)) for key in (None, KEY))
    lost = (some == 0).all(-1)
    np.testing.assert_allclose(some[~lost], whole[~lost] / (1 - rate), rtol=1e-6)
    assert abs(lost.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / lost.size)


def test_a_mesh_of_all_kinds_equals_one_device():
    config = tagger(
        features=FeaturesConfig(buckets=24, dropout=0.5, initial_std=1.0), dropout=0.2
    )  # the same is dropped everywhere
    graph, params = split(config.build(KEY))
    step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=LMConfig().build()))
    grads, terms = step(params, tagged_batch())
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, sharded = split(jax.jit(config.build)(KEY))
        step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=LMConfig().build()))
        mesh_grads, mesh_terms = step(sharded, shard_batch(tagged_batch(), mesh, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), mesh_grads, grads)
    np.testing.assert_allclose(mesh_terms["accuracy"].value, terms["accuracy"].value, rtol=1e-6)


def test_bad_values_are_named():
    for more, message in (
        ({"pool": "mean"}, "pool='mean': the tokens of a text have tags of their own"),
        ({"features": FeaturesConfig(buckets=0)}, "buckets=0"),
        ({"features": FeaturesConfig(dropout=1.0)}, "dropout=1.0"),
        ({"features": FeaturesConfig(initial_std=-1.0)}, "initial_std=-1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(tagger(**more))
