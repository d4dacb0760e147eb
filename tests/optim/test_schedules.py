import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm_jax.core.config import from_json, to_json, validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.optim.schedules import SHAPES, Schedule


def values(schedule: Schedule, peak: float, num_steps: int) -> np.ndarray:
    f = schedule.build(peak, num_steps)
    return np.asarray(jax.vmap(f)(jnp.arange(num_steps + 3)))


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_rises_to_the_peak_and_nothing_exceeds_it(shape):
    v = values(Schedule(shape=shape, warmup_steps=10, final_ratio=0.0), 0.3, 100)
    np.testing.assert_allclose(v[:10], 0.3 * np.arange(1, 11) / 10, rtol=1e-6)
    assert v.max() <= 0.3 * (1 + 1e-6)
    assert np.all(np.diff(v[10:]) <= 1e-9)


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_equals_optax_after_warm_up(warmup):
    v = values(Schedule(shape="cosine", warmup_steps=warmup, final_ratio=0.1), 2.0, 50)
    reference = optax.cosine_decay_schedule(2.0, 50 - warmup, alpha=0.1)
    np.testing.assert_allclose(v[warmup:51], [reference(i) for i in range(51 - warmup)], rtol=1e-5)


@pytest.mark.parametrize("shape,fall", [("linear", lambda p: 1 - p), ("one_minus_sqrt", lambda p: 1 - math.sqrt(p))])
def test_wsd_is_flat_then_falls(shape, fall):
    v = values(Schedule(shape=shape, warmup_steps=5, decay_fraction=0.2, final_ratio=0.25), 1.0, 100)
    np.testing.assert_allclose(v[5:81], 1.0)
    np.testing.assert_allclose(v[80:101], [0.25 + 0.75 * fall(i / 20) for i in range(21)], rtol=1e-5)
    np.testing.assert_allclose(v[100:], 0.25)


def test_inverse_sqrt():
    v = values(Schedule(shape="inverse_sqrt", warmup_steps=4, final_ratio=0.3), 1.0, 100)
    np.testing.assert_allclose(v[3], 1.0)
    np.testing.assert_allclose(v[15], math.sqrt(4 / 16), rtol=1e-6)
    np.testing.assert_allclose(v[60:], 0.3)


def test_constant_stays_at_the_peak():
    assert set(values(Schedule(shape="constant"), 0.5, 20).tolist()) == {0.5}


def test_the_whole_run_may_be_warm_up():
    np.testing.assert_allclose(values(Schedule(warmup_steps=4), 1.0, 4)[:4], [0.25, 0.5, 0.75, 1.0])


def test_the_result_is_a_float32_scalar_under_jit():
    value = jax.jit(Schedule(warmup_steps=3).build(1e-3, 10))(jnp.int32(2))
    assert value.dtype == jnp.float32 and value.shape == ()


@pytest.mark.parametrize(
    "fields,word",
    [
        ({"shape": "cosin"}, "did you mean 'cosine'"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": 0.5}, "int"),
        ({"decay_fraction": 0.0}, "decay_fraction"),
        ({"decay_fraction": 1.5}, "decay_fraction"),
        ({"final_ratio": -0.1}, "final_ratio"),
        ({"final_ratio": 10.0}, "final_ratio"),
    ],
)
def test_bad_fields_are_named(fields, word):
    with pytest.raises(ConfigError, match=word):
        validate_tree(Schedule(**fields))


def test_warm_up_longer_than_the_run_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"warmup_steps=20 .* 10 steps"):
        Schedule(warmup_steps=20).build(1.0, 10)


def test_json_round_trip():
    schedule = Schedule(shape="linear", decay_fraction=0.2)
    assert from_json(to_json(schedule)) == schedule
