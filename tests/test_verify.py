"""`lm-jax verify resume`: equal where it should be, and able to see a difference."""

import shutil

import pytest

from lm_jax import run
from lm_jax.main import main
from lm_jax.verify import _differences
from tests.runs import experiment


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_killed_runs_end_where_the_uninterrupted_one_does(devices, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
    monkeypatch.setenv("LM_JAX_CACHE", str(tmp_path))
    arguments = ["--config=experiments/shakespeare.py:smoke", "--steps=40", "--kills=2"]
    assert main(["verify", "resume", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("kill ") == 2 and "equal: every array" in out


def test_a_difference_is_named(tmp_path):
    config = experiment(tmp_path, num_steps=4)
    run.train(config, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    assert list(_differences(tmp_path / "a", tmp_path / "same")) == []
    config.train.seed = 1
    run.train(config, tmp_path / "b")
    found = list(_differences(tmp_path / "a", tmp_path / "b"))
    assert found[0].startswith("dropout_key") and any("params" in line and "differs in" in line for line in found)
    config.train.seed, config.data.seed = 0, 1
    run.train(config, tmp_path / "c")
    assert any(line.startswith("batches_digest") for line in _differences(tmp_path / "a", tmp_path / "c"))
