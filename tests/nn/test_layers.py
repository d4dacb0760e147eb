"""The small layers, each against NumPy in float64 or a property that defines it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.dropout import dropout
from lm_jax.nn.init import Init
from lm_jax.nn.linear import project
from lm_jax.nn.mlp import ACTIVATIONS, MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import Place
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig, sinusoids
from lm_jax.nn.rope_scaling import LinearRope, Llama3Rope, NTKRope, YarnRope
from lm_jax.nn.stack import REMAT, StackConfig
from tests.models_for_tests import LOUD

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 16)).astype(np.float32)
PLACE = Place(np.arange(7, dtype=np.int32)[None], None)


def rngs():
    return nnx.Rngs(params=jax.random.key(0))


def perturb(module):
    """Parameters drawn at random, so that scales of 1 and biases of 0 hide nothing."""
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable[...] = jnp.asarray(RNG.normal(size=variable.shape), jnp.float32)
    return module


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_equal_numpy(kind, bias):
    norm = NormConfig(kind=kind, bias=bias, epsilon=1e-3).build(rngs(), 16)
    parameters = perturb(nnx.state(norm))
    nnx.update(norm, parameters)
    x = X.astype(np.float64) * 3 + 1
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(norm.scale)
    y += np.asarray(norm.bias) if bias else 0
    np.testing.assert_allclose(norm(x.astype(np.float32)), y, atol=1e-4)


def test_a_zero_centred_norm_over_several_dimensions():
    norm = perturb(NormConfig(zero_centered=True).build(rngs(), 4, 16, axes=("heads", "head_dim")))
    x = RNG.normal(size=(2, 3, 4, 16))
    y = x / np.sqrt((x**2).mean((-2, -1), keepdims=True) + 1e-6) * (1 + np.asarray(norm.scale))
    np.testing.assert_allclose(norm(x.astype(np.float32)), y, atol=1e-4)


def test_norms_take_their_statistics_in_float32():
    norm = NormConfig().build(rngs(), 1000)
    x = jnp.full((1, 1000), 3.0, jnp.bfloat16)  # squares summed in bfloat16 would stop growing at about 2,000
    np.testing.assert_array_equal(norm(x), jnp.ones((1, 1000), jnp.bfloat16))
    assert norm(x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("BTD,DF->BTF", (2, 7, 16), (16, 48)),
        ("BTD,DF->BTF", (2, 7, 16), (16, 5)),
        ("BTD,DNH->BTNH", (2, 7, 16), (16, 4, 6)),
        ("BTNH,NHD->BTD", (2, 7, 4, 6), (4, 6, 16)),
    ],
)
def test_gradients_of_a_projection_equal_those_of_einsum(equation, x, w):
    x, w = RNG.normal(size=x).astype(np.float32), RNG.normal(size=w).astype(np.float32)
    g = RNG.normal(size=np.einsum(equation, x, w).shape).astype(np.float32)
    parameter = lambda w: nnx.Param(w, axes=(None,) * w.ndim)  # noqa: E731
    ours = jax.grad(lambda x, w: jnp.vdot(g, project(equation, x, parameter(w))), (0, 1))(x, w)
    theirs = jax.grad(lambda x, w: jnp.vdot(g, jnp.einsum(equation, x, w)), (0, 1))(x, w)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rotary_turns_pairs_by_the_angle_of_their_position():
    rotary, positions = RotaryConfig(base=100.0, fraction=0.5), np.array([[0, 1, 5, 9, 2, 3, 4]], np.int32)
    x = RNG.normal(size=(1, 7, 3, 8)).astype(np.float32)
    z = x[..., 0:2].astype(np.float64) + 1j * x[..., 2:4]
    z = z * np.exp(1j * positions[0][None, :, None, None] * 100.0 ** (-2 * np.arange(2) / 4))
    expected = np.concatenate([z.real, z.imag, x[..., 4:]], axis=-1)
    np.testing.assert_allclose(rotary.rotate(x, positions, 7), expected, atol=1e-5)


def test_interleaved_rotary_turns_neighbours():
    x, positions = RNG.normal(size=(1, 7, 3, 8)).astype(np.float32), np.array([[0, 1, 5, 9, 2, 3, 4]], np.int32)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * positions[0][None, :, None, None] * 100.0 ** (-2 * np.arange(4) / 8))
    got = RotaryConfig(base=100.0, interleaved=True).rotate(x, positions, 7)
    np.testing.assert_allclose(got[..., 0::2], z.real, atol=1e-5)
    np.testing.assert_allclose(got[..., 1::2], z.imag, atol=1e-5)


def test_scaled_frequencies_equal_their_papers():
    base, size, length, factor = 10_000.0, 64, 2048, 8.0
    plain = [base ** (-2 * i / size) for i in range(size // 2)]

    def blend(weight_of_kept):
        return [f * w + f / factor * (1 - w) for f, w in zip(plain, map(weight_of_kept, range(size // 2)), strict=True)]

    def by_turns(i):  # Llama 3.1
        wavelength = 2 * math.pi / plain[i]
        return 1.0 if wavelength < length / 4 else 0.0 if wavelength > length else (length / wavelength - 1) / 3

    def by_number(i):  # YaRN, equations 17 to 20, by the number of the pair
        low, high = (size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
        return 1 - min(max((i - math.floor(low)) / (math.ceil(high) - math.floor(low)), 0), 1)

    cases = [
        (LinearRope(factor=factor), [f / factor for f in plain]),
        (NTKRope(factor=factor), [(base * factor ** (size / (size - 2))) ** (-2 * i / size) for i in range(size // 2)]),
        (Llama3Rope(factor=factor, length=length), blend(by_turns)),
        (YarnRope(factor=factor, length=length), blend(by_number)),
    ]
    for scaling, expected in cases:
        np.testing.assert_allclose(scaling.frequencies(base, size, 99), expected, rtol=1e-12, err_msg=str(scaling))
    amplitudes = [0.1 * math.log(factor) + 1, 1.25]
    assert [YarnRope(factor=factor, attention=a).amplitude for a in (None, 1.25)] == pytest.approx(amplitudes)
    x, positions = jnp.asarray(X[:, :, None, :]), PLACE.positions_BT
    turned = [RotaryConfig(scaling=YarnRope(factor=1.0, attention=a)).rotate(x, positions, 7) for a in (1.0, 2.0)]
    np.testing.assert_allclose(turned[1], 2 * turned[0], rtol=1e-6)
    np.testing.assert_allclose(turned[0], RotaryConfig().rotate(x, positions, 7), atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = RNG.normal(size=(2, 1, 7, 1, 8)).astype(np.float32)

    def scores(offset):
        positions = np.arange(7, dtype=np.int32)[None] + offset
        a, b = RotaryConfig().rotate(q, positions, 99), RotaryConfig().rotate(k, positions, 99)
        return np.einsum("btnh,bsnh->ts", a, b)

    np.testing.assert_allclose(scores(0), scores(50), atol=1e-4)


def test_sinusoids_equal_the_paper():
    table = sinusoids(50, 12)
    for p, i in ((0, 0), (1, 0), (17, 2), (49, 5)):
        angle = p / 10_000 ** (2 * i / 12)
        np.testing.assert_allclose(table[p, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-6)
    positions = PositionTableConfig(kind="sinusoidal", length=50).build(rngs(), 12, LOUD)
    np.testing.assert_array_equal(positions(np.array([[3, 49]], np.int32), jnp.zeros((1, 2, 12)))[0], table[[3, 49]])


def test_activations_equal_their_formulas():
    x = np.linspace(-4, 4, 33)
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    expected = {
        "gelu": x * (1 + erf) / 2,
        "gelu_tanh": x * (1 + tanh) / 2,
        "gelu_quick": x / (1 + np.exp(-1.702 * x)),
        "silu": x / (1 + np.exp(-x)),
        "relu": np.maximum(x, 0),
        "relu_squared": np.maximum(x, 0) ** 2,
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, y in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), y, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp_equals_numpy(gated):
    mlp = perturb(MLPConfig(hidden=24, activation="relu", gated=gated, bias=True).build(rngs(), 16, LOUD, 1))
    up = X @ np.asarray(mlp.up) + np.asarray(mlp.up_bias)
    hidden = np.maximum(X @ np.asarray(mlp.gate) + np.asarray(mlp.gate_bias), 0) * up if gated else np.maximum(up, 0)
    np.testing.assert_allclose(mlp(X, PLACE)[0], hidden @ np.asarray(mlp.down) + np.asarray(mlp.down_bias), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "branch"])
def test_placement_of_the_norms(placement):
    layers = {"mixer": AttentionConfig(num_heads=2), "feed_forward": MLPConfig(hidden=24)}
    block = perturb(BlockConfig(**layers, placement=placement, residual_scale=0.5).build(rngs(), 16, LOUD, 1))
    x = jnp.asarray(X)
    for f, before, after in (
        (lambda h: block.mixer(h, PLACE)[0], block.mixer_norm, block.mixer_post_norm),
        (lambda h: block.feed_forward(h, PLACE)[0], block.feed_forward_norm, block.feed_forward_post_norm),
    ):
        if placement == "pre":
            x = x + 0.5 * f(before(x))
        elif placement == "post":
            x = after(x + 0.5 * f(x))
        elif placement == "branch":
            x = x + 0.5 * after(f(x))
        else:
            x = x + 0.5 * after(f(before(x)))
    np.testing.assert_allclose(block(X, PLACE, None, None, None)[0], x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_parallel_layers_read_the_same_input(shared):
    layers = {"mixer": AttentionConfig(num_heads=2), "feed_forward": MLPConfig(hidden=24)}
    block = perturb(BlockConfig(**layers, parallel=True, shared_norm=shared).build(rngs(), 16, LOUD, 1))
    second = block.mixer_norm if shared else block.feed_forward_norm
    expected = X + block.mixer(block.mixer_norm(X), PLACE)[0] + block.feed_forward(second(X), PLACE)[0]
    np.testing.assert_allclose(block(X, PLACE, None, None, None)[0], expected, rtol=1e-4, atol=1e-3)


def test_dropout_keeps_the_mean():
    x = jnp.ones((10, 10, 1000))
    y = np.asarray(dropout(x, 0.2, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.8)}
    np.testing.assert_allclose((y == 0).mean(), 0.2, atol=0.005)
    assert dropout(x, 0.2, None) is x


@pytest.mark.parametrize(
    ("weights", "outputs", "linear", "output"),
    [
        ("normal", "same", 0.3, 0.3),
        ("normal", "depth_scaled", 0.3, 0.3 / math.sqrt(2 * 8)),
        ("fan_in", "same", 1 / 8, 1 / 16),
        ("fan_in", "depth_scaled", 1 / 8, 1 / 16 / math.sqrt(2 * 8)),
        ("fan_in", "zeros", 1 / 8, 0),
    ],
)
def test_initial_deviations(weights, outputs, linear, output):
    init, key = Init(weights=weights, outputs=outputs, std=0.3, embedding_std=0.7), jax.random.key(0)
    for draw, expected in ((init.linear(64), linear), (init.output(256, 8), output), (init.embedding(), 0.7)):
        x = np.asarray(draw(key, (300, 300), jnp.float32))
        np.testing.assert_allclose([x.mean(), x.std()], [0, expected], rtol=0.02, atol=0.01 * expected)


def test_every_layer_is_drawn_apart_and_scanning_is_a_loop():
    block = BlockConfig(mixer=AttentionConfig(num_heads=2), feed_forward=MLPConfig(hidden=24), dropout=0.3)
    config = StackConfig(pattern=(block, dataclasses.replace(block, placement="post")), repeats=3, final_norm=None)
    stack, key = config.build(rngs(), 16, LOUD), jax.random.key(1)
    up = np.asarray(stack.block0.feed_forward.up)
    assert up.shape == (3, 16, 24) and len(np.unique(up)) == up.size
    keys, x = jax.random.split(key, 6).reshape(3, 2), jnp.asarray(X)
    for i in range(3):
        for j, blocks in enumerate((stack.block0, stack.block1)):
            graph, state = nnx.split(blocks)
            one = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], state))
            x, _, _ = one(x, PLACE, None, None, keys[i, j])
    np.testing.assert_allclose(stack(X, PLACE, key=key)[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [dict(unroll=2), dict(unroll=3), *(dict(remat=name) for name in REMAT)])
def test_unrolling_and_recomputation_change_no_gradient(change):
    block = BlockConfig(mixer=AttentionConfig(num_heads=2), feed_forward=MLPConfig(hidden=24))
    plain = StackConfig(pattern=(block,), repeats=3)

    def gradient(config):
        graph, state = nnx.split(config.build(rngs(), 16, LOUD))
        loss = lambda state: jnp.sum(jnp.sin(nnx.merge(graph, state)(X, PLACE)[0]))  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    for a, b in zip(gradient(plain), gradient(dataclasses.replace(plain, **change)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        NormConfig(kind="batch"),
        NormConfig(epsilon=0.0),
        MLPConfig(activation="gleu"),
        MLPConfig(hidden=0),
        Init(weights="he"),
        Init(std=-1.0),
        RotaryConfig(base=1.0),
        RotaryConfig(fraction=0.0),
        BlockConfig(placement="middle"),
        BlockConfig(dropout=1.0),
        BlockConfig(placement="post", parallel=True),
        BlockConfig(shared_norm=True),
        LinearRope(factor=0.5),
        Llama3Rope(low=4.0),
        YarnRope(fast=1.0),
        AttentionConfig(clip=0.0),
        StackConfig(pattern=()),
        StackConfig(remat="some"),
        AttentionConfig(num_heads=4, num_kv_heads=3),
        AttentionConfig(implementation="flash"),
    ],
)
def test_bad_values_are_refused(bad):
    with pytest.raises(ConfigError):
        validate_tree(bad)
