"""The mixture of experts against NumPy loops over tokens and choices, in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.nn.kernels import grouped
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.place import Place
from lm_jax.nn.router import RouterConfig
from tests.models_for_tests import LOUD

B, T, D, E = 3, 10, 8, 5
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.ones((B, T), np.int32)
SEGMENTS[1, 7:] = 0
POSITIONS = np.arange(T, dtype=np.int32)[None]
PLACES = {"full": Place(POSITIONS, None), "padded": Place(POSITIONS, SEGMENTS)}
MIXTRAL = MoEConfig(num_experts=E, expert=MLPConfig(hidden=12, activation="silu", gated=True))
DEEPSEEK = dataclasses.replace(
    MIXTRAL,
    router=RouterConfig(top_k=3, scores="sigmoid", renormalize=False, scale=2.5, balance_bias=True),
    shared=MLPConfig(hidden=6),
)
CONFIGS = {
    "mixtral": MIXTRAL,
    "deepseek": DEEPSEEK,
    "one-expert": dataclasses.replace(MIXTRAL, num_experts=1, router=RouterConfig(top_k=1)),
    "ragged": dataclasses.replace(DEEPSEEK, implementation="ragged"),
    "capacity": dataclasses.replace(MIXTRAL, capacity_factor=0.7),
    "wide-capacity": dataclasses.replace(DEEPSEEK, capacity_factor=4.0),
    "room": dataclasses.replace(MIXTRAL, room=0.5),
    "by-row": dataclasses.replace(MIXTRAL, router=RouterConfig(balance_over="row")),
}


def build(config):
    layer = config.build(nnx.Rngs(params=jax.random.key(1)), D, LOUD, 2)
    if layer.router.balance is not None:
        layer.router.balance[...] = jnp.asarray(np.random.default_rng(2).normal(size=config.num_experts) * 0.3, jnp.float32)
    return layer


def expected(layer, place):
    """(output, auxiliary loss of all tokens, metrics, choices of each expert), by loops."""
    config, router = layer.config, layer.config.router
    num, real = config.num_experts, np.ones((B, T), bool) if place.segments_BT is None else place.segments_BT > 0
    w = {name: np.asarray(getattr(layer, name)[...], np.float64) for name in ("up", "gate", "down")}
    logits = X.astype(np.float64) @ np.asarray(layer.router.matrix[...], np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if router.scores == "softmax" else 1 / (1 + np.exp(-logits))
    bias = 0 if layer.router.balance is None else np.asarray(layer.router.balance[...], np.float64)
    chosen = np.argsort(-(scores + bias), axis=-1, kind="stable")[:, :, : router.top_k]
    y, taken, dropped, total = np.zeros((B, T, D)), np.zeros((B, num), int), 0, np.zeros(num)
    kept = set()
    room = math.ceil((config.room or 1e9) * B * T * router.top_k)
    for b in range(B):
        for j in range(router.top_k):
            for t in range(T):
                e = chosen[b, t, j]
                if not real[b, t]:
                    continue
                total[e] += 1
                if config.capacity_factor is not None and taken[b, e] >= config.capacity(T):
                    dropped += 1
                else:
                    taken[b, e] += 1
                    kept.add((e, b, t, j))
    kept, dropped = sorted(kept, key=lambda at: at[1:])[:room], dropped + max(len(kept) - room, 0)  # earlier tokens first
    for e, b, t, _ in kept:
        gate = scores[b, t, e] / (scores[b, t, chosen[b, t]].sum() if router.renormalize else 1) * router.scale
        h = X[b, t] @ w["gate"][e]
        y[b, t] += gate * ((h / (1 + np.exp(-h)) * (X[b, t] @ w["up"][e])) @ w["down"][e])
    if layer.shared is not None:
        y += np.asarray(layer.shared(X, place)[0])
    shares = scores / scores.sum(-1, keepdims=True)
    z = np.square(np.log(np.exp(logits).sum(-1)))[real].mean()
    balance = 0.0
    for rows in [[b] for b in range(B)] if router.balance_over == "row" else [range(B)]:
        tokens = [(b, t) for b in rows for t in range(T) if real[b, t]]
        often = np.bincount([e for b, t in tokens for e in chosen[b, t]], minlength=num) / len(tokens) / router.top_k
        balance += len(tokens) / real.sum() * num * np.sum(often * np.mean([shares[b, t] for b, t in tokens], axis=0))
    metrics = {"load_balance": balance, "router_z": z, "load_max": total.max() / total.mean(), "dropped": dropped / total.sum()}
    return y, (router.load_balance * balance + router.z_loss * z) * real.sum(), metrics, total


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixture_equals_loops_over_the_choices(name, place):
    layer = build(CONFIGS[name])
    y, loss, metrics, _ = expected(layer, PLACES[place])
    got, aux = jax.jit(lambda x: layer(x, PLACES[place]))(X)
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(aux.loss, loss, rtol=1e-5)
    assert aux.metrics.keys() == metrics.keys()
    for metric, value in metrics.items():
        np.testing.assert_allclose(aux.metrics[metric].value, value, rtol=1e-5, err_msg=metric)
    if name in ("capacity", "room"):
        assert metrics["dropped"] > 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_differences(name):
    graph, state = nnx.split(build(CONFIGS[name]))
    target = jnp.asarray(np.random.default_rng(3).normal(size=X.shape), jnp.float32)

    @jax.jit
    def loss(state, x):
        y, aux = nnx.merge(graph, state)(x, PLACES["padded"])
        return jnp.sum(y * target) + aux.loss

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, X)
    for leaves, change in ((jax.tree.leaves(grads[0]), 0), (jax.tree.leaves(grads[1]), 1)):
        for number, g in enumerate(leaves):
            direction = np.random.default_rng(4).normal(size=g.shape).astype(np.float32)
            if g.shape == (CONFIGS[name].num_experts,):
                continue  # the balance bias: its gradient is the load
            step = 2e-3  # small enough that no choice changes

            def moved(sign, number=number, direction=direction, change=change, step=step):
                values, structure = jax.tree.flatten((state, X)[change])
                values[number] = values[number] + sign * step * direction
                new = structure.unflatten(values)
                return float(loss(new, X) if change == 0 else loss(state, new))

            difference = (moved(1) - moved(-1)) / (2 * step)
            np.testing.assert_allclose(np.sum(np.asarray(g) * direction), difference, rtol=2e-2, atol=2e-2)


def test_the_gradient_of_the_balance_bias_is_the_load_above_the_mean():
    layer = build(DEEPSEEK)
    *_, total = expected(layer, PLACES["padded"])
    graph, state = nnx.split(layer)
    grads = jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(jnp.asarray(X), PLACES["padded"])[0]))(state)
    np.testing.assert_allclose(nnx.merge(graph, grads).router.balance[...], total - total.mean(), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(0, 300, 5, 0, 128), (128, 128, 128, 16, 0), (0, 0, 0, 0, 0), (433, 0, 0, 0, 0)])
@pytest.mark.parametrize("name", grouped.GROUPED)
def test_grouped_products_equal_loops(name, sizes):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(450, 6)), rng.normal(size=(450, 7))
    w = rng.normal(size=(5, 6, 7))
    y, dw, start = np.zeros((450, 7)), np.zeros_like(w), 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows], dw[e] = x[rows] @ w[e], x[rows].T @ g[rows]
        start += size
    x, g, w = (jnp.asarray(a, jnp.float32) for a in (x, g, w))
    way = grouped.GROUPED[name]
    got = jax.jit(way.product)(x, w, jnp.asarray(sizes, jnp.int32))
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(way.gradient)(x, g, jnp.asarray(sizes, jnp.int32)), dw, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_experts=1), "top_k=2 is above the 1 experts to choose from"),
        (dict(shared_gate=True), "there is none"),
        (dict(router=RouterConfig(groups=3)), "not divisible by router.groups=3"),
        (dict(capacity_factor=1.0, room=2.0), "not both"),
        (dict(capacity_factor=0.0), "capacity_factor=0.0 must be above 0"),
        (dict(implementation="block"), "did you mean 'blocks'"),
        (dict(router=RouterConfig(scores="soft")), "'softmax'"),
        (dict(router=RouterConfig(z_loss=-1.0)), "must not be negative"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        validate_tree(dataclasses.replace(MIXTRAL, **change))
