"""The decoder: causality, documents, caching, sharding, precision, counts."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import logical_axes, split
from lm_jax.core.sharding import Layout, check_divisible, parameter_sizes
from lm_jax.models.multi_token import MultiTokenConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.gated_delta import GatedDeltaConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig, _later
from lm_jax.optim.groups import KINDS, kind, map_axes
from tests import hlo
from tests.models_for_tests import MODELS, VOCAB, batch, gpt2, llama, logits

KEY = jax.random.key(0)
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def built(name: str):
    return MODELS[name].build(KEY)


@every_model
def test_a_later_token_never_moves_an_earlier_logit(name):
    tokens = batch()["tokens"]
    before = logits(built(name), tokens)
    for at in (1, 7, 15):
        changed = tokens.copy()
        changed[:, at] = (changed[:, at] + 1) % VOCAB
        after = logits(built(name), changed)
        np.testing.assert_array_equal(after[:, :at], before[:, :at])
        assert np.abs(after[:, at:] - before[:, at:]).max() > 1e-3


def test_a_window_forgets_what_lies_before_it():
    config = llama()
    config.stack.pattern[0].mixer.window = 3
    model, tokens = config.build(KEY), batch(length=32)["tokens"]
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    reach = config.stack.repeats * (3 - 1)  # each layer looks 2 tokens further back
    before, after = logits(model, tokens), logits(model, changed)
    np.testing.assert_array_equal(after[:, reach + 1 :], before[:, reach + 1 :])
    assert np.abs(after[:, reach] - before[:, reach]).max() > 0


@every_model
def test_packed_documents_equal_the_documents_alone(name):
    model, rng = built(name), np.random.default_rng(1)
    a, b = rng.integers(0, VOCAB, (1, 6)).astype(np.int32), rng.integers(0, VOCAB, (1, 7)).astype(np.int32)
    packed = np.concatenate([a, b, np.zeros((1, 3), np.int32)], axis=1)
    segments = np.array([[1] * 6 + [2] * 7 + [0] * 3], np.int32)
    positions = np.array([[*range(6), *range(7), *range(3)]], np.int32)
    together = logits(model, packed, segments=segments, positions=positions)
    np.testing.assert_allclose(together[:, :6], logits(model, a), atol=2e-5)
    np.testing.assert_allclose(together[:, 6:13], logits(model, b), atol=2e-5)


@every_model
def test_cached_decoding_equals_the_full_forward_pass(name):
    model, tokens = built(name), batch(rows=2)["tokens"]
    full = logits(model, tokens)
    decode = jax.jit(lambda tokens, state: model.decode(tokens, state))
    state = model.init_cache(2, 16)
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 15), (15, 16)):
        part, state = decode(tokens[:, start:stop], state)
        np.testing.assert_allclose(part, full[:, start:stop], atol=3e-5)


@every_model
def test_left_padding_changes_nothing(name):
    model, tokens = built(name), batch(rows=2, length=8)["tokens"]
    padded = np.concatenate([np.zeros((2, 3), np.int32), tokens], axis=1)
    weights = np.concatenate([np.zeros((2, 3), np.int32), np.ones((2, 8), np.int32)], axis=1)
    alone, _ = model.decode(tokens, model.init_cache(2, 12))
    beside, _ = model.decode(padded, model.init_cache(2, 12), weights)
    np.testing.assert_allclose(beside[:, 3:], alone, atol=2e-5)


def test_a_context_limit_equals_a_window():
    config, tokens = llama(), batch(rows=2)["tokens"]
    limited, _ = config.build(KEY).decode(tokens, config.build(KEY).init_cache(2, 16, context=4))
    config.stack.pattern[0].mixer.window = 4
    np.testing.assert_allclose(limited, logits(config.build(KEY), tokens), atol=2e-5)


@pytest.mark.parametrize("implementation", ["xla"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_implementations_agree(implementation, window, packed):
    tokens = batch()["tokens"]
    segments = np.where(np.arange(16) < 6, 1, 2).astype(np.int32)[None, :].repeat(8, 0)
    more = {"segments": segments} if packed else {}
    results = []
    for choice in ("reference", implementation):
        config = llama()
        config.stack.pattern[0].mixer.implementation = choice
        config.stack.pattern[0].mixer.window = window
        results.append(logits(config.build(KEY), tokens, **more))
    np.testing.assert_allclose(*results, atol=2e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_in_float32():
    low, high = llama(dtype="bfloat16").build(KEY), llama().build(KEY)
    tokens = batch()["tokens"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(split(low)[1]))
    assert low({"tokens": tokens}).hidden.dtype == jnp.bfloat16
    a, b = logits(low, tokens), logits(high, tokens)
    assert a.dtype == np.float32
    error = np.abs(a - b).max() / np.abs(b).max()
    assert 1e-5 < error < 0.05
    text = jax.jit(lambda t: low.logits(low({"tokens": t}).hidden)).lower(tokens).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert dots and all("xbf16>" in line.split(":")[-1].split("->")[0] for line in dots)
    softmax = [line for line in text.splitlines() if "stablehlo.exponential" in line and "16x16x" in line]
    assert softmax and all("bf16" not in line for line in softmax)


def test_dropout_needs_a_key_and_follows_it():
    config = llama()
    config.stack.pattern[0].dropout = 0.3
    config.embedding.dropout = 0.1
    model, data = config.build(KEY), batch()
    run = jax.jit(lambda key: model(data, key=key).hidden)
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 0.1
    np.testing.assert_array_equal(model(data).hidden, llama().build(KEY)(data).hidden)


@every_model
def test_flops_equal_the_compiled_programs(name):
    config = dataclasses.replace(copy.deepcopy(MODELS[name]), vocab_multiple=1)
    for block in config.stack.pattern:
        if isinstance(block.feed_forward, MoEConfig):
            block.feed_forward.capacity_factor = 1.0  # dropless products have no fixed number of rows
    config = dataclasses.replace(config, stack=dataclasses.replace(config.stack, remat="none"))
    graph, params = split(jax.eval_shape(config.build, KEY))
    data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch()))
    objective = LMConfig().build()
    step = jax.grad(lambda params, batch: objective(nnx.merge(graph, params), batch)["loss"].value)
    counted = hlo.dot_flops(step, params, data)
    tokens = data["tokens"].size
    deltas = [block.mixer for block in config.stack.layers if isinstance(block.mixer, GatedDeltaConfig)]
    # The gradient of a triangular solve is a product; 16 tokens fill 4 chunks of 5.
    counted -= sum(2 * mixer.num_heads * mixer.chunk * mixer.value_dim * 20 / 16 for mixer in deltas) * tokens
    # The input's gradient is not needed by the first product of a model, and a window does not shrink the full square.
    assert counted == pytest.approx(config.flops_per_token(16, causal=False) * tokens, rel=1e-6)


def test_causal_flops_count_the_visible_scores():
    mixer = AttentionConfig(num_heads=2, head_dim=8, window=5)
    visible = np.mean([min(t + 1, 5) for t in range(16)])
    projections = 2 * 32 * 8 * (2 * 2 + 2 * 2)
    assert mixer.flops_per_token(32, 16, causal=True) == pytest.approx(projections + 4 * visible * 2 * 8)


def test_every_parameter_has_an_axis_name_for_every_dimension():
    for config in MODELS.values():
        model = jax.eval_shape(config.build, KEY)
        shapes = jax.tree.leaves(split(model)[1])
        axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda x: isinstance(x, tuple))
        assert [len(names) for names in axes] == [x.ndim for x in shapes]
        assert {name for names in axes for name in names} <= {f.name for f in dataclasses.fields(Layout)}


def test_every_parameter_is_in_a_group_of_the_optimizers():
    for config in MODELS.values():
        groups = map_axes(kind, logical_axes(jax.eval_shape(config.build, KEY)))
        assert set(jax.tree.leaves(groups)) <= set(KINDS)
    mixers = map_axes(kind, logical_axes(jax.eval_shape(MODELS["recurrent"].build, KEY)))["stack"]
    lstm, griffin = mixers["block0"]["mixer"]["forward"], mixers["block1"]["mixer"]
    assert lstm == {"input": "matrix", "matrix": "matrix", "bias": "vector"}
    assert griffin["convolution"] == {"matrix": "vector", "bias": "vector"} and griffin["input_gate"] == "matrix"


def test_a_relative_bias_may_follow_a_recurrent_layer():
    pattern = (BlockConfig(mixer=RecurrentConfig()), BlockConfig(mixer=AttentionConfig(num_heads=4)))
    model = llama(stack=StackConfig(pattern=pattern, repeats=1, relative_bias=RelativeBiasConfig())).build(KEY)
    changed = llama(stack=StackConfig(pattern=pattern, repeats=1, relative_bias=RelativeBiasConfig())).build(KEY)
    changed.stack.relative_bias.table[...] += jax.random.normal(KEY, changed.stack.relative_bias.table.shape)
    assert np.abs(logits(model, batch()["tokens"]) - logits(changed, batch()["tokens"])).max() > 1e-3


def test_a_further_token_is_not_seen_in_a_prefix():
    """Where a target of a module has weight, the module's state does not change with it."""
    config = llama(multi_token=MultiTokenConfig(depth=2, block=llama().stack.pattern[0]))
    model, T = config.build(KEY), 12
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, T)).astype(np.int32)
    prefix = (np.arange(T) < 5).astype(np.int32)[None]
    data = {
        "tokens": tokens,
        "prefix": prefix,
        "targets": np.roll(tokens, -1, 1),
        "weights": (np.arange(T) >= 4)[None] * np.float32(1),
    }
    states = jax.jit(lambda tokens: model(data | {"tokens": tokens}).further)
    before = states(tokens)
    for k in (1, 2):
        weights = np.asarray(_later(data, k)["weights"])[0]
        assert weights[4 : T - k].all() and not weights[:4].any()
        for place in np.flatnonzero(weights):
            if place + k + 1 < T:
                other = tokens.copy()
                other[0, place + k + 1] = (other[0, place + k + 1] + 1) % VOCAB
                np.testing.assert_allclose(states(other)[k - 1][0, place], before[k - 1][0, place], atol=1e-5)


def test_an_axis_that_does_not_divide_is_named_with_its_numbers():
    _, params = split(jax.eval_shape(llama(width=36).build, KEY))
    model = jax.eval_shape(llama(width=36).build, KEY)
    expected = r"embedding/table and \d+ more: embed=36 is not divisible by the 8 devices of fsdp=8; 32 or 40 is"
    with pytest.raises(ConfigError, match=expected):
        check_divisible(parameter_sizes(params, logical_axes(model)), Layout(), MeshShape(fsdp=8, dp=1).build())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=30), "width=30 is not divisible by num_heads=4"),
        (dict(dtype="float31"), "did you mean 'float32'"),
        (dict(vocab_size=0), "vocab_size=0 must be above 0"),
    ],
)
def test_bad_values_are_named(change, message):
    from lm_jax.core.config import validate_tree

    with pytest.raises(ConfigError, match=message):
        validate_tree(dataclasses.replace(gpt2(), **change))
    for mixer in (AttentionConfig(num_heads=4, causal=False), RecurrentConfig(direction="both")):
        stack = StackConfig(pattern=(BlockConfig(mixer=mixer),))
        with pytest.raises(ConfigError, match="a token would see the next one, which it is to predict"):
            validate_tree(dataclasses.replace(gpt2(), stack=stack))
        further = MultiTokenConfig(block=BlockConfig(mixer=mixer))
        with pytest.raises(ConfigError, match="a token would see those that it is to predict"):
            validate_tree(dataclasses.replace(llama(), multi_token=further))
    further = MultiTokenConfig(block=BlockConfig(mixer=AttentionConfig(num_heads=5)))
    with pytest.raises(ConfigError, match="width=32 is not divisible by num_heads=5"):
        validate_tree(dataclasses.replace(llama(), multi_token=further))
    mixed = tuple(BlockConfig(mixer=AttentionConfig(num_heads=heads)) for heads in (4, 2))
    with pytest.raises(ConfigError, match=r"relative_bias has one number for each head of all attention, .* have \[2, 4\] heads"):
        validate_tree(dataclasses.replace(llama(), stack=StackConfig(pattern=mixed, relative_bias=RelativeBiasConfig())))
    with pytest.raises(ConfigError, match="num_heads=4 is not divisible by num_kv_heads=3"):
        AttentionConfig(num_heads=4, num_kv_heads=3).validate()
