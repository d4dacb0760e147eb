"""Runs that start from the parameters of another one, and parts that stay as they are."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.config import load_experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError, StorageError
from lm_jax.core.mesh import MeshShape
from lm_jax.data.cooccurrence import Cooccurrences
from lm_jax.data.labelled import LabelledLines, LabelledText
from lm_jax.data.tokenizers import RunTokenizer, Tokenizer, Words
from lm_jax.data.word_windows import WordWindows
from lm_jax.models.classifier import ClassifierConfig
from lm_jax.models.glove import GloVeConfig
from lm_jax.models.word_vectors import WordVectorsConfig
from lm_jax.objectives.glove import GloVeLossConfig
from lm_jax.objectives.negative_sampling import NegativeSamplingConfig
from lm_jax.parts import build
from lm_jax.train.checkpoint import CheckpointConfig, Checkpoints
from lm_jax.trained import load
from tests.runs import WORDS, events, experiment
from tests.test_denoising_runs import masked

ONE, EIGHT = MeshShape(dp=1), MeshShape(dp=2, fsdp=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(config, workdir) of a masked language model of two steps, with averaged parameters."""
    folder = tmp_path_factory.mktemp("source")
    config = masked(folder)
    config.train.num_steps, config.mesh, config.evals = 2, ONE, ()
    config.step.ema_decay = 0.5
    assert run.train(config, folder / "run") == 0
    return config, folder / "run"


def arrays(workdir, step=None):
    """Of a checkpoint, by name."""
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        return checkpoints.restore(step)[1]


def classifier_of(source, folder, **fields):
    """A classifier of texts with the layers of the masked language model."""
    config, workdir = source
    lines = [f"{' '.join(WORDS[i : i + 4])}\t{i % 3}" for i in range(20)]
    (folder / "train.tsv").write_text("\n".join(lines))
    model = config.model
    data = LabelledText(
        train=LabelledLines(paths=(str(folder / "train.tsv"),)), tokenizer=RunTokenizer(path=str(workdir)), length=32, batch_size=1
    )
    classes = {"vocab_size": model.vocab_size, "width": model.width, "classes": 3, "pool": "mean"}
    experiment = dataclasses.replace(
        config,
        data=data,
        model=ClassifierConfig(**classes, stack=model.stack, init=model.init),
        step=dataclasses.replace(config.step, ema_decay=None),
        start_from=str(workdir),
    )
    return dataclasses.replace(experiment, **fields)


def frozen(config, *parts):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, frozen=parts))


def test_what_fits_is_loaded_and_frozen_parts_stay_bit_by_bit(source, tmp_path):
    config = frozen(classifier_of(source, tmp_path), "embedding", "stack/block0/mixer")
    config.checkpoint.every = 1
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    before, after, first = arrays(source[1])["ema"], arrays(tmp_path / "run"), arrays(tmp_path / "run", 1)
    for name in before["stack"]["block0"]["mixer"]:
        jax.tree.map(
            np.testing.assert_array_equal,
            after["params"]["stack"]["block0"]["mixer"][name],
            before["stack"]["block0"]["mixer"][name],
        )
    jax.tree.map(np.testing.assert_array_equal, after["params"]["embedding"], before["embedding"])
    moved = [after["params"]["head"], after["params"]["stack"]["block0"]["feed_forward"], after["params"]["stack"]["final_norm"]]
    still = [first["params"]["head"], before["stack"]["block0"]["feed_forward"], before["stack"]["final_norm"]]
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(still), strict=True):
        assert (np.asarray(a) != np.asarray(b)).any()
    # No optimizer state for what is frozen.
    moments = after["opt"]["mu"]
    assert set(moments) == {"head", "stack"} and "mixer" not in moments["stack"]["block0"]
    (event,) = events(tmp_path / "run", "transfer")
    assert event["new"] == ["head/bias", "head/matrix"] and event["left"] == [] and "embedding/table" in event["loaded"]
    assert re.search(r"embedding/table +loaded +\[41, 32\]", event["message"])
    assert f"{source[1]}, step 2: {len(event['loaded'])} loaded, 2 new, 0 left" in event["message"]
    # A run that goes on does not start from it again.
    assert run.train(config, tmp_path / "run") == 0
    assert len(events(tmp_path / "run", "transfer")) == 1


@pytest.mark.slow
def test_a_mesh_loads_and_freezes_as_one_device(source, tmp_path):
    states = []
    for name, mesh in (("one", ONE), ("eight", EIGHT)):
        config = frozen(classifier_of(source, tmp_path, mesh=mesh), "embedding")
        config.data.batch_size = 8
        config.data.length = 8
        assert run.train(config, tmp_path / name) == 0
        states.append(arrays(tmp_path / name)["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states)
    np.testing.assert_array_equal(states[1]["embedding"]["table"], arrays(source[1])["ema"]["embedding"]["table"])


@pytest.mark.parametrize("kind", ["skip-gram", "glove"])
def test_word_vectors_are_the_first_embedding_of_a_language_model(kind, tmp_path):
    config = dataclasses.replace(experiment(tmp_path, num_steps=2), evals=(), samples=None, mesh=ONE)
    words = {"corpora": config.data.corpora, "tokenizer": Words(min_count=1), "cache_dir": config.data.cache_dir, "num_workers": 1}
    size = {"vocab_size": 64, "width": config.model.width}
    if kind == "glove":
        data, model, objective = Cooccurrences(length=8, **words), GloVeConfig(**size), GloVeLossConfig()
    else:
        data, model, objective = WordWindows(length=16, **words), WordVectorsConfig(**size), NegativeSamplingConfig()
    vectors = dataclasses.replace(config, data=data, model=model, objective=objective)
    validate_tree(vectors)
    assert run.train(vectors, tmp_path / "vectors") == 0
    config.data.tokenizer, config.model.vocab_size = RunTokenizer(path=str(tmp_path / "vectors")), 64
    config = frozen(dataclasses.replace(config, start_from=str(tmp_path / "vectors")), "embedding")
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    (event,) = events(tmp_path / "run", "transfer")
    assert event["loaded"] == ["embedding/table"] and any(name.startswith("stack/") for name in event["new"])
    assert event["left"] == (["bias", "context_bias", "contexts/table"] if kind == "glove" else ["contexts/table"])
    tables = [arrays(tmp_path / name)["params"]["embedding"]["table"] for name in ("vectors", "run")]
    np.testing.assert_array_equal(*tables)


def test_another_shape_is_drawn_anew_and_said(source, tmp_path):
    config = classifier_of(source, tmp_path)
    config.model.vocab_size += 4
    assert run.train(config, tmp_path / "run") == 0
    (event,) = events(tmp_path / "run", "transfer")
    size = source[0].model.vocab_size
    assert re.search(rf"embedding/table +new +\[{size + 4}, 32\] \(\[{size}, 32\] there\)", event["message"])


def test_the_tokenizer_of_a_run_is_that_of_its_checkpoint(source):
    tokenizer = RunTokenizer(path=str(source[1])).train([])
    expected = load(source[1]).tokenizer
    assert isinstance(tokenizer, Tokenizer) and tokenizer.hash == expected.hash


def test_what_cannot_be_started_from_is_named(source, tmp_path):
    config = classifier_of(source, tmp_path)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=Words(min_count=1)))
    other.model.vocab_size = 100
    with pytest.raises(ConfigError, match=r"is a run with another tokenizer.*RunTokenizer\(path="):
        run.train(other, tmp_path / "run")
    with pytest.raises(StorageError, match="nowhere holds no checkpoint; train that run first"):
        run.train(dataclasses.replace(config, start_from=str(tmp_path / "nowhere")), tmp_path / "run")
    with pytest.raises(DataError, match="nowhere holds no run with a checkpoint"):
        RunTokenizer(path=str(tmp_path / "nowhere")).train([])
    assert not (tmp_path / "run" / "config.json").exists()
    for parts, message in (
        (("stac",), "has no part 'stac'; did you mean 'stack'"),
        (("embedding", "stack", "head"), "nothing to train"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.train(frozen(config, *parts), tmp_path / "run")
    longer = frozen(config, "embedding")
    longer.model.vocab_size += 4
    with pytest.raises(ConfigError, match="start_from: embedding/table would be frozen as drawn: the source has no such thing"):
        run.train(longer, tmp_path / "run")
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, width=64))
    with pytest.raises(ConfigError, match=r"no parameter of .* has the path and shape of one here\n.*: 0 loaded"):
        run.train(wide, tmp_path / "wide")
    assert not (tmp_path / "wide" / "config.json").exists()


def test_it_is_set_on_the_command_line():
    changes = ["--config.start_from=runs/a", "--config.optimizer.frozen=('embedding',)"]
    config = load_experiment(["--config=experiments/masked_lm.py:scratch", *changes])
    assert config.start_from == "runs/a" and config.optimizer.frozen == ("embedding",)


def test_the_classifier_of_the_experiment_differs_in_its_head_only():
    pretrained, finetuned = (
        build(load_experiment([f"--config=experiments/masked_lm.py:{arg}"])).shapes for arg in ("pretrain", "finetune")
    )
    assert finetuned.keys() - {"head"} == pretrained.keys() - {"head"} == {"embedding", "stack"}
    for part in ("embedding", "stack"):
        assert jax.tree.map(lambda x: x.shape, finetuned[part]) == jax.tree.map(lambda x: x.shape, pretrained[part])
