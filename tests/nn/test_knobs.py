"""Every knob of the Transformer space against a loop or a formula in float64, and that those that are off cost nothing."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.nn.attend import BACKENDS, attend
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.frontend import AudioConfig, PatchesConfig
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens, alibi_slopes
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.place import Place
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.rope_scaling import LongRope
from lm_jax.nn.router import RouterConfig
from lm_jax.objectives.lm import LMConfig
from tests import hlo
from tests.models_for_tests import LOUD, VOCAB, batch, latent, llama, logits

T, N, H = 8, 4, 6
RNG = np.random.default_rng(0)
GOLDEN = Path(__file__).parents[1] / "fixtures" / "plain_llama.json"


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_definition(q, k, v, seen, bias=0.0, scale=1.0):
    """softmax(scale q k + bias) v over what is `seen` [B, T, S], in float64."""
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = scale * np.einsum("btnh,bsnh->bnts", q.astype(np.float64), k) + bias
    return np.einsum("bnts,bsnh->btnh", softmax(np.where(seen[:, None], scores, -np.inf)), v)


def random_heads(*sizes):
    return [RNG.normal(size=(2, T, heads, size)).astype(np.float32) for heads, size in sizes]


CAUSAL = np.tril(np.ones((T, T), bool))[None]


@pytest.mark.parametrize("name", ["reference", "ring", "xla"])
def test_a_prefix_is_seen_by_all_of_its_document(name):
    q, k, v = random_heads((N, H), (2, H), (2, H))
    segments = np.array([[1] * 5 + [2] * 3, [1] * 8], np.int32)
    prefix = np.array([[1, 1, 1, 0, 0, 1, 1, 0], [1] * 6 + [0] * 2], np.int32)
    seen = (CAUSAL | (prefix[:, None, :] > 0)) & (segments[:, :, None] == segments[:, None, :])
    tokens = Tokens(np.arange(T), segments, prefix)
    spec = AttentionSpec(scale=0.4, segments=True, prefix=True)
    np.testing.assert_allclose(attend(name, spec, q, k, v, tokens, tokens), by_definition(q, k, v, seen, scale=0.4), atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "ring", "xla"])
def test_alibi_falls_with_distance(name):
    q, k, v = random_heads((N, H), (N, H), (N, H))
    bias = -np.array([1 / 4, 1 / 16, 1 / 64, 1 / 256])[:, None, None] * np.abs(np.arange(T)[:, None] - np.arange(T)[None, :])
    tokens = Tokens(np.arange(T))
    got = attend(name, AttentionSpec(scale=1.0, alibi=N), q, k, v, tokens, tokens)
    np.testing.assert_allclose(got, by_definition(q, k, v, CAUSAL, bias), atol=1e-5)


def test_slopes_of_alibi_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(12), [2.0**-i for i in range(1, 9)] + [2.0**-i for i in (0.5, 1.5, 2.5, 3.5)])


def test_keys_and_values_of_unequal_size():
    q, k, v = random_heads((N, H), (2, H), (2, 10))
    tokens = Tokens(np.arange(T))
    for name in ("reference", "ring"):
        got = attend(name, AttentionSpec(scale=1.0), q, k, v, tokens, tokens)
        np.testing.assert_allclose(got, by_definition(q, k, v, CAUSAL), atol=1e-5)
    with pytest.raises(ConfigError, match="values of size 10 beside keys of 6"):
        attend("xla", AttentionSpec(scale=1.0), q, k, v, tokens, tokens)


def test_what_kernels_cannot_do_is_refused():
    case = dict(dtype=jnp.dtype("float32"), head_dim=64, value_dim=64, queries=128, keys=128, sequence=1, platform="tpu")
    from lm_jax.nn.attend import Case

    for fields in (dict(prefix=True), dict(alibi=4), dict(bias=True)):
        assert "neither prefixes nor biases" in BACKENDS["splash"].refuses(Case(AttentionSpec(scale=1.0, **fields), **case))
    assert "does not travel" in BACKENDS["ring"].refuses(Case(AttentionSpec(scale=1.0, bias=True), **case))


def test_a_chunk_is_as_if_it_was_a_document():
    config = llama()
    config.stack.pattern[0].mixer.chunk = 4
    tokens = batch(rows=2, length=11)["tokens"]
    got = logits(config.build(jax.random.key(0)), tokens)
    whole = llama().build(jax.random.key(0))
    segments = 1 + np.broadcast_to(np.arange(11) // 4, (2, 11)).astype(np.int32)
    positions = np.broadcast_to(np.arange(11), (2, 11)).astype(np.int32)
    np.testing.assert_allclose(got, logits(whole, tokens, segments=segments, positions=positions), atol=1e-5)


def test_a_bias_of_keys_changes_nothing():
    def outputs(**fields):
        layer = AttentionConfig(num_heads=2, bias=True, **fields).build(nnx.Rngs(params=0), 8, LOUD, 1)
        for bias in (layer.query_bias, layer.key_bias, layer.value_bias):
            if bias is not None:
                bias[...] = jnp.full(bias.shape, 0.7)
        x = np.random.default_rng(1).normal(size=(1, T, 8)).astype(np.float32)
        return layer(x, Place(np.arange(T)[None], None))[0]

    np.testing.assert_allclose(outputs(), outputs(key_bias=False), atol=1e-5)


@pytest.mark.parametrize("both_ways", [False, True])
def test_buckets_of_t5(both_ways):
    """Against the rule of the paper's code, one distance at a time."""
    config = RelativeBiasConfig(buckets=16, distance=40, both_ways=both_ways)

    def bucket(distance):
        count, first = 16, 0
        if both_ways:
            count, first = 8, (8 if distance > 0 else 0)
            distance = abs(distance)
        else:
            distance = max(-distance, 0)
        exact = count // 2
        if distance < exact:
            return first + distance
        return first + min(exact + int(np.log(distance / exact) / np.log(40 / exact) * (count - exact)), count - 1)

    distances = np.arange(-60, 61)
    np.testing.assert_array_equal(config.bucket(distances), [bucket(d) for d in distances])


def test_longrope_takes_one_set_of_factors_for_a_row():
    rope = LongRope(short=(1.0, 2.0), long=(3.0, 5.0), length=16, factor=4.0)
    np.testing.assert_allclose(rope.frequencies(100.0, 4, 16), [1.0, 0.1 / 2])
    np.testing.assert_allclose(rope.frequencies(100.0, 4, 17), [1 / 3, 0.1 / 5])
    assert rope.amplitude == pytest.approx(np.sqrt(1 + np.log(4) / np.log(16)))
    with pytest.raises(ConfigError, match="2 numbers, but heads 3 pairs"):
        rope.frequencies(100.0, 6, 16)


def test_latent_attention_equals_its_equations():
    """DeepSeek-V2, arXiv:2405.04434, equations 9 to 13 and 37 to 46, in float64."""
    config = LatentAttentionConfig(num_heads=3, query_rank=5, rank=7, head_dim=4, turned_dim=2, value_dim=6)
    layer = config.build(nnx.Rngs(params=0), 8, LOUD, 1)
    x = RNG.normal(size=(2, T, 8)).astype(np.float32)
    got, _ = layer(x, Place(np.arange(T)[None], None))

    w = {
        name: np.asarray(getattr(layer, name)[...], np.float64) for name in ("query_latent", "query", "latent", "expand", "output")
    }
    norm = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    angle = np.arange(T)

    def turn(x):
        z = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * angle)[None, :, None]
        return np.stack([z.real, z.imag], axis=-1)

    q = np.einsum("btr,rnh->btnh", norm(x @ w["query_latent"]), w["query"])
    down = x @ w["latent"]
    both = np.einsum("btr,rnh->btnh", norm(down[..., :7]), w["expand"])
    shared = np.repeat(turn(down[:, :, None, 7:]), 3, axis=2)
    q, k = np.concatenate([q[..., :4], turn(q[..., 4:])], -1), np.concatenate([both[..., :4], shared], -1)
    y = by_definition(q, k, both[..., 4:], CAUSAL, scale=6**-0.5)
    np.testing.assert_allclose(got, np.einsum("btnh,nhd->btd", y, w["output"]), atol=1e-5)


def test_the_clamped_gate_of_gpt_oss():
    config = MLPConfig(activation="gelu_quick", gated=True, limit=0.5, shift=1.0)
    up, gate = (3 * RNG.normal(size=50) for _ in range(2))
    cut = np.minimum(gate, 0.5)
    np.testing.assert_allclose(config.act(up, gate), cut * sigmoid(1.702 * cut) * (np.clip(up, -0.5, 0.5) + 1), atol=1e-5)


def mixture_by_token(layer, config, x):
    """One token and expert at a time, in float64."""
    get = lambda p: None if p is None else np.asarray(p[...], np.float64)  # noqa: E731
    router, y = config.router, np.zeros(x.shape)
    for at in np.ndindex(x.shape[:2]):
        scores = sigmoid(x[at] @ get(layer.router.matrix) + get(layer.router.bias))
        groups = scores.reshape(router.groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(axis=1))[: router.top_groups]
        allowed = [e for e in range(len(scores)) if e // groups.shape[1] in best]
        chosen = sorted(allowed, key=lambda e: -scores[e])[: router.top_k]
        for e in chosen:
            up, gate = (x[at] @ get(w)[e] + get(b)[e] for w, b in ((layer.up, layer.up_bias), (layer.gate, layer.gate_bias)))
            out = (gate * sigmoid(gate) * up) @ get(layer.down)[e] + get(layer.down_bias)[e]
            y[at] += scores[e] / sum(scores[c] for c in chosen) * out
        shared = np.maximum(x[at] @ get(layer.shared.up), 0) @ get(layer.shared.down)
        y[at] += sigmoid(x[at] @ get(layer.shared_gate)) * shared
    return y


@pytest.mark.parametrize("capacity", [None, 4.0])
def test_groups_biases_and_the_gate_of_what_is_shared(capacity):
    router = RouterConfig(scores="sigmoid", bias=True, groups=3, top_groups=2, top_k=2)
    expert, shared = MLPConfig(hidden=5, activation="silu", gated=True, bias=True), MLPConfig(hidden=5, activation="relu")
    config = MoEConfig(num_experts=6, expert=expert, router=router, shared=shared, shared_gate=True, capacity_factor=capacity)
    layer = config.build(nnx.Rngs(params=0), 8, LOUD, 1)
    for bias in (layer.router.bias, layer.up_bias, layer.gate_bias, layer.down_bias):
        bias[...] = jnp.asarray(RNG.normal(size=bias.shape), jnp.float32)
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    got, _ = layer(jnp.asarray(x), Place(np.arange(5)[None], None))
    np.testing.assert_allclose(got, mixture_by_token(layer, config, x), atol=2e-5)


def test_softmax_after_the_choice_is_the_renormalized_one():
    logits_, k = RNG.normal(size=(20, 8)), 3
    chosen = np.sort(logits_, axis=1)[:, -k:]
    gates = np.sort(softmax(logits_), axis=1)[:, -k:]
    np.testing.assert_allclose(softmax(chosen), gates / gates.sum(axis=1, keepdims=True))


def test_rows_that_pad_the_vocabulary_are_never_drawn_nor_trained():
    config = llama(vocab_multiple=32)
    config.head = dataclasses.replace(config.head, bias=True)
    graph, params = split(config.build(jax.random.key(0)))
    assert params["embedding"]["table"].shape[0] == 64 > VOCAB
    objective = LMConfig().build()
    grads = jax.grad(lambda p: objective(nnx.merge(graph, p), batch())["loss"].value)(params)
    table = np.asarray(grads["embedding"]["table"])
    assert np.abs(table[:VOCAB]).min(axis=1).max() > 0 and not table[VOCAB:].any()
    assert not np.asarray(grads["head"]["bias"])[VOCAB:].any()
    scores = logits(nnx.merge(graph, params), batch()["tokens"])
    assert scores[..., VOCAB:].max() < -1e29 < scores[..., :VOCAB].min()


def test_further_tokens_are_scored_within_their_document():
    """The loss of the second token against one made from the hidden states here."""
    config, data = latent(), batch(rows=2)
    segments = np.where(np.arange(16) < 7, 1, 2)[None].repeat(2, 0).astype(np.int32)
    data |= {"segments": segments}
    model = config.build(jax.random.key(0))
    terms = LMConfig().build()(model, data)
    scores = np.asarray(model.logits(model(data).further[0]), np.float64)[..., :VOCAB]
    losses = -np.log(np.take_along_axis(softmax(scores)[:, :-1], data["targets"][:, 1:, None], -1))[..., 0]
    same = segments[:, :-1] == segments[:, 1:]
    assert float(terms["cross_entropy_2"].value) == pytest.approx(losses[same].mean(), rel=1e-5)
    rest = float(terms["cross_entropy"].sum + model(data).loss * 32)
    assert float(terms["loss"].sum) == pytest.approx(rest + 0.3 * losses[same].sum(), rel=1e-5)


def test_a_further_token_does_not_look_ahead_of_itself():
    model, data = latent().build(jax.random.key(0)), batch(rows=1)
    changed = data["tokens"].copy()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    before, after = (np.asarray(model(data | {"tokens": t}).further[0]) for t in (data["tokens"], changed))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.abs(before[:, 8] - after[:, 8]).max() > 1e-3


def test_a_prompt_that_is_read_both_ways():
    """Cached decoding after a prefix against the whole row at once."""
    config = llama()
    model = config.build(jax.random.key(0))
    tokens = batch(rows=2, length=12)["tokens"]
    prefix = np.broadcast_to(np.arange(12) < 5, (2, 12)).astype(np.int32)
    whole = logits(model, tokens, prefix=prefix)
    assert np.abs(whole - logits(model, tokens))[:, 0].max() > 1e-3
    state = model.init_cache(2, 12, prefix=True)
    first, state = model.decode(tokens[:, :5], state, None, prefix[:, :5])
    second, _ = model.decode(tokens[:, 5:], state)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=3e-5)
    graph, params = split(model)
    new = generate(
        graph, params, tokens[:, :5].tolist(), max_tokens=1, sampling=SamplingConfig(temperature=0.0), bidirectional=True
    )
    assert [ids[0][0] for ids in new] == whole[:, 4].argmax(-1).tolist()


def test_patches_in_the_order_of_rows():
    config = PatchesConfig(height=4, image_width=6, patch=2, channels=3, class_token=True)
    layer = config.build(nnx.Rngs(params=0), 5, LOUD)
    x = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    got = np.asarray(layer(x, jnp.float32)) - np.asarray(layer.positions[...])
    w = np.asarray(layer.matrix[...])
    for number, (i, j) in enumerate(np.ndindex(2, 3)):
        square = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(got[:, 1 + number], np.einsum("bhwc,hwcd->bd", square, w), atol=1e-5)
    with pytest.raises(ConfigError, match=r"images are \(6, 4, 3\).*the model reads \(4, 6, 3\)"):
        layer(x.swapaxes(1, 2), jnp.float32)


def test_convolutions_over_time_equal_a_loop():
    layer = AudioConfig(mels=4, length=6, activation="relu").build(nnx.Rngs(params=0), 5, LOUD)
    x = RNG.normal(size=(2, 10, 4)).astype(np.float32)

    def convolve(x, w, stride):
        padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
        return np.stack([np.einsum("bkc,kcd->bd", padded[:, t : t + 3], w) for t in range(0, x.shape[1], stride)], axis=1)

    h = np.maximum(convolve(x, np.asarray(layer.first[...]), 1), 0)
    h = np.maximum(convolve(h, np.asarray(layer.second[...]), 2), 0)
    np.testing.assert_allclose(layer(x, jnp.float32), h + np.asarray(layer.positions[...])[:5], atol=1e-5)
    with pytest.raises(ConfigError, match=r"an even number of frames up to 12 of 4 bins"):
        layer(x[:, :9], jnp.float32)


def test_a_plain_llama_costs_what_it_did():
    """Parameters and operations of its program as they were before the knobs that are off in it. A change on purpose: delete the
    file, run this once, and say in the commit why."""
    config = llama()
    config.stack.pattern[0].mixer.qk_norm = None
    graph, params = split(jax.eval_shape(config.build, jax.random.key(0)))
    data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch()))
    objective = LMConfig().build()
    step = jax.grad(lambda params, batch: objective(nnx.merge(graph, params), batch)["loss"].value)
    shapes = {"/".join(str(k.key) for k in path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    found = {"parameters": shapes, "dot_flops": hlo.dot_flops(step, params, data), "operations": operations(step, params, data)}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1))
    golden = json.loads(GOLDEN.read_text())
    assert found["parameters"] == golden["parameters"]
    assert found["dot_flops"] == golden["dot_flops"]
    more = {name: count for name, count in found["operations"].items() if count > golden["operations"].get(name, 0)}
    assert not more, f"a plain Llama now computes more: {more}"


def operations(step, params, data):
    """How often each operation stands in the program as it is lowered, before any compiler."""
    counts: dict[str, int] = {}
    for line in jax.jit(step).lower(params, data).as_text().splitlines():
        words = [word for word in line.split() if word.startswith("stablehlo.")]
        for word in words[:1]:
            name = word.split("(")[0]
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (MLPConfig(limit=1.0), "for gated=True"),
        (RouterConfig(groups=2, top_groups=3), "top_groups=3 is above groups=2"),
        (RelativeBiasConfig(buckets=5), "must be even"),
        (LongRope(short=(1.0,), long=(1.0, 2.0)), "they are 1 and 2"),
        (LatentAttentionConfig(turned_dim=3), "must be even"),
        (PatchesConfig(patch=15), "does not divide an image of 224 x 224"),
        (AttentionConfig(chunk=0), "chunk=0 must be above 0"),
    ],
)
def test_wrong_values_are_named(part, message):
    with pytest.raises(ConfigError, match=message):
        validate_tree(part)
