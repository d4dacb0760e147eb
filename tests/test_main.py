"""The command line: what each command does, and what bad input gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm_jax.core.config import to_json
from lm_jax.main import main
from tests.runs import experiment

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The path of an experiment file whose run takes seconds; its text lies beside it."""
    folder = tmp_path_factory.mktemp("experiment")
    small = experiment(folder, num_steps=2)
    path = folder / "words.py"
    path.write_text(
        "import json\nfrom lm_jax.core.config import from_json\n"
        f"def get_config(arg=''):\n    return from_json(json.loads({json.dumps(to_json(small))!r}))\n"
    )
    return path


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """A finished run, in a path with a space."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    assert main(["train", f"--config={config}", f"--workdir={folder}"]) == 0
    return folder


def fails(capsys, arguments: list[str], code: int) -> str:
    """The one line that the command prints when it fails with `code`."""
    capsys.readouterr()
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("lm-jax: ") and error.count("\n") == 1, error
    return error


def test_help_imports_no_jax_and_prints_no_warning():
    script = (
        "import sys\nfrom lm_jax.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'flax', 'absl', 'ml_collections'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "" and "generate" in result.stdout


def test_importing_everything_prints_no_warning_and_no_tensorflow():
    script = (
        "import sys, lm_jax.run, lm_jax.verify, lm_jax.data.audit, lm_jax.study.report\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_eval_generate_and_report_read_the_run(workdir, capsys):
    assert main(["eval", f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("validation loss=")
    assert main(["eval", f"--workdir={workdir}", "--split=train", "--stride=4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("train loss=")
    command = ["generate", f"--workdir={workdir}", "--prompt=the ", "--num_samples=2", "--max_tokens=5", "--seed=3"]
    texts = []
    for _ in range(2):
        assert main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].count("the ") >= 2
    (workdir / "report.html").unlink()
    assert main(["report", f"--workdir={workdir}"]) == 0
    assert (workdir / "report.html").stat().st_size > 10_000


def test_prepare_audit_and_show(config, capsys):
    assert main(["prepare", f"--config={config}"]) == 0
    assert "words train: 1 documents" in capsys.readouterr().out
    assert main(["data", "audit", f"--config={config}"]) == 0
    assert "11,168" in capsys.readouterr().out  # every token of the text
    assert main(["data", "show", f"--config={config}", "--step=1"]) == 0
    assert "text.txt" in capsys.readouterr().out


def test_ngram_scores_as_eval_does_and_names_bad_input(config, capsys):
    assert main(["ngram", f"--config={config}", "--order=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("order 1: ") and lines[-2].startswith("validation loss=") and "bits_per_byte=" in lines[-2]
    assert "order=0" in fails(capsys, ["ngram", f"--config={config}", "--order=0"], 2)
    assert "'validation'" in fails(capsys, ["ngram", f"--config={config}", "--split=validaton"], 65)
    assert "data.denoise rewrites it" in fails(capsys, ["ngram", "--config=experiments/code.py:fim"], 2)


@pytest.mark.parametrize(
    "override, words",
    [
        ("optimizer.learning_rat=1", ["learning_rat", "learning_rate"]),
        ("modle.width=8", ["modle", "model"]),
        ("model.width=wide", ["model.width", "wide"]),
        ("model.width=30", ["width=30", "num_heads=4"]),
        ("model.stack.pattern[0].mixer.num_kv_heads=3", ["num_heads=4", "num_kv_heads=3"]),
        ("model.stack.pattern[3].dropout=0.1", ["[3]"]),
        ("model.stack.pattern[0].feed_forward.activation=sillu", ["sillu", "silu"]),
        ("step.accumulate=3", ["batch_size=8", "accumulate=3"]),
        ("data.batch_size=12", ["=12", "8 devices"]),
        ("mesh.fsdp=16", ["16 devices", "8 are here"]),
        ("mesh.fsdp=3", ["'fsdp': 3", "8 are here"]),
        ("model.vocab_size=10", ["model.vocab_size=10", "19"]),
        ("data.weights=(1.0,2.0)", ["weights"]),
        ("train.num_steps=0", ["num_steps=0"]),
        ("checkpoint.every=-1", ["every=-1"]),
        ("layout.embed=('fdsp',)", ["fdsp", "fsdp"]),
        ("samples.sampling.top_p=1.5", ["top_p=1.5"]),
    ],
)
def test_a_bad_setting_is_named_before_anything_is_made(config, tmp_path, capsys, override, words):
    folder = tmp_path / "run"
    error = fails(capsys, ["train", f"--config={config}", f"--workdir={folder}", f"--config.{override}"], 2)
    assert all(word in error for word in words), error
    assert not (folder / "config.json").exists()


@pytest.mark.parametrize(
    "make, words",
    [
        (None, ["missing.txt"]),
        (b"", ["no training text", "missing.txt"]),
        (b"good \xff bad", ["missing.txt", "5"]),
        (b"too short", ["length=16"]),
    ],
)
def test_bad_text_is_named(config, tmp_path, capsys, make, words):
    path = tmp_path / "missing.txt"
    if make is not None:
        path.write_bytes(make)
    override = f"--config.data.corpora[0].source.paths=('{path}',)"
    error = fails(capsys, ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", override], 65)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config.json").exists()


def test_other_bad_commands(config, workdir, tmp_path, capsys):
    assert "--config" in fails(capsys, ["prepare"], 2)
    assert "no file" in fails(capsys, ["prepare", "--config=nowhere.py"], 2)
    assert "holds no run" in fails(capsys, ["eval", f"--workdir={tmp_path}"], 74)
    assert "--step=-1" in fails(capsys, ["data", "show", f"--config={config}", "--step=-1"], 2)
    assert "--kills=-1" in fails(capsys, ["verify", "resume", f"--config={config}", "--kills=-1"], 2)
    assert "no split 'tset'" in fails(capsys, ["eval", f"--workdir={workdir}", "--split=tset"], 65)
    assert "stride=999" in fails(capsys, ["eval", f"--workdir={workdir}", "--stride=999"], 2)
    assert "checkpoint of step 9" in fails(capsys, ["eval", f"--workdir={workdir}", "--step=9"], 74)
    assert "there are [2]" in fails(capsys, ["generate", f"--workdir={workdir}", "--step=9"], 74)
    assert "top_k" in fails(capsys, ["generate", f"--workdir={workdir}", "--top_k=0"], 2)
    assert "vocabulary" in fails(capsys, ["generate", f"--workdir={workdir}", "--prompt=ÄÖ"], 65)
    assert "reads the config of the run" in fails(capsys, ["eval", f"--workdir={workdir}", "--config.train.seed=1"], 2)
    error = fails(capsys, ["train", f"--config={config}", f"--workdir={tmp_path / 'r'}", "--config.evals[0].split=tset"], 65)
    assert "--step=-1" in fails(capsys, ["data", "show", f"--config={config}", "--step=-1"], 2)
    assert "--kills=-1" in fails(capsys, ["verify", "resume", f"--config={config}", "--kills=-1"], 2)
    assert "no split 'tset'" in error and not (tmp_path / "r" / "config.json").exists()
    (tmp_path / "file").write_text("")
    assert "--workdir" in fails(capsys, ["train", f"--config={config}", f"--workdir={tmp_path / 'file'}"], 74)
    for arguments in (["train", f"--config={config}"], ["eval", f"--workdir={workdir}", "--stepp=1"], ["fly"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


@pytest.mark.parametrize(
    "body, words",
    [
        ("    return undefined", ["broken.py:3", "NameError", "'undefined'"]),
        ("    return (", ["broken.py:3", "SyntaxError", "never closed"]),
        ("    return TrainConfig(num_step=3)", ["broken.py:3", "'num_step'", "did you mean 'num_steps'"]),
        ("    return open('not there')", ["broken.py:3", "FileNotFoundError", "not there"]),
        ("    return None", ["returned NoneType", "must return an Experiment"]),
    ],
)
def test_an_error_in_the_experiment_file_is_named_with_its_line(tmp_path, capsys, body, words):
    path = tmp_path / "broken.py"
    path.write_text(f"from lm_jax.train.trainer import TrainConfig\ndef get_config(arg=''):\n{body}\n")
    error = fails(capsys, ["prepare", f"--config={path}"], 2)
    assert all(word in error for word in words), error


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
