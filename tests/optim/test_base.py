import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.base import clip_by_norm, update_ema
from lm_jax.optim.muon import Muon
from tests.optim.trees import AXES, SMALL, draw, paths


def test_clipping_equals_optax():
    grads = draw(0, axes=SMALL)
    norm = jax.jit(optax.tree.norm)(grads)
    for limit in (0.5, float(norm), 1e6):
        peer, _ = jax.jit(optax.clip_by_global_norm(limit).update)(grads, optax.EmptyState())
        clipped = jax.jit(lambda grads, norm, limit=limit: clip_by_norm(grads, norm, limit))(grads, norm)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, peer)
        assert float(jax.jit(optax.tree.norm)(clipped)) <= limit * (1 + 1e-5)


def test_clipping_keeps_dtypes_and_zero_gradients():
    grads = {"a": jnp.zeros((3,), jnp.bfloat16), "b": jnp.zeros((2,))}
    clipped = clip_by_norm(grads, jnp.float32(0), 1.0)
    assert clipped["a"].dtype == jnp.bfloat16 and not np.any(clipped["b"])


def test_gradients_within_the_limit_are_unchanged_bit_by_bit():
    jax.tree.map(np.testing.assert_array_equal, clip_by_norm(draw(0, axes=SMALL), jnp.float32(0.7), 1.0), draw(0, axes=SMALL))


@pytest.mark.parametrize("config", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_frozen_parts_have_no_state_and_others_move_as_without_them(config):
    frozen = ("embedding/table", "stack/block0/mixer", "head")
    params, grads = draw(0), draw(1)
    results = {}
    for parts in ((), frozen):
        optimizer = dataclasses.replace(config, frozen=parts).build(AXES, 10)
        state = jax.jit(optimizer.init)(params)
        results[parts] = jax.jit(optimizer.update)(grads, state, params, jnp.int32(0)), state
    (new, _), state = results[frozen]
    inside = {path: path.startswith(frozen) and path != "head_bias" for path in paths(params)}
    assert 0 < sum(inside.values()) < len(inside)
    for path, value in paths(new).items():
        expected = paths(params if inside[path] else results[()][0][0])[path]
        np.testing.assert_array_equal(value, expected, err_msg=path)
        assert inside[path] or (value != paths(params)[path]).any(), path
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    moments = 1 if isinstance(config, Muon) else 2
    still = sum(paths(params)[path].size for path in inside if inside[path])
    assert count(results[()][1]) - count(state) >= moments * still


def test_frozen_parts_are_checked():
    with pytest.raises(ConfigError, match="has no part 'embeding'; did you mean 'embedding'"):
        AdamW(frozen=("embeding",)).build(AXES, 10)
    with pytest.raises(ConfigError, match="has no part 'stack/block1'; did you mean 'stack/block0'"):
        AdamW(frozen=("head", "stack/block1")).build(AXES, 10)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        AdamW(frozen=tuple(AXES)).build(AXES, 10)


def test_ema_against_the_recurrence():
    start = np.float32(2.0)
    ema, expected = {"w": jnp.asarray(start)}, float(start)
    update = jax.jit(lambda ema, p, step: update_ema(ema, p, 0.6, step, start=2))
    for step in range(30):
        value = np.float32(np.sin(step))
        ema = update(ema, {"w": value}, jnp.int32(step))
        decay = 0.0 if step < 2 else min(0.6, (1 + step - 2) / (10 + step - 2))
        expected = decay * expected + (1 - decay) * float(value)
        np.testing.assert_allclose(ema["w"], expected, rtol=1e-5, atol=1e-6)
        if step < 2:
            np.testing.assert_allclose(ema["w"], value, rtol=1e-6)


def test_ema_of_a_constant_is_the_constant_in_its_own_dtype():
    params = {"w": jnp.full((3,), 0.1, jnp.bfloat16)}
    ema = update_ema({"w": params["w"].astype(jnp.float32)}, params, 0.999, jnp.int32(1000))
    assert ema["w"].dtype == jnp.float32
    np.testing.assert_array_equal(ema["w"], params["w"].astype(jnp.float32))
