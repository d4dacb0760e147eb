"""Reading an experiment from its file and the command line."""

import dataclasses

import pytest

from lm_jax.config import load_experiment
from lm_jax.core.errors import ConfigError
from lm_jax.data.labelled import LabelledLines, LabelledText
from lm_jax.data.pairs import PairedText, Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.tokenizers import Bytes
from lm_jax.evals.classification import ClassificationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.classifier import ClassifierConfig
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import EarlyStopConfig

FILE = "--config=experiments/shakespeare.py"


def load(*overrides: str):
    """The smoke version of the quickstart with overrides."""
    return load_experiment([f"{FILE}:smoke", *(f"--config.{o}" for o in overrides)])


def test_the_argument_reaches_the_file():
    assert load_experiment([FILE]).model.width == 128 and load().model.width == 16


def test_overrides_have_the_type_of_their_field():
    config = load(
        "optimizer.learning_rate=1",
        "model.head.tied=false",
        "data.corpora[0].name=bard",
        "evals[0].batch_size=8",
        "model.stack.pattern[0].mixer.window=7",
        "samples.prompts=('a=b', 'c')",
    )
    assert config.optimizer.learning_rate == 1 and config.model.head.tied is False
    assert config.data.corpora[0].name == "bard" and config.evals[0].batch_size == 8
    assert config.model.stack.pattern[0].mixer.window == 7 and config.samples.prompts == ("a=b", "c")


def test_none_clears_an_optional_field():
    config = load("samples=None", "model.stack.final_norm=None", "step.clip_norm=none")
    assert config.samples is None and config.model.stack.final_norm is None and config.step.clip_norm is None


def test_an_override_changes_only_its_field():
    a, b = load(), load("train.seed=5")
    assert b.train.seed == 5
    assert dataclasses.replace(b, train=a.train) == a


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.sed=5", r"TrainConfig has no field 'sed'.*seed"),
        ("train.seed.x=5", "has no fields"),
        ("train.seed=1.5", "1.5"),
        ("data.corpora[1].name=x", r"\[1\] is not an index"),
        ("train.num_steps=None", "num_steps"),
    ],
)
def test_what_does_not_fit_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_fields_that_do_not_fit_each_other():
    config = load()
    lines = TextFiles(paths=("x",), document="line")
    translated = PairedText(train=Pairs(source=lines, target=lines), tokenizer=Bytes(), length=16)
    ngrams = LabelledText(train=LabelledLines(paths=("x",)), tokenizer=Bytes(), length=16, ngrams=2)
    for change, message in (
        ({"step": dataclasses.replace(config.step, accumulate=3)}, "batch_size=8 is not divisible by step.accumulate=3"),
        ({"objective": dataclasses.replace(config.objective, chunks=5)}, "length=16 is not divisible by objective.chunks=5"),
        ({"evals": config.evals * 2}, "two evals have one name"),
        ({"evals": (PerplexityConfig(chunks=5),)}, "'validation': its length=16 is not divisible by its chunks=5"),
        (
            {"evals": (PerplexityConfig(chunks=4, scored=0.3),)},
            "the 5 tokens of a row that are scored are not divisible by its chunks=4",
        ),
        (
            {"evals": (ClassificationConfig(),)},
            "evals 'validation' does not fit the model: a ClassificationConfig is for classes, and a Decoder",
        ),
        (
            {"model": ClassifierConfig()},
            "data does not fit the model: a TextData is for next words, and a ClassifierConfig predicts classes",
        ),
        (
            {"data": ngrams, "model": ClassifierConfig(), "evals": ()},
            "a LabelledText gives features to go by, and a ClassifierConfig does not read it",
        ),
        ({"data": translated}, "a PairedText gives memory_tokens to go by, and a DecoderConfig does not read it"),
        ({"train": dataclasses.replace(config.train, early_stop=EarlyStopConfig(metric="valid/loss"))}, "validation"),
        (
            {"train": dataclasses.replace(config.train, early_stop=EarlyStopConfig()), "evals": (PerplexityConfig(),)},
            "'validation': every=0, only at the end, is too late for train.early_stop",
        ),
        (
            {"checkpoint": CheckpointConfig(keep_best=1, best_metric="valid/loss")},
            "checkpoint.best_metric='valid/loss' names no eval",
        ),
        (
            {"checkpoint": CheckpointConfig(keep_best=1), "evals": (PerplexityConfig(),)},
            "'validation': every=0, only at the end, is too late for checkpoint.best_metric",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config, **change).validate()


def test_a_file_that_returns_something_else(tmp_path):
    (tmp_path / "other.py").write_text("import ml_collections\ndef get_config(arg=''):\n    return ml_collections.ConfigDict()\n")
    with pytest.raises(ConfigError, match="returned ConfigDict; it must return an Experiment"):
        load_experiment([f"--config={tmp_path / 'other.py'}"])
