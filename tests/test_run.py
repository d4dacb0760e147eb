"""Whole runs, in one process: what they leave, and what they survive."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.core.config import from_json, to_json, validate_tree
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.mesh import MeshShape
from lm_jax.data.labelled import LabelledLines, LabelledText
from lm_jax.data.prefixes import FillInTheMiddle
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import Words
from lm_jax.evals.classification import ClassificationConfig
from lm_jax.evals.generation import GenerationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.classifier import ClassifierConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.prepared import prepare
from lm_jax.train.checkpoint import CheckpointConfig, Checkpoints
from lm_jax.train.logging import MetricsLog, read_metrics
from lm_jax.train.trainer import EarlyStopConfig, NotFiniteError
from lm_jax.trained import continuations, evaluate, load
from tests.models.test_classifier import classifier
from tests.runs import evals, events, experiment, losses, stop_after

ONE, EIGHT, TWO = MeshShape(dp=1), MeshShape(dp=2, fsdp=4), MeshShape(dp=1, fsdp=2)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(experiment, workdir) of a run of 12 steps on one device, never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    config = experiment(folder)
    config.mesh = ONE
    assert run.train(config, folder / "run") == 0
    return config, folder / "run"


def state(workdir, step=None):
    """Arrays of a checkpoint."""
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        return checkpoints.restore(step)[1]


def test_what_a_run_leaves(straight):
    config, workdir = straight
    assert to_json(from_json(json.loads((workdir / "config.json").read_text()))) == to_json(config)
    assert json.loads((workdir / "versions.json").read_text())["packages"]["jax"] == jax.__version__
    assert list(losses(workdir)) == list(range(1, 13)) and list(evals(workdir)) == [4, 8, 12]
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [8, 12]
    row = next(row for row in read_metrics(workdir) if row["kind"] == "train")
    assert {"tokens", "wall", "grad_norm", "learning_rate", "tokens_per_second", "input_wait"} <= row.keys()
    sample = json.loads((workdir / "samples.jsonl").read_text().splitlines()[-1])
    assert sample["step"] == 12 and sample["prompt"] == "the "
    assert "uPlot" in (workdir / "report.html").read_text()
    assert list((workdir / "tensorboard").iterdir())
    first = events(workdir, "first_loss")[0]
    assert first["loss"] == losses(workdir)[1] and first["expected"] == pytest.approx(math.log(config.model.vocab_size))


def test_it_learns_and_the_first_loss_is_remarked_on(straight):
    _, workdir = straight
    assert losses(workdir)[12] < losses(workdir)[1] - 0.5
    assert "far from it" in events(workdir, "first_loss")[0]["message"]  # the test model starts loud


def test_eval_gives_the_number_that_training_logged(straight):
    _, workdir = straight
    for step in (8, 12):
        scores = dict(evaluate(workdir, step))["validation"]
        for name in ("loss", "bits_per_byte", "num_tokens"):
            assert scores[name] == pytest.approx(evals(workdir)[step][name], rel=1e-6)


def test_bits_per_byte_follow_from_the_loss_and_the_size_of_the_text(straight):
    config, workdir = straight
    text = Path(config.data.corpora[0].source.paths[0]).read_text()
    row = evals(workdir)[12]
    held_out = len(text) - math.floor(len(text) * 0.9)
    assert abs(row["num_tokens"] - held_out) <= 2  # each character once, and the end of the document
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * row["num_tokens"] / math.log(2) / held_out, rel=2e-3)


def test_a_run_goes_on_on_any_mesh(straight, tmp_path, monkeypatch):
    config, uninterrupted = straight
    workdir = tmp_path / "run"
    for mesh, stop in ((ONE, 3), (EIGHT, 7), (TWO, None)):
        stop_after(monkeypatch, stop)
        assert run.train(dataclasses.replace(config, mesh=mesh), workdir) == (0 if stop is None else 75)
        if stop:
            assert state(workdir, stop)["step"] == stop
    assert losses(workdir).keys() == losses(uninterrupted).keys()
    for step, loss in losses(uninterrupted).items():
        assert losses(workdir)[step] == pytest.approx(loss, abs=1e-5), step
    assert evals(workdir)[12]["loss"] == pytest.approx(evals(uninterrupted)[12]["loss"], abs=1e-5)
    records = []
    for folder in (workdir, uninterrupted):
        with Checkpoints(folder / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
            records.append(checkpoints.record(12)["progress"]["batches_digest"])
    assert records[0] == records[1]  # the same batches


def test_stopping_and_going_on_changes_no_bit(straight, tmp_path, monkeypatch):
    config, uninterrupted = straight
    stop_after(monkeypatch, 5)
    assert run.train(config, tmp_path / "run") == 75
    assert "step 5 is saved" in events(tmp_path / "run", "preempted")[0]["message"]
    stop_after(monkeypatch, None)
    assert run.train(config, tmp_path / "run") == 0
    jax.tree.map(np.testing.assert_array_equal, state(tmp_path / "run"), state(uninterrupted))


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(straight, tmp_path, monkeypatch):
    config, uninterrupted = straight
    stop_after(monkeypatch, 9)
    workdir = tmp_path / "run"
    run.train(config, workdir)
    victim = max((workdir / "checkpoints" / f"{9:010d}").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    stop_after(monkeypatch, None)
    assert run.train(config, workdir) == 0
    assert victim.name in events(workdir, "corrupt_checkpoint")[0]["message"]
    assert "from step 8" in events(workdir, "resume")[-1]["message"]
    jax.tree.map(np.testing.assert_array_equal, state(workdir), state(uninterrupted))


def test_a_run_whose_checkpoints_are_all_corrupt_does_not_start_afresh(straight, tmp_path, monkeypatch):
    config, _ = straight
    stop_after(monkeypatch, 2)
    run.train(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / f"{2:010d}" / "MANIFEST.json").unlink()
    with pytest.raises(StorageError, match=r"holds no good checkpoint \(steps seen: \[2\]\)"):
        run.train(config, tmp_path / "run")


def test_another_config_is_refused_with_the_fields_that_differ(straight):
    config, workdir = straight
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5))
    other.train = dataclasses.replace(config.train, seed=7)
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.01 -> 0\.5; train\.seed: 0 -> 7"):
        run.train(other, workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_text_that_changed_since_is_refused(tmp_path, monkeypatch):
    config = experiment(tmp_path, num_steps=4)
    stop_after(monkeypatch, 2)
    run.train(config, tmp_path / "run")
    with open(config.data.corpora[0].source.paths[0], "a") as file:
        file.write(" and all")
    with pytest.raises(ConfigError, match="training data differs"):
        run.train(config, tmp_path / "run")


def test_a_run_that_is_done_stays_done(straight):
    config, workdir = straight
    before = state(workdir)
    assert run.train(config, workdir) == 0
    assert list(losses(workdir)) == list(range(1, 13))
    jax.tree.map(np.testing.assert_array_equal, state(workdir), before)


def test_updates_that_are_not_finite_stop_the_run_and_name_the_documents(tmp_path):
    config = experiment(tmp_path)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=1e37)
    config.train.max_skips, config.checkpoint.every = 2, 1
    with pytest.raises(NotFiniteError, match=r"3 updates in a row .* the last good checkpoint is step \d+"):
        run.train(config, tmp_path / "run")
    skips = events(tmp_path / "run", "skip")
    assert len(skips) >= 3 and skips[-1]["documents"] and "text.txt" in str(skips[0]["documents"])
    assert any("block0" in name for name in skips[0]["gradient_norms"])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state(tmp_path / "run")))


def test_early_stopping(tmp_path):
    config = experiment(tmp_path, num_steps=40)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=0.0)
    config.train.early_stop = EarlyStopConfig(patience=2)
    assert run.train(config, tmp_path / "run") == 0
    assert list(evals(tmp_path / "run")) == [4, 8, 12]  # the first is the best, then two that are not better
    (stop,) = events(tmp_path / "run", "stop")
    assert re.search(r"has not improved on [\d.]+ of step 4 for 2 evaluations", stop["message"]) and stop["best_step"] == 4
    assert state(tmp_path / "run")["step"] == 12
    assert run.train(config, tmp_path / "run") == 0  # started again, it does not go on
    assert list(evals(tmp_path / "run")) == [4, 8, 12] and state(tmp_path / "run")["step"] == 12


def test_a_score_that_the_eval_does_not_have_stops_the_run(tmp_path):
    config = experiment(tmp_path, num_steps=40)
    config.train.early_stop = EarlyStopConfig(metric="validation/accuracy", mode="max")
    with pytest.raises(ConfigError, match=r"'validation/accuracy' is no score of that eval, which has validation/loss, "):
        run.train(config, tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 4  # what was trained is kept


def test_a_run_that_goes_on_knows_its_best_step(tmp_path, monkeypatch):
    config = experiment(tmp_path, num_steps=40)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=0.0)
    config.train.early_stop = EarlyStopConfig(patience=2)
    stop_after(monkeypatch, 6)
    assert run.train(config, tmp_path / "run") == 75
    stop_after(monkeypatch, None)
    assert run.train(config, tmp_path / "run") == 0
    (stop,) = events(tmp_path / "run", "stop")
    assert stop["step"] == 12 and stop["best_step"] == 4


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path, monkeypatch):
    """Stopped where an eval was due, a run goes on and stops as one that was not."""
    config = experiment(tmp_path, num_steps=40)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=0.0)
    config.train.early_stop = EarlyStopConfig(patience=2)
    stop_after(monkeypatch, 8)
    assert run.train(config, tmp_path / "run") == 75 and list(evals(tmp_path / "run")) == [4]
    stop_after(monkeypatch, None)
    assert run.train(config, tmp_path / "run") == 0
    assert list(evals(tmp_path / "run")) == [4, 8, 12] and state(tmp_path / "run")["step"] == 12
    (stop,) = events(tmp_path / "run", "stop")
    assert stop["step"] == 12 and stop["best_step"] == 4


def test_what_is_no_number_is_never_the_best():
    highest, lowest = EarlyStopConfig(mode="max"), EarlyStopConfig()
    for best, value, up, down in ((None, 0.5, True, True), (None, math.nan, False, False), (0.5, math.nan, False, False)):
        assert (highest.better(value, best), lowest.better(value, best)) == (up, down)
    assert highest.better(0.6, 0.5) and lowest.better(0.4, 0.5) and not lowest.better(0.6, 0.5) and not highest.better(0.5, 0.5)
    assert not highest.better(math.inf, 0.5)


@dataclasses.dataclass(kw_only=True)
class Failing(PerplexityConfig):
    full: ClassVar[bool] = True

    def scores(self, *args):
        if self.full:
            raise OSError("the disk of the evaluation is full")
        return super().scores(*args)


def test_a_step_whose_evaluation_fails_is_saved_and_evaluated_later(tmp_path, monkeypatch):
    config = experiment(tmp_path)
    config.checkpoint.every, config.evals = 0, (Failing(batch_size=8),)
    with pytest.raises(OSError, match="the disk of the evaluation is full"):
        run.train(config, tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 12 and load(tmp_path / "run").step == 12
    assert not evals(tmp_path / "run")
    monkeypatch.setattr(Failing, "full", False)
    for _ in range(2):  # once
        assert run.train(config, tmp_path / "run") == 0
        assert list(evals(tmp_path / "run")) == [12]


def test_a_batch_that_the_objective_cannot_read_is_refused_before_the_directory_is_claimed(tmp_path):
    config = experiment(tmp_path)
    config.objective = LMConfig(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="class_weights has 2 numbers, and the model scores"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_samples_beyond_the_position_table_are_refused_before_training(tmp_path):
    config = experiment(tmp_path)
    config.model.embedding.positions = PositionTableConfig(length=16)
    config.samples.max_tokens = 12  # after end-of-text and "the ": 17 positions
    with pytest.raises(ConfigError, match=r"position table of 16; set --config.samples.max_tokens=11"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    config.samples.max_tokens = 11
    assert prepare(config)


def test_a_step_that_compiles_again_is_reported(tmp_path):
    def train_step(x):
        return x + 1

    step = jax.jit(train_step)
    with MetricsLog(tmp_path, 0, 1) as log, run._compilations(log):
        for size in (2, 2, 3):
            step(np.zeros(size, np.float32))
    assert len(events(tmp_path, "compile")) == 1 and len(events(tmp_path, "recompile")) == 1


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_stays(straight, tmp_path):
    config, uninterrupted = straight
    (tmp_path / "exp.py").write_text(
        "import json, lm_jax.core.config as c\n"
        f"def get_config(arg=''):\n    return c.from_json(json.loads({json.dumps(to_json(config))!r}))\n"
    )
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--config={tmp_path / 'exp.py'}", f"--workdir={workdir}"]

    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    small_files = ["bash", "-c", 'ulimit -S -f 60; exec "$0" "$@"']  # no file above 60 KiB
    failed = subprocess.run([*small_files, *command], env=env, capture_output=True, text=True)
    assert failed.returncode == 74, failed.stderr
    # One line of ours; a thread of TensorStore may complain after it.
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("lm-jax:")]
    assert line.startswith("lm-jax: step 4 could not be saved") and line.endswith("there is no checkpoint yet")
    again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    jax.tree.map(np.testing.assert_array_equal, state(workdir), state(uninterrupted))


def test_what_the_data_cannot_give_is_named_before_training(tmp_path):
    config = experiment(tmp_path)
    with pytest.raises(ConfigError, match=r"evals 'texts': a GenerationConfig reads references, which a TextData does not have"):
        prepare(dataclasses.replace(config, evals=(GenerationConfig(name="texts"),)))
    config.data.denoise, config.samples.prompts = FillInTheMiddle(), ("<FILL> the <FILL>",)
    config.model.vocab_size += 3
    with pytest.raises(ConfigError, match="a prompt has 2 times '<FILL>'"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_checkpoint_of_any_mesh_generates_the_same_text(tmp_path):
    config = experiment(tmp_path, num_steps=2)
    config.mesh = EIGHT
    run.train(config, tmp_path / "run")
    trained = load(tmp_path / "run")
    texts = continuations(
        trained.experiment,
        trained.graph,
        trained.params,
        trained.tokenizer,
        ("the ",),
        max_tokens=8,
        sampling=config.samples.sampling,
        num_samples=1,
        seed=config.train.seed,
    )
    logged = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[-1])
    assert texts == [[logged["text"]]]


def test_a_classifier_trains_evaluates_and_writes_no_text(tmp_path):
    """Texts whose label is whether they hold the word "good"."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "film", "of", "good"], 5)) for _ in range(300)]
    (tmp_path / "train.tsv").write_text("".join(f"{text}\t{int('good' in text)}\n" for text in texts))
    source = LabelledLines(paths=(str(tmp_path / "train.tsv"),))
    data = LabelledText(train=source, split=HashSplit(validation=0.2), tokenizer=Words(), length=16, batch_size=8)
    config = dataclasses.replace(
        experiment(tmp_path, num_steps=60),
        data=data,
        model=ClassifierConfig(vocab_size=8, width=16, stack=classifier("max").stack, pool="max"),
        evals=(ClassificationConfig(every=20),),
        samples=None,
    )
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["accuracy"] > 0.95
    ((_, scores),) = evaluate(tmp_path / "run")
    assert scores["accuracy"] == rows[-1]["accuracy"] and scores["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-5)
    with pytest.raises(ConfigError, match="is for perplexity"):
        dict(evaluate(tmp_path / "run", stride=4))
    trained = load(tmp_path / "run")
    with pytest.raises(ConfigError, match="a ClassifierConfig writes no text"):
        sampling = SamplingConfig()
        chosen = {"max_tokens": 3, "sampling": sampling, "num_samples": 1, "seed": 0}
        continuations(trained.experiment, trained.graph, trained.params, trained.tokenizer, [""], **chosen)
    few = dataclasses.replace(config, model=dataclasses.replace(config.model, classes=3))
    (tmp_path / "train.tsv").write_text("a\t0\nfilm\t1\nof\t2\ngood\t3\n")
    with pytest.raises(ConfigError, match=r"model.classes=3 is below the 4 of the training data; set --config.model.classes=4"):
        prepare(dataclasses.replace(few, data=dataclasses.replace(data, split=None), evals=()))


def test_what_the_objective_says_of_its_first_terms_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(LMConfig, "remarks", lambda self, terms: [f"a loss of {terms['loss']:.4f}"])
    assert run.train(dataclasses.replace(experiment(tmp_path, num_steps=2), evals=(), samples=None), tmp_path / "run") == 0
    (remark,) = events(tmp_path / "run", "remark")
    assert remark["message"] == f"a loss of {losses(tmp_path / 'run')[1]:.4f}" and remark["step"] == 1
