"""Objectives of denoising, trained: what their batches mean to the models, on one device and on a mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.masked_words import MaskedWords
from lm_jax.data.prefixes import PrefixLM
from lm_jax.data.span_corruption import UL2, SpanCorruption
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.encoder import EncoderConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.prepared import prepare
from lm_jax.train.step import gradients
from lm_jax.trained import evaluate
from tests.data.denoised_rows import VOCAB, Numbers, draws, stream_rows
from tests.models.test_classifier import classifier
from tests.models_for_tests import LOUD, llama
from tests.runs import evals, experiment, losses

KEY = jax.random.key(0)


def block(**fields) -> BlockConfig:
    return BlockConfig(feed_forward=MLPConfig(hidden=48), **fields)


def encoder(vocab_size: int = VOCAB + 1) -> EncoderConfig:
    return EncoderConfig(vocab_size=vocab_size, width=32, stack=classifier().stack, init=dataclasses.replace(LOUD))


def t5(vocab_size: int) -> EncoderDecoderConfig:
    both, past = AttentionConfig(num_heads=4, causal=False), AttentionConfig(num_heads=4)
    stack = lambda **fields: StackConfig(pattern=(block(**fields),), repeats=1, relative_bias=RelativeBiasConfig(buckets=8))  # noqa: E731
    return EncoderDecoderConfig(
        vocab_size=vocab_size,
        width=32,
        encoder=stack(mixer=both),
        stack=stack(mixer=past, cross=AttentionConfig(num_heads=4)),
        init=dataclasses.replace(LOUD),
    )


CASES = {
    "UL2": (UL2(), t5(VOCAB + 103)),
    "prefix": (PrefixLM(), llama(vocab_size=VOCAB)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_mesh_equals_one_device(name):
    denoise, config = CASES[name]
    rows = stream_rows(8, 16)
    data = denoise.build(Numbers(), 16)(rows, draws(rows))

    def step(params, data):
        return gradients(params, data, KEY, graph=graph, objective=LMConfig().build())

    graph, params = split(jax.jit(config.build)(KEY))
    grads, terms = jax.jit(step)(params, data)
    mesh, layout = MeshShape(dp=2, fsdp=4).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(config.build)(KEY))
        mesh_grads, mesh_terms = jax.jit(step)(params, shard_batch(data, mesh, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), mesh_grads, grads)
    assert float(mesh_terms["loss"].value) == pytest.approx(float(terms["loss"].value), rel=1e-5)
    assert float(terms["loss"].count) == data["weights"].sum()


def test_a_prefix_is_read_both_ways_and_nothing_behind_it_is_seen():
    model = llama(vocab_size=VOCAB).build(KEY)
    rows = stream_rows(4, 16)
    data = PrefixLM().build(Numbers(), 16)(rows, draws(rows))
    hidden = jax.jit(lambda batch: model(batch).hidden)
    before = hidden({name: data[name] for name in ("tokens", "prefix")})
    for row in range(4):
        size = int(data["prefix"][row].sum())
        for place in range(16):
            tokens = data["tokens"].copy()
            tokens[row, place] = (tokens[row, place] + 1) % VOCAB
            moved = np.abs(hidden({"tokens": tokens, "prefix": data["prefix"]}) - before)[row].max(axis=-1) > 1e-6
            first = 0 if place < size else place
            assert not moved[:first].any() and moved[first:].all()
        assert data["weights"][row].sum() == 16 - size + 1


def masked(folder):
    """A tiny masked language model of the text of `tests.runs`."""
    config = experiment(folder, num_steps=40)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, denoise=MaskedWords(rate=0.3)),
        model=encoder(config.model.vocab_size + 1),
        samples=None,
        evals=(PerplexityConfig(batch_size=8),),
    )


def test_a_masked_language_model_trains_and_is_evaluated_alike_each_time(tmp_path):
    config = masked(tmp_path)
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    loss = losses(tmp_path / "run")
    assert np.mean([loss[step] for step in range(31, 41)]) < np.mean([loss[step] for step in range(1, 11)]) - 0.2
    row = evals(tmp_path / "run")[40]
    assert "bits_per_byte" not in row and 0.2 < row["num_tokens"] / 1300 < 0.4
    ((_, scores),) = evaluate(tmp_path / "run")
    assert scores == pytest.approx({name: row[name] for name in scores}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("denoise", [SpanCorruption(rate=0.3, sentinels=5), PrefixLM()], ids=["spans", "prefix"])
def test_a_denoiser_trains_and_continues_a_prompt(denoise, tmp_path):
    config = experiment(tmp_path, num_steps=4)
    size = config.model.vocab_size + denoise.num_added
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, denoise=denoise),
        model=llama(vocab_size=size) if isinstance(denoise, PrefixLM) else t5(size),
    )
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert (tmp_path / "run" / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("denoise", "model", "message"),
    [
        (MaskedWords(), llama(), "a TextData is for masked words, and a DecoderConfig predicts next words"),
        (None, encoder(), "a TextData is for next words, and a EncoderConfig predicts masked words"),
        (PrefixLM(), t5(VOCAB), "reads memory_tokens, and a TextData has prefix, tokens"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, denoise, model, message):
    config = experiment(tmp_path)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, denoise=denoise), model=model, evals=(), samples=None
    )
    with pytest.raises(ConfigError, match=message):
        validate_tree(config)


def test_added_tokens_need_room_in_the_model(tmp_path):
    config = masked(tmp_path)
    size = 19  # the letters of the text, a space and the end
    config.model.vocab_size = size
    with pytest.raises(
        ConfigError, match=rf"vocab_size={size} is smaller than the {size + 1} of the data \({size} are the tokenizer's"
    ):
        prepare(config)
