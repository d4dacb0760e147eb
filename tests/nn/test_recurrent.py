"""Recurrent mixers against loops in float64, PyTorch and `transformers`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.gated_delta import GatedDeltaConfig, delta_rule
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.place import Place
from lm_jax.nn.recurrence import ConvolutionConfig, starts
from lm_jax.nn.recurrent import CELLS, RecurrentConfig, recurrence
from lm_jax.nn.rglru import RGLRUConfig
from tests.models_for_tests import LOUD, llama

B, T, D = 2, 11, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1], range(11)], np.int32)
PACKED = Place(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
WHOLE = Place(jnp.arange(T)[None], None)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def built(config, width=D, seed=1):
    """A mixer all of whose parameters are drawn, and these as float64."""
    model = config.build(nnx.Rngs(params=0), width, LOUD, 1)
    graph, params = split(model)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    draw = lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32)  # noqa: E731
    params = jax.tree.unflatten(tree, [draw(x) for x in leaves])
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params)), jax.tree.map(np.float64, params)


def documents():
    """(row, tokens of a document), padding left out."""
    yield from ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 11)))


def compare(mixer, by_definition):
    """Each document of packed rows alone, by `by_definition` of its inputs [t, D]."""
    y = np.asarray(jax.jit(lambda x: mixer(x, PACKED)[0])(X))
    for row, tokens in documents():
        np.testing.assert_allclose(y[row, tokens], by_definition(np.float64(X[row, tokens])), atol=2e-5)


def lstm_loop(p, x):
    h = c = np.zeros(p["matrix"].shape[0])
    states = []
    for t in range(len(x)):
        i, f, g, o = np.einsum("d,dgh->gh", x[t], p["input"]) + np.einsum("h,hgk->gk", h, p["matrix"]) + p["bias"]
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def gru_loop(p, x):
    h, states = np.zeros(p["matrix"].shape[0]), []
    for t in range(len(x)):
        a = np.einsum("d,dgh->gh", x[t], p["input"]) + p["bias"]
        b = np.einsum("h,hgk->gk", h, p["matrix"])
        r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
        h = (1 - z) * np.tanh(a[2] + r * (b[2] + p["candidate_bias"])) + z * h
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize(("cell", "loop"), [("lstm", lstm_loop), ("gru", gru_loop)])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_lstm_and_gru_restart_at_every_document(cell, loop, direction):
    mixer, p = built(RecurrentConfig(cell=cell, size=7, direction=direction))

    def by_definition(x):
        ways = {"forward": lambda: loop(p["forward"], x), "backward": lambda: loop(p["backward"], x[::-1])[::-1]}
        return np.concatenate([ways[name]() for name in ways if name in p], axis=1) @ p["output"]

    compare(mixer, by_definition)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_lstm_and_gru_are_those_of_pytorch(cell):
    torch = pytest.importorskip("torch")
    mixer, p = built(RecurrentConfig(cell=cell, output=False))
    peer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, D, batch_first=True)
    p = p["forward"]
    flat = lambda x: torch.tensor(x.reshape(len(x), -1).T if x.ndim == 3 else x.reshape(-1), dtype=torch.float32)  # noqa: E731
    with torch.no_grad():
        peer.weight_ih_l0.copy_(flat(p["input"]))
        peer.weight_hh_l0.copy_(flat(p["matrix"]))
        peer.bias_ih_l0.copy_(flat(p["bias"]))
        peer.bias_hh_l0.zero_()
        if cell == "gru":
            peer.bias_hh_l0[2 * D :] = flat(p["candidate_bias"])
        expected = peer(torch.tensor(X))[0].numpy()
    np.testing.assert_allclose(mixer(X, WHOLE)[0], expected, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_gradient_of_a_recurrence_is_that_of_its_definition(cell):
    step, gates, states, _ = CELLS[cell]
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    begins = jnp.asarray(rng.random((T, B)) < 0.3)
    args = draw(T, B, gates, 5), 0.5 * draw(5, gates, 5), draw(gates, 5), tuple(draw(B, 5) for _ in range(states))
    weights = tuple(draw(T, B, 5) for _ in range(states))

    def plain(x, matrix, bias, state):
        found = []
        for t in range(T):
            state = tuple(jnp.where(begins[t][:, None], 0, s) for s in state)
            state = step(x[t], jnp.einsum("bh,hgk->bgk", state[0], matrix) + bias[None], state)
            found.append(state)
        return tuple(jnp.stack(s) for s in zip(*found, strict=True))

    scan = lambda x, matrix, bias, state: recurrence(step, 1, x, matrix, bias, begins, state)  # noqa: E731
    total = lambda fn: lambda *args: sum(jnp.vdot(w, s) for w, s in zip(weights, fn(*args), strict=True))  # noqa: E731
    expected, got = (jax.grad(total(fn), argnums=(0, 1, 2, 3))(*args) for fn in (plain, scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def convolved(p, x, size):
    """The causal convolution of [t, N, H] of one document."""
    y = np.zeros_like(x) + p.get("bias", 0.0)
    for t in range(len(x)):
        for j in range(min(t + 1, size)):
            y[t] += p["matrix"][j] * x[t - j]
    return y


def test_rglru():
    mixer, p = built(RGLRUConfig(size=8, num_heads=2, convolution=ConvolutionConfig(kernel=3, bias=True)))

    def by_definition(x):
        into = lambda name: np.einsum("td,dnh->tnh", x, p[name]) + p[f"{name}_bias"]  # noqa: E731
        gate = into("gate")
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        z = convolved(p["convolution"], into("input"), 3)
        r = sigmoid(np.einsum("tnh,nhk->tnk", z, p["recurrent_gate"]) + p["recurrent_gate_bias"])
        i = sigmoid(np.einsum("tnh,nhk->tnk", z, p["input_gate"]) + p["input_gate_bias"])
        a = np.exp(-8 * softplus(p["decay"]) * r)
        h, states = np.zeros(z.shape[1:]), []
        for t in range(len(x)):
            amount = 1.0 if t == 0 else np.sqrt(1 - a[t] ** 2)
            h = (a[t] * h if t else 0) + amount * i[t] * z[t]
            states.append(h)
        return np.einsum("tnh,nhd->td", gate * np.stack(states), p["output"]) + p["output_bias"]

    compare(mixer, by_definition)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_gated_delta(chunk):
    config = GatedDeltaConfig(num_heads=4, num_key_heads=2, key_dim=5, value_dim=6, chunk=chunk)
    mixer, p = built(config)
    silu = lambda x: x * sigmoid(x)  # noqa: E731

    def by_definition(x):
        heads = lambda name: np.einsum("td,dnh->tnh", x, p[name])  # noqa: E731
        q, k, v = (silu(convolved(p[f"{name}_convolution"], heads(name), 4)) for name in ("query", "key", "value"))
        q, k = (np.repeat(z / np.sqrt((z**2).sum(-1, keepdims=True) + 1e-6), 2, axis=1) for z in (q, k))
        b, a = sigmoid(x @ p["amount"]), np.exp(-np.exp(p["rate"]) * softplus(x @ p["step"] + p["step_bias"]))
        S, y = np.zeros((4, 6, 5)), []
        for t in range(len(x)):
            for n in range(4):
                forget = np.eye(5) - b[t, n] * np.outer(k[t, n], k[t, n])
                S[n] = a[t, n] * S[n] @ forget + b[t, n] * np.outer(v[t, n], k[t, n])
            y.append(np.einsum("nvh,nh->nv", S, q[t]) / np.sqrt(5))
        y = np.stack(y)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"] * silu(heads("gate"))
        return np.einsum("tnv,nvd->td", y, p["output"])

    compare(mixer, by_definition)


def test_a_delta_rule_that_forgets_within_a_chunk_stays_finite():
    """The logarithms of what is kept add up to thousands; only their differences may be taken."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 128, 2, 8)) for key in keys)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    once = lambda chunk: delta_rule(  # noqa: E731
        q, k, v, jnp.full((1, 128, 2), 0.9), jnp.full((1, 128, 2), -40.0), jnp.zeros((1, 128), bool), None, chunk
    )[0]
    np.testing.assert_allclose(once(64), once(1), atol=1e-5)


def test_rglru_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    from transformers import RecurrentGemmaConfig

    mixer, p = built(RGLRUConfig(size=8, num_heads=2))
    config = RecurrentGemmaConfig(hidden_size=D, lru_width=8, num_attention_heads=2, hidden_activation="gelu_pytorch_tanh")
    peer = module.RecurrentGemmaRecurrentBlock(config, 0)
    wide = lambda x: x.reshape(len(x), -1).T  # noqa: E731
    lru = {
        "recurrent_param": p["decay"].reshape(-1),
        "input_gate_weight": p["input_gate"],
        "input_gate_bias": p["input_gate_bias"],
        "recurrent_gate_weight": p["recurrent_gate"],
        "recurrent_gate_bias": p["recurrent_gate_bias"],
    }
    state = {f"rg_lru.{name}": value for name, value in lru.items()} | {
        "linear_y.weight": wide(p["gate"]),
        "linear_y.bias": p["gate_bias"].reshape(-1),
        "linear_x.weight": wide(p["input"]),
        "linear_x.bias": p["input_bias"].reshape(-1),
        "linear_out.weight": p["output"].reshape(-1, D).T,
        "linear_out.bias": p["output_bias"],
        "conv_1d.weight": wide(p["convolution"]["matrix"][::-1])[:, None],
        "conv_1d.bias": p["convolution"]["bias"].reshape(-1),
    }
    peer.load_state_dict({name: torch.tensor(np.ascontiguousarray(x), dtype=torch.float32) for name, x in state.items()})
    with torch.no_grad():
        expected = peer(torch.tensor(X), torch.arange(T)[None].expand(B, T), None, use_cache=False)[0].numpy()
    np.testing.assert_allclose(mixer(X, WHOLE)[0], expected, atol=1e-5)


def test_gated_delta_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from transformers import Qwen3NextConfig

    N, K, H, V = 4, 2, 5, 6
    mixer, p = built(GatedDeltaConfig(num_heads=N, num_key_heads=K, key_dim=H, value_dim=V))
    config = Qwen3NextConfig(
        hidden_size=D,
        linear_num_value_heads=N,
        linear_num_key_heads=K,
        linear_key_head_dim=H,
        linear_value_head_dim=V,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    peer = module.Qwen3NextGatedDeltaNet(config, 0)
    by_group = lambda x: x.reshape(D, K, -1)  # noqa: E731
    both = np.concatenate([p["query"], p["key"], by_group(p["value"]), by_group(p["gate"])], axis=2)
    convolutions = [p[f"{name}_convolution"]["matrix"][::-1].reshape(4, -1) for name in ("query", "key", "value")]
    state = {
        "in_proj_qkvz.weight": both.reshape(D, -1).T,
        "in_proj_ba.weight": np.concatenate([by_group(p["amount"]), by_group(p["step"])], axis=2).reshape(D, -1).T,
        "conv1d.weight": np.concatenate(convolutions, axis=1).T[:, None],
        "dt_bias": p["step_bias"],
        "A_log": p["rate"],
        "norm.weight": p["norm"]["scale"],
        "out_proj.weight": p["output"].reshape(-1, D).T,
    }
    peer.load_state_dict({name: torch.tensor(np.ascontiguousarray(x), dtype=torch.float32) for name, x in state.items()})
    with torch.no_grad():
        expected = peer(torch.tensor(X)).numpy()
    np.testing.assert_allclose(mixer(X, WHOLE)[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [RecurrentConfig(), RecurrentConfig(cell="gru"), RGLRUConfig(num_heads=2), GatedDeltaConfig(num_heads=2, chunk=4)],
    ids=lambda config: type(config).__name__,
)
def test_a_row_in_pieces(config):
    """Two calls with a cache, the first with padding at the left, give what one call gives."""
    mixer, _ = built(config)
    whole, _ = mixer(X, Place(jnp.maximum(jnp.arange(T) - 3, 0)[None], jnp.asarray([[0] * 3 + [1] * 8] * B)))
    cache = config.empty_cache(D, B, T, jnp.float32)
    segments = jnp.asarray([[0] * 3 + [1] * 2] * B)
    first, cache = mixer(X[:, :5], Place(jnp.asarray([[0, 0, 0, 0, 1]]), segments), cache)
    second, _ = mixer(X[:, 5:], Place(2 + jnp.arange(6)[None], jnp.ones((B, 6), jnp.int32)), cache)
    np.testing.assert_allclose(np.concatenate([first, second], 1)[:, 3:], whole[:, 3:], atol=1e-5)


def test_starts():
    expected = [[1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], [1] + [0] * 10]
    np.testing.assert_array_equal(starts(PACKED), np.array(expected, bool))
    np.testing.assert_array_equal(starts(WHOLE), [[True] + [False] * 10])


def test_initial_decays_are_in_the_range_of_the_paper():
    mixer = RGLRUConfig().build(nnx.Rngs(params=0), 512, Init(), 1)
    a = np.exp(-8 * softplus(np.float64(mixer.decay[...])))
    assert 0.9 < a.min() < 0.905 and 0.994 < a.max() < 0.999 and abs(a.mean() - 0.9495) < 0.005
    mixer = GatedDeltaConfig(num_heads=512, key_dim=2, value_dim=2).build(nnx.Rngs(params=0), 4, Init(), 1)
    step = softplus(np.float64(mixer.step_bias[...]))
    assert 0.001 < step.min() < 0.0012 and 0.08 < step.max() < 0.1


def test_bad_values_are_named():
    for config, message in (
        (RecurrentConfig(cell="rnn"), "cell='rnn'"),
        (RecurrentConfig(direction="up"), "direction='up'"),
        (GatedDeltaConfig(num_heads=4, num_key_heads=3), "num_heads=4 is not divisible by num_key_heads=3"),
        (BlockConfig(residual=False, residual_scale=0.5), "residual=False"),
        (BlockConfig(parallel=True, feed_forward=None), "feed_forward is None"),
        (Layout(recurrent=("tp",)), "layers need it whole"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config)
    for mixer, message in (
        (RecurrentConfig(size=5, output=False), "must be as many as width=32; take size=32"),
        (RecurrentConfig(size=5, direction="both", output=False), "take size=16"),
        (RGLRUConfig(num_heads=5), "32 is not divisible by num_heads=5"),
    ):
        model = llama()
        model.stack.pattern = (BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=8)),)
        with pytest.raises(ConfigError, match=message):
            validate_tree(model)


def test_a_stack_that_reads_backward_does_not_generate():
    model = llama()
    model.stack.pattern = (dataclasses.replace(model.stack.pattern[0], mixer=RecurrentConfig(direction="both")),)
    with pytest.raises(ConfigError, match="cannot write one token after another"):
        model.build(jax.random.key(0)).init_cache(1, 4)
