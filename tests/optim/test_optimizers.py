"""Five updates of every optimizer against the papers' equations in float64 NumPy (`reference.py`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.config import from_json, to_json, validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.optim.adafactor import Adafactor
from lm_jax.optim.adagrad import Adagrad
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.base import OptimizerConfig
from lm_jax.optim.lion import Lion
from lm_jax.optim.muon import JORDAN, Muon
from lm_jax.optim.schedules import Schedule
from lm_jax.optim.sgd import SGD
from tests.optim import reference
from tests.optim.trees import AXES, SMALL, draw, paths

NUM_STEPS = 5
SCHEDULE = Schedule(shape="linear", warmup_steps=2, final_ratio=0.0)
FACTORS = [0.5, 1.0, 1.0, 2 / 3, 1 / 3]
GRADS = [draw(seed, 0.01 * seed) for seed in range(1, NUM_STEPS + 1)]


def train(config: OptimizerConfig, params: dict | None = None, grads: list[dict] = GRADS, axes: dict = AXES):
    """Parameters and state after the updates, under one jit."""
    optimizer = config.build(axes, NUM_STEPS)
    params = jax.tree.map(jnp.asarray, draw(0) if params is None else params)
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for step, g in enumerate(grads):
        params, state = update(g, state, params, jnp.int32(step))
    assert update._cache_size() == 1
    return params, state


def check(config: OptimizerConfig, expect, tolerance: float = 2e-6, counters: bool = True):
    """Compares every parameter with `expect(path, p, grads, rates, decay)`, absolutely: values are about 1.

    Returns the state, which holds float32 arrays and (with `counters`) int32 counters only.
    """
    params, state = train(config)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(x, jax.Array) and x.dtype == (jnp.float32 if x.ndim else jnp.int32) for x in leaves)
    assert {int(x) for x in leaves if x.ndim == 0} == ({NUM_STEPS} if counters else set())
    start, grads = paths(draw(0)), [paths(g) for g in GRADS]
    for path, result in paths(params).items():
        p, gs = start[path].astype(np.float64), [g[path].astype(np.float64) for g in grads]
        decay = config.weight_decay if path in reference.DECAYED else 0.0
        rates = [config.learning_rate * factor for factor in FACTORS]
        if path.endswith("balance"):
            expected = p - config.balance_rate * sum(map(np.sign, gs))
        else:
            expected = expect(path, p, gs, rates, decay)
        np.testing.assert_allclose(result, expected, atol=tolerance, rtol=0, err_msg=path)
        assert result.dtype == jnp.float32 and np.abs(expected - p).max() > 100 * tolerance
    return state


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamw(nesterov):
    config = AdamW(learning_rate=0.01, weight_decay=0.5, schedule=SCHEDULE, nesterov=nesterov)
    check(config, lambda path, *rest: reference.adamw(*rest, nesterov=nesterov))


@pytest.mark.parametrize("initial", [0.0, 1e-3])
def test_adagrad(initial):
    config = Adagrad(learning_rate=0.01, weight_decay=0.5, initial=initial, schedule=SCHEDULE)
    check(config, lambda path, *args: reference.adagrad(*args, initial=initial), counters=False)


def test_adagrad_leaves_what_was_never_seen_and_does_not_mind_the_scale_of_the_loss():
    grads = [{"a": np.array([0.0, 1e-7, 1e-3], np.float32)}, {"a": np.array([0.0, 0.0, -2e-3], np.float32)}]
    config = Adagrad(learning_rate=0.1, schedule=Schedule(shape="constant"))
    params, _ = train(config, {"a": np.ones(3, np.float32)}, grads, {"a": ("embed",)})
    np.testing.assert_allclose(params["a"], [1.0, 0.9, 0.9 + 0.1 * 2 / 5**0.5], rtol=1e-5)


@pytest.mark.parametrize("momentum,nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov):
    config = SGD(learning_rate=1.0, weight_decay=0.5, momentum=momentum, nesterov=nesterov, schedule=SCHEDULE)
    state = check(config, lambda path, *rest: reference.sgd(*rest, momentum, nesterov), counters=False)
    assert bool(jax.tree.leaves(state)) == (momentum > 0)


def test_lion():
    check(Lion(learning_rate=0.01, weight_decay=0.5, schedule=SCHEDULE), lambda path, *rest: reference.lion(*rest))


@pytest.mark.parametrize("nesterov,scale", [(True, "shape"), (False, "adam_rms")])
def test_muon(nesterov, scale):
    def expect(path, p, grads, rates, decay):
        if path in reference.MATRICES:
            where = reference.MATRICES[path]
            return reference.muon(p, grads, rates, decay, *where, nesterov=nesterov, scale=scale)
        return reference.adamw(p, grads, [rate / 2 for rate in rates], decay)

    config = Muon(learning_rate=0.02, adam_learning_rate=0.01, weight_decay=0.5, schedule=SCHEDULE, nesterov=nesterov, scale=scale)
    check(config, expect, tolerance=2e-5)


@pytest.mark.parametrize("momentum,scale_by_parameter", [(None, True), (0.9, False)])
def test_adafactor(momentum, scale_by_parameter):
    factored = dict.fromkeys(("embedding/table", "head"), ()) | {
        path: batch for path, (batch, matrix) in reference.MATRICES.items() if min(matrix) >= 16
    }
    shapes = {path: matrix for path, (_, matrix) in reference.MATRICES.items()}
    shapes |= {"embedding/table": (24, 16), "head": (16, 24), "embedding/positions/table": (16, 16)}
    factored["embedding/positions/table"] = ()

    def expect(path, p, grads, rates, decay):
        batch = reference.MATRICES[path][0] if path in reference.MATRICES else p.shape[: int("block0" in path)]
        layer = shapes.get(path, p.shape[len(batch) :])
        split = [x.reshape(-1, *layer) for x in (p, *grads)]
        each = [
            reference.adafactor(p, grads, rates, decay, path in factored, momentum=momentum, scale_by_parameter=scale_by_parameter)
            for p, *grads in zip(*split, strict=True)
        ]
        return np.stack(each).reshape(p.shape)

    config = Adafactor(
        learning_rate=0.01,
        weight_decay=0.5,
        schedule=SCHEDULE,
        min_factored=16,
        momentum=momentum,
        scale_by_parameter=scale_by_parameter,
    )
    state = check(config, expect)
    assert state.moments["stack"]["block0"]["mixer"]["query"]["rows"].shape == (8, 16, 1, 1)
    assert state.moments["stack"]["block0"]["mixer"]["query"]["columns"].shape == (8, 1, 4, 8)


def test_embeddings_are_not_decayed_where_so_asked():
    grads = [draw(0, 0.0, SMALL)] * NUM_STEPS
    for decay_embeddings, expected in [(True, {"table", "mixer/query"}), (False, {"mixer/query"})]:
        params, _ = train(AdamW(decay_embeddings=decay_embeddings), draw(0, axes=SMALL), grads, SMALL)
        start = paths(draw(0, axes=SMALL))
        assert {path for path, p in paths(params).items() if not np.array_equal(p, start[path])} == expected


OPTIMIZERS = [AdamW(), Adagrad(), Lion(), Adafactor(min_factored=16, momentum=0.9), Muon(), SGD(momentum=0.9)]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: type(c).__name__)
def test_bfloat16_parameters_follow_the_float32_update(config):
    half, grad = (jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), draw(seed, axes=SMALL)) for seed in (0, 1))
    whole, whole_grad = jax.tree.map(lambda x: x.astype(jnp.float32), (half, grad))
    result, state = train(config, half, [grad], SMALL)
    expected, expected_state = train(config, whole, [whole_grad], SMALL)
    assert {x.dtype for x in jax.tree.leaves(result)} == {jnp.dtype(jnp.bfloat16)}
    result = jax.tree.map(lambda x: x.astype(jnp.float32), result)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2**-8), result, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state, expected_state)


@pytest.mark.parametrize("config,decay", [(AdamW(momentum_dtype="bfloat16"), 0.9), (Lion(momentum_dtype="bfloat16"), 0.99)])
def test_the_momentum_may_be_stored_as_bfloat16(config, decay):
    start, grads = draw(0, axes=SMALL), [draw(seed, 0.01, SMALL) for seed in range(NUM_STEPS)]
    params, state = train(config, start, grads, SMALL)
    rounded = np.zeros(start["bias"].shape, jnp.bfloat16)  # once a step, when it is stored
    for g in grads:
        rounded = (decay * rounded.astype(np.float64) + (1 - decay) * g["bias"]).astype(jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(state.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert np.mean(np.asarray(state.mu["bias"]) == rounded) > 0.95
    expected, _ = train(type(config)(), start, grads, SMALL)
    for a, b, p in zip(*map(jax.tree.leaves, (params, expected, start)), strict=True):
        assert np.mean(np.abs(a - b)) < 0.02 * np.mean(np.abs(b - p))


def test_the_learning_rate_is_that_of_the_trainers_step():
    optimizer = AdamW(learning_rate=0.5, schedule=SCHEDULE).build(SMALL, NUM_STEPS)
    rates = [float(optimizer.learning_rate(jnp.int32(step))) for step in range(NUM_STEPS)]
    np.testing.assert_allclose(rates, [0.5 * factor for factor in FACTORS], rtol=1e-6)
    params = jax.tree.map(jnp.asarray, draw(0, axes=SMALL))
    late, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params, jnp.int32(NUM_STEPS))
    jax.tree.map(np.testing.assert_array_equal, late, params)  # the rate at the end is 0, whatever the state


@pytest.mark.parametrize(
    "config,word",
    [
        (AdamW(learning_rate=0.0), "learning_rate"),
        (AdamW(weight_decay=-0.1), "weight_decay"),
        (AdamW(b1=1.0), "b1"),
        (AdamW(eps=0.0), "eps"),
        (Adagrad(initial=-1.0), "initial"),
        (AdamW(momentum_dtype="float16"), "momentum_dtype"),
        (Lion(b2=-0.1), "b2"),
        (Lion(momentum_dtype="bf16"), "did you mean 'bfloat16'"),
        (Adafactor(clip_threshold=0.0), "clip_threshold"),
        (Adafactor(momentum=1.0), "momentum"),
        (Muon(momentum=1.5), "momentum"),
        (Muon(scale="rms"), "scale"),
        (Muon(newton_schulz=()), "newton_schulz"),
        (Muon(newton_schulz=((1.0, 2.0),)), "newton_schulz"),
        (Muon(iteration_dtype="int8"), "iteration_dtype"),
        (Muon(adam_learning_rate=-1.0), "adam_learning_rate"),
        (Muon(schedule=Schedule(shape="step")), "shape"),
        (SGD(momentum=1.0), "momentum"),
        (SGD(nesterov=True), "nesterov"),
    ],
)
def test_bad_fields_are_named(config, word):
    with pytest.raises(ConfigError, match=word):
        validate_tree(config)


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: type(c).__name__)
def test_configs_are_valid_and_survive_json(config):
    validate_tree(config)
    assert from_json(to_json(config)) == config


def test_a_warm_up_that_does_not_fit_is_refused_at_build():
    with pytest.raises(ConfigError, match="warmup_steps"):
        AdamW(schedule=Schedule(warmup_steps=6)).build(AXES, NUM_STEPS)


def test_the_base_is_no_optimizer():
    with pytest.raises(NotImplementedError, match="AdamW"):
        OptimizerConfig().build(AXES, NUM_STEPS)


def test_jordans_coefficients_are_the_default():
    assert Muon().newton_schulz == JORDAN and len(JORDAN) == 5
