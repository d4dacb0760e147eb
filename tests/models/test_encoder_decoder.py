"""Encoder-decoders: a target written token by token sees what the whole pass sees, and any mesh computes what one device does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, same_everywhere, shard_batch, use_mesh
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests.models_for_tests import LOUD, moe

VOCAB, ROWS, TARGETS, SOURCES = 24, 8, 8, 12
HEADS = {"num_heads": 4}


def build(encoder, decoder, cross, *, positions=None, bias=None, placement="pre") -> EncoderDecoderConfig:
    """Two layers each."""
    common = {"feed_forward": MLPConfig(hidden=48), "placement": placement}
    common["norm"] = NormConfig(kind="layer", bias=True) if placement == "post" else NormConfig()
    blocks = BlockConfig(mixer=encoder, **common), BlockConfig(mixer=decoder, cross=cross, **common)
    last = None if placement == "post" else NormConfig()
    stacks = (StackConfig(pattern=(block,), repeats=2, final_norm=last, relative_bias=bias) for block in blocks)
    embedding = EmbeddingConfig(positions=positions)
    both = dict(zip(("encoder", "stack"), stacks, strict=True))
    return EncoderDecoderConfig(vocab_size=VOCAB, width=32, embedding=embedding, init=dataclasses.replace(LOUD), **both)


def recurrent(cell: str, cross) -> EncoderDecoderConfig:
    """Both ways in the encoder."""
    return build(RecurrentConfig(cell=cell, direction="both"), RecurrentConfig(cell=cell), cross)


READ, WRITE, CROSS = AttentionConfig(causal=False, **HEADS), AttentionConfig(**HEADS), AttentionConfig(**HEADS)
SINUSOIDS = PositionTableConfig(kind="sinusoidal", length=16)
CONFIGS = {
    "original": build(READ, WRITE, CROSS, positions=SINUSOIDS, placement="post"),
    "t5": build(READ, WRITE, CROSS, bias=RelativeBiasConfig()),
    "rotary": build(*(dataclasses.replace(mixer, rotary=RotaryConfig()) for mixer in (READ, WRITE)), CROSS),
    "luong": recurrent("lstm", AttentionConfig(num_heads=1)),
    "bahdanau": recurrent("lstm", AdditiveAttentionConfig()),
    "bahdanau_gru": recurrent("gru", AdditiveAttentionConfig()),
}


def batch():
    """Sources of unequal length, padded at the end."""
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(0, VOCAB, (ROWS, length)).astype(np.int32)  # noqa: E731
    lengths = rng.integers(3, SOURCES + 1, ROWS)
    segments = (np.arange(SOURCES)[None, :] < lengths[:, None]).astype(np.int32)
    weights = rng.integers(0, 2, (ROWS, TARGETS)).astype(np.float32)
    return {
        "tokens": draw(TARGETS),
        "targets": draw(TARGETS),
        "weights": weights,
        "memory_tokens": draw(SOURCES),
        "memory_segments": segments,
        "segments": np.ones((ROWS, TARGETS), np.int32),
        "positions": np.tile(np.arange(TARGETS, dtype=np.int32), (ROWS, 1)),
    }


@functools.cache
def built(name):
    return jax.jit(CONFIGS[name].build)(jax.random.key(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token_equals_the_whole_pass(name):
    model, data = built(name), batch()
    whole = np.asarray(jax.jit(lambda batch: model.logits(model(batch).hidden))(data))
    inputs = {key: value for key, value in data.items() if key.startswith("memory_")}
    state = model.init_cache(ROWS, TARGETS, inputs=inputs)
    step = jax.jit(lambda tokens, state: model.decode(tokens, state))
    for t in range(TARGETS):
        logits, state = step(jnp.array(data["tokens"][:, t : t + 1]), state)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_of_a_source_changes_nothing(name):
    model, data = built(name), batch()
    changed = data | {"memory_tokens": np.where(data["memory_segments"] > 0, data["memory_tokens"], 5)}
    forward = jax.jit(lambda batch: model(batch).hidden)
    assert (changed["memory_tokens"] != data["memory_tokens"]).any()
    np.testing.assert_allclose(forward(changed), forward(data), rtol=1e-5, atol=1e-5)


def test_the_loss_of_an_encoder_is_a_mean_over_its_own_tokens():
    """However many targets there are: that of the router of a mixture of experts."""
    config = dataclasses.replace(
        CONFIGS["t5"], encoder=dataclasses.replace(moe(num_experts=4).stack, pattern=moe().stack.pattern[1:])
    )
    mixer = dataclasses.replace(config.encoder.pattern[0].mixer, causal=False)
    config.encoder.pattern = (dataclasses.replace(config.encoder.pattern[0], mixer=mixer),)
    model, data = config.build(jax.random.key(0)), batch()
    _, aux = model.encode(data)
    want = float(aux.loss) / data["memory_segments"].sum()
    half = data | {"segments": (np.arange(TARGETS) < 3).astype(np.int32) * data["segments"]}
    assert want > 0 and [float(model(targets).loss) for targets in (data, half)] == pytest.approx([want] * 2, rel=1e-5)


def test_a_source_beyond_the_position_table_is_refused():
    data = batch() | {"memory_tokens": np.zeros((ROWS, 17), np.int32), "memory_segments": np.ones((ROWS, 17), np.int32)}
    with pytest.raises(ConfigError, match="a text of 17 tokens exceeds the position table of 16 of the encoder"):
        built("original")(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["original", "bahdanau", "bahdanau_gru", "luong"])
def test_a_mesh_has_the_gradients_of_one_device(name):
    graph, params = split(built(name))

    def grads(place):
        step = functools.partial(gradients, graph=graph, objective=LMConfig(label_smoothing=0.1).build())
        return jax.jit(step)(params if place is None else placed, batch() if place is None else place(batch()), jax.random.key(0))

    want, terms = grads(None)
    mesh = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build()
    layout = Layout(heads=(), kv_heads=()) if name == "luong" else Layout()  # one head is not split
    with use_mesh(mesh, layout):
        placed = split(jax.jit(CONFIGS[name].build)(jax.random.key(0)))[1]
        got, mesh_terms = grads(lambda data: shard_batch(data, mesh, layout))
    np.testing.assert_allclose(mesh_terms["loss"].value, terms["loss"].value, rtol=1e-5)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1.0, np.abs(b).max()))  # noqa: E731
    jax.tree.map(near, got, want)


@pytest.mark.slow
def test_any_number_of_prompts_is_continued_on_a_pipeline():
    inputs = {name: value[:1] for name, value in batch().items() if name.startswith("memory_")}
    found = []
    for shape in (MeshShape(dp=1), MeshShape(dp=1, pp=2)):
        with use_mesh(shape.build(), Layout(micro_batches=4)):
            graph, params = split(jax.jit(CONFIGS["rotary"].build)(jax.random.key(0)))
            sampling = SamplingConfig(temperature=8.0)
            with same_everywhere():
                found.append(generate(graph, params, [[1, 2]], max_tokens=5, sampling=sampling, inputs=inputs))
    assert found[0] == found[1] and len(set(found[0][0][0])) > 1
