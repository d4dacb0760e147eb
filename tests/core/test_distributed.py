"""Two real processes: one run, stopped together, continued by one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm_jax.core.distributed import join
from lm_jax.core.errors import ConfigError
from tests.runs import events, losses

ARGUMENTS = [
    "--config=experiments/shakespeare.py:smoke",
    "--config.train.num_steps=60",
    "--config.train.log_every=1",
    "--config.checkpoint.every=0",
    "--config.evals[0].every=0",
]


def start(workdir, cache, *, devices: int, more: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
    """`lm-jax train` with so many CPU devices."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "LM_JAX_CACHE": str(cache), **variables}
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--workdir={workdir}", *ARGUMENTS, *more]
    workdir.parent.mkdir(exist_ok=True)
    with open(log(workdir), "ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def log(workdir: Path) -> Path:
    """Where the processes of a run write."""
    return workdir.with_suffix(".log")


@pytest.mark.slow
def test_all_processes_stop_at_one_step_and_one_process_goes_on(tmp_path):
    assert start(tmp_path / "straight", tmp_path / "cache", devices=1).wait(300) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mesh = ("--config.mesh.dp=2", "--config.mesh.fsdp=2")
    pair = [
        start(
            tmp_path / "run",
            tmp_path / "cache",
            devices=2,
            more=mesh,
            LM_JAX_COORDINATOR=f"127.0.0.1:{port}",
            LM_JAX_NUM_PROCESSES="2",
            LM_JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    try:
        deadline = time.monotonic() + 200
        while not losses(tmp_path / "run"):
            assert time.monotonic() < deadline and all(p.poll() is None for p in pair), log(tmp_path / "run").read_text()
            time.sleep(0.05)
        pair[1].send_signal(signal.SIGTERM)  # the second process is told, both must hear
        codes = [process.wait(120) for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert codes == [75, 75], log(tmp_path / "run").read_text()
    stopped = events(tmp_path / "run", "preempted")[0]["step"]
    assert 1 <= stopped < 60
    assert start(tmp_path / "run", tmp_path / "cache", devices=1).wait(300) == 0
    straight, resumed = losses(tmp_path / "straight"), losses(tmp_path / "run")
    assert straight.keys() == resumed.keys()
    assert max(abs(straight[step] - resumed[step]) for step in straight) < 1e-4


@pytest.mark.parametrize(
    "given, message",
    [
        ({"LM_JAX_NUM_PROCESSES": "2"}, "LM_JAX_COORDINATOR, LM_JAX_PROCESS_ID must be set too"),
        (
            {"LM_JAX_COORDINATOR": "h:1", "LM_JAX_NUM_PROCESSES": "2", "LM_JAX_PROCESS_ID": "2"},
            "LM_JAX_PROCESS_ID=2 must be at least 0 and below LM_JAX_NUM_PROCESSES=2",
        ),
        ({"LM_JAX_COORDINATOR": "h:1", "LM_JAX_NUM_PROCESSES": "two", "LM_JAX_PROCESS_ID": "0"}, "'two' must be a number"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        join()
