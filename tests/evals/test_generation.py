"""Texts that a model writes for a split: in order, the same whatever stands beside them, and shown on the run page."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.config import Experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.data.pairs import PairedText, Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.base import Shown
from lm_jax.evals.generation import GenerationConfig
from lm_jax.infer.beam import beam_search
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig
from lm_jax.trained import continuations, evaluate, load

TEXTS = ["ab", "cacb", "b", "abcabc", "ca"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "s.txt").write_text("\n".join(TEXTS))
    (folder / "t.txt").write_text("\n".join(text[::-1] for text in TEXTS))
    sides = (TextFiles(paths=(str(folder / f"{name}.txt"),), document="line") for name in "st")
    pairs = Pairs(source=next(sides), target=next(sides))
    return PairedText(train=pairs, test=pairs, tokenizer=Characters(), length=16, memory_length=16, batch_size=2)


def model() -> EncoderDecoderConfig:
    block = {"feed_forward": MLPConfig(hidden=16)}
    encoder = BlockConfig(mixer=AttentionConfig(num_heads=2, causal=False), **block)
    decoder = BlockConfig(mixer=AttentionConfig(num_heads=2), cross=AttentionConfig(num_heads=2), **block)
    encoder, decoder = (StackConfig(pattern=(part,), repeats=1) for part in (encoder, decoder))
    return EncoderDecoderConfig(
        vocab_size=4,
        width=16,
        encoder=encoder,
        stack=decoder,
        head=HeadConfig(tied=False),
        init=Init(weights="fan_in", embedding_std=1.0),
    )


def test_answers_are_in_order_and_as_if_alone(data):
    prepared, parts = data.prepare(), split(model().build(jax.random.key(1)))
    config = GenerationConfig(split="test", batch_size=2, beam=2, max_tokens=5, metrics=("exact", "f1"), show=1)
    got = list(config.scores(*parts, prepared, lambda batch: batch, slice(None)))
    written = [prepared.tokenizer.decode(ids) for ids in config.answers(*parts, prepared, TEXTS)]
    for text, answer in zip(TEXTS, written, strict=True):
        begin, inputs = data.prompts(prepared.tokenizer, [text])
        ids = beam_search(*parts, begin, beam=2, max_tokens=5, eos=prepared.tokenizer.eos, num_tokens=4, inputs=inputs)
        assert answer == prepared.tokenizer.decode(ids[0][0][1])
    assert len(set(written)) > 1
    scores = dict(item for item in got if not isinstance(item, Shown))
    assert scores["num_examples"] == 5 and scores["exact"] == np.mean([a == t[::-1] for a, t in zip(written, TEXTS, strict=True)])
    (item,) = (item for item in got if isinstance(item, Shown))
    assert (item.prompt, item.text, item.fields["reference"]) == ("ab\n", written[0], "ba")
    assert item.fields["table"]["columns"] == ["a", "b", "(end)"]
    assert "".join(item.fields["table"]["rows"]).removesuffix("(end)") == written[0]


@pytest.mark.slow
def test_a_run_shows_what_it_wrote(data, tmp_path):
    experiment = Experiment(
        data=data,
        model=model(),
        optimizer=AdamW(learning_rate=1e-2, schedule=Schedule(shape="constant")),
        train=TrainConfig(num_steps=1),
        mesh=MeshShape(dp=1),
        checkpoint=CheckpointConfig(every=0),
        evals=(GenerationConfig(name="test", split="test", metrics=("exact",), max_tokens=4, batch_size=8, limit=3, show=2),),
        samples=None,
    )
    validate_tree(experiment)
    assert run.train(experiment, tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["reference"], row["eval"]) for row in rows] == [("ab\n", "ba", "test"), ("cacb\n", "bcac", "test")]
    ((_, scores),) = evaluate(tmp_path)
    assert scores["num_examples"] == 3
    trained = load(tmp_path)
    chosen = {"max_tokens": 4, "sampling": SamplingConfig(temperature=0.0), "num_samples": 1, "seed": 0}
    ((text,),) = continuations(trained.experiment, trained.graph, trained.params, trained.tokenizer, ["ab"], **chosen)
    assert text == rows[0]["text"]


def test_what_would_fail_after_training_is_refused_before(data, monkeypatch):
    prepared, few = data.prepare(), model()
    few.embedding.positions = PositionTableConfig(length=16)
    config = GenerationConfig(split="test", max_tokens=16, metrics=("exact",))
    with pytest.raises(ConfigError, match="max_tokens=16 after a prompt of 1 tokens exceeds the model's position table of 16"):
        config.check(few, prepared)
    dataclasses.replace(config, max_tokens=15).check(few, prepared)
    with pytest.raises(ConfigError, match="the split 'test' holds no example to evaluate"):
        config.check(model(), types.SimpleNamespace(sources=lambda split: [], references=lambda split: []))
    config.check(model(), prepared)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # as where it is not installed
    with pytest.raises(ConfigError, match="needs the package sacrebleu: pip install"):
        GenerationConfig(split="test").check(model(), prepared)


def test_bad_fields_are_named():
    with pytest.raises(ConfigError, match=r"metrics='blue' is not one of .*did you mean 'bleu'"):
        validate_tree(GenerationConfig(metrics=("blue",)))
    with pytest.raises(ConfigError, match="beam=0 must be above 0"):
        validate_tree(GenerationConfig(beam=0))
