"""Whole runs of a tagger and of a reader on made-up data whose test words training never had."""

import dataclasses
import json

import numpy as np
import pytest

from lm_jax import run
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.questions import Questions, SquadFiles
from lm_jax.data.splits import HashSplit
from lm_jax.data.tagged import TaggedLines, TaggedText
from lm_jax.data.tokenizers import Words
from lm_jax.evals.question_answering import QuestionAnsweringConfig
from lm_jax.evals.tagging import TaggingConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.init import Init
from lm_jax.objectives.spans import SpansConfig
from lm_jax.train.logging import read_metrics
from lm_jax.trained import evaluate
from tests.models.test_tagger import tagger
from tests.objectives.test_spans import reader
from tests.runs import experiment


def words(rng, number):
    """Words of four letters: hardly one occurs twice."""
    return ["".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(number)]


def trained(folder, num_steps, **parts):
    """(experiment, the rows of its eval) of a run on one device."""
    config = dataclasses.replace(experiment(folder, num_steps=num_steps), samples=None, **parts)
    config.mesh = dataclasses.replace(config.mesh, dp=1)
    validate_tree(config)
    assert run.train(config, folder / "run") == 0
    return config, [row for row in read_metrics(folder / "run") if row["kind"] == "eval"]


SMALL = {"init": Init(weights="fan_in", embedding_std=0.1), "vocab_size": 8}


@pytest.mark.slow
def test_a_tagger_finds_names_that_it_never_saw(tmp_path):
    """Names are two capitalised words."""
    rng, text = np.random.default_rng(0), ""
    for _ in range(300):
        name = [word.capitalize() for word in words(rng, 2)]
        before, after = words(rng, rng.integers(0, 4)), words(rng, rng.integers(0, 4))
        lines = [f"{w} O" for w in before] + [f"{name[0]} B-PER", f"{name[1]} I-PER"] + [f"{w} O" for w in after]
        text += "\n".join(lines) + "\n\n"
    (tmp_path / "train.txt").write_text(text)
    source = TaggedLines(paths=(str(tmp_path / "train.txt"),), separator=" ")
    data = TaggedText(train=source, split=HashSplit(validation=0.2), tokenizer=Words(min_count=99), length=32, batch_size=4)
    model = tagger(classes=3, features=FeaturesConfig(buckets=512, dropout=0.2), **SMALL)
    config, rows = trained(tmp_path, 80, data=data, model=model, evals=(TaggingConfig(every=80, decoding="viterbi"),))
    assert rows[-1]["f1"] > 0.95 and rows[-1]["num_spans"] > 40
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["text"] == sample["reference"] and sample["text"].endswith("[PER]")
    ((_, scores),) = evaluate(tmp_path / "run")
    assert scores["f1"] == rows[-1]["f1"]
    with pytest.raises(ConfigError, match="objective does not fit the model: a SpansConfig is for spans"):
        validate_tree(dataclasses.replace(config, objective=SpansConfig()))


@pytest.mark.slow
def test_a_reader_finds_what_a_question_points_to(tmp_path):
    """The answer is what stands after the word of the question."""
    rng, rows = np.random.default_rng(0), []
    for number in range(400):
        context = words(rng, 8)
        place = int(rng.integers(0, 7))
        start = sum(len(word) + 1 for word in context[: place + 1])
        answers = [{"text": context[place + 1], "answer_start": start}]
        rows.append({"context": " ".join(context), "qas": [{"id": str(number), "question": context[place], "answers": answers}]})
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": rows}]}))
    source = SquadFiles(paths=(str(tmp_path / "train.json"),))
    sizes = {"length": 32, "question_length": 4, "batch_size": 8}
    data = Questions(train=source, split=HashSplit(validation=0.2), tokenizer=Words(min_count=99), **sizes)
    model = reader(features=FeaturesConfig(buckets=512), **SMALL)
    evals = (QuestionAnsweringConfig(every=80),)
    _, rows = trained(tmp_path, 80, data=data, model=model, evals=evals, objective=SpansConfig())
    assert rows[-1]["exact_match"] > 0.9 and rows[-1]["num_questions"] > 50
