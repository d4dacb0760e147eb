"""SpecAugment: what is hidden, how much of it, and that it follows from the key alone."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.nn.spec_augment import SpecAugmentConfig, spec_augment

X = np.random.default_rng(0).normal(size=(8, 40, 12)).astype(np.float32) + 3
FRAMES = np.array([40, 30, 20, 40, 10, 5, 1, 0], np.int32)
CONFIG = SpecAugmentConfig(frequency_masks=1, frequency_width=4, time_masks=1, time_width=9, time_share=0.5)


@functools.partial(jax.jit, static_argnums=0)
def many(number, x, frames):
    """The same spectrograms with `number` keys."""
    return jax.vmap(lambda key: spec_augment(x, frames, CONFIG, key))(jax.random.split(jax.random.key(0), number))


@jax.jit
def hide(x, frames, key):
    """`spec_augment`, compiled."""
    return spec_augment(x, frames, CONFIG, key)


def test_one_band_and_one_stretch_are_the_mean_and_the_rest_stays():
    for found in np.asarray(many(200, X, FRAMES))[:40]:
        for row, frames in enumerate(FRAMES):
            np.testing.assert_array_equal(found[row, frames:], X[row, frames:])
            if not frames:
                continue
            before, after = X[row, :frames].astype(np.float64), found[row, :frames]
            hidden = after != X[row, :frames]
            np.testing.assert_allclose(after[hidden], before.mean(), rtol=1e-5)
            times, bands = np.flatnonzero(hidden.all(axis=1)), np.flatnonzero(hidden.all(axis=0))
            np.testing.assert_array_equal(hidden, hidden.all(axis=1)[:, None] | hidden.all(axis=0)[None, :])
            for places, most in ((times, min(9, frames // 2)), (bands, 4)):
                if len(places) and len(places) < frames:
                    assert len(places) <= most and places[-1] - places[0] == len(places) - 1


def test_widths_and_places_are_uniform():
    found = np.asarray(many(2000, X[:1], FRAMES[:1]))[:, 0] != X[0]
    widths = found.all(axis=2).sum(axis=1)  # of the stretch: 0 to 9 of 40 frames
    counts = np.bincount(widths, minlength=10)
    assert len(counts) == 10 and counts.min() > 140 and counts.max() < 260
    widest = found.all(axis=2)[widths == 9].argmax(axis=1)  # may begin at 0 to 31
    assert widest.min() <= 1 and widest.max() >= 30 and abs(widest.mean() - 15.5) < 2.5
    bands = found.all(axis=1).sum(axis=1)
    assert set(bands) == {0, 1, 2, 3, 4} and abs(bands.mean() - 2) < 0.15


def test_rows_differ_and_keys_repeat():
    same = np.broadcast_to(X[:1], X.shape)
    frames = np.full(8, 40, np.int32)
    found = np.asarray(hide(same, frames, jax.random.key(1)))
    assert len({row.tobytes() for row in found}) > 6
    np.testing.assert_array_equal(hide(same, frames, jax.random.key(1)), found)
    assert (np.asarray(hide(same, frames, jax.random.key(2))) != found).any()


def test_a_mesh_hides_the_same():
    alone = hide(X, FRAMES, jax.random.key(3))
    with use_mesh(MeshShape(dp=2, fsdp=4).build(), Layout()):
        rows = PartitionSpec(("dp", "fsdp"))
        run = local_view(lambda x, frames: spec_augment(x, frames, CONFIG, jax.random.key(3)), (rows, rows), rows)
        np.testing.assert_allclose(jax.jit(run)(X, FRAMES), alone, rtol=1e-6)


def test_bad_values_are_named():
    for more, message in (({"time_masks": -1}, "time_masks=-1"), ({"time_share": 1.5}, "time_share=1.5")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(SpecAugmentConfig(**more))
