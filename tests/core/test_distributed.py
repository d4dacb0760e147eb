"""Real processes: one run, killed, stopped together, continued by fewer."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm_jax.core.distributed import join
from lm_jax.core.errors import ConfigError
from tests.runs import events, losses

PATIENCE = 600  # seconds; a run takes 20 to 40 on two quiet cores
DENSE = "--config=experiments/shakespeare.py:smoke"
ARGUMENTS = [
    "--config.train.num_steps=60",
    "--config.train.log_every=1",
    "--config.checkpoint.every=5",
    "--config.evals[0].every=0",
]


def start(workdir, cache, *, devices: int, config: str = DENSE, more: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
    """`lm-jax train` with so many CPU devices; quick to compile, as four processes may share one busy core."""
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_NUM_CPU_DEVICES": str(devices)}
    environment = os.environ | flags | {"LM_JAX_CACHE": str(cache)} | variables
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--workdir={workdir}", config, *ARGUMENTS, *more]
    workdir.parent.mkdir(exist_ok=True)
    with open(log(workdir), "ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def log(workdir: Path) -> Path:
    """Where the processes of a run write."""
    return workdir.with_suffix(".log")


def together(workdir, cache, number: int, **settings) -> list[subprocess.Popen]:
    """So many processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    names = dict(LM_JAX_COORDINATOR=address, LM_JAX_NUM_PROCESSES=str(number))
    return [start(workdir, cache, **settings, **names, LM_JAX_PROCESS_ID=str(index)) for index in range(number)]


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Kills, at the end, what is still there."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def exit_codes(workdir: Path, processes: list[subprocess.Popen]) -> list[int]:
    """Of all processes, which must end."""
    with ended(processes):
        try:
            return [process.wait(PATIENCE) for process in processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {PATIENCE} s:\n{log(workdir).read_text()}")


def wait_for_step(workdir, step: int, processes) -> None:
    """Until the run's log has `step`."""
    deadline = time.monotonic() + PATIENCE
    while max(losses(workdir), default=0) < step:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), log(workdir).read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_survives_a_killed_process_and_a_stop_on_other_numbers_of_processes(tmp_path):
    """Four processes, of which one is killed; two, of which one is told to stop; one. The losses are those of one alone."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    straight = tmp_path / "straight"
    assert exit_codes(straight, [start(straight, cache, devices=1)]) == [0]
    four = together(workdir, cache, 4, devices=1, more=("--config.mesh.dp=1", "--config.mesh.fsdp=2", "--config.mesh.tp=2"))
    with ended(four):
        wait_for_step(workdir, 12, four)
        four[2].kill()
        codes = exit_codes(workdir, four)
    text = log(workdir).read_text()
    assert codes == [75, 75, -signal.SIGKILL, 75], text
    assert all(f"lm-jax: process {index} of 4 lost the connection to another process" in text for index in (0, 1, 3))

    two = together(workdir, cache, 2, devices=2, more=("--config.mesh.dp=1", "--config.mesh.fsdp=2", "--config.mesh.cp=2"))
    with ended(two):
        wait_for_step(workdir, 20, two)
        two[1].send_signal(signal.SIGTERM)  # the second process is told, both must hear
        codes = exit_codes(workdir, two)
    assert codes == [75, 75], log(workdir).read_text()
    assert events(workdir, "resume")[0]["step"] >= 5
    assert 20 <= events(workdir, "preempted")[0]["step"] < 60

    assert exit_codes(workdir, [start(workdir, cache, devices=1)]) == [0]
    expected, resumed = losses(straight), losses(workdir)
    assert expected.keys() == resumed.keys()
    assert max(abs(expected[step] - resumed[step]) for step in expected) < 1e-4


MIXTURE = "--config=experiments/shakespeare_moe.py:smoke"
BY_PROCESSES = [
    (DENSE, {"dp": 2}),
    (DENSE, {"fsdp": 2}),
    (DENSE, {"tp": 2}),
    (DENSE, {"cp": 2}),
    (DENSE, {"pp": 2}),
    (DENSE, {"pp": 2, "fsdp": 2}),
    (MIXTURE, {"ep": 2}),
    (MIXTURE, {"ep": 2, "tp": 2}),
]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """(cache, losses by experiment) of runs of 8 steps on one device."""
    folder, scores = tmp_path_factory.mktemp("one"), {}
    for number, config in enumerate((DENSE, MIXTURE)):
        run = start(folder / str(number), folder / "cache", devices=1, config=config, more=("--config.train.num_steps=8",))
        assert exit_codes(folder / str(number), [run]) == [0], log(folder / str(number)).read_text()
        scores[config] = losses(folder / str(number))
    return folder / "cache", scores


@pytest.mark.slow
@pytest.mark.parametrize(("config", "sizes"), BY_PROCESSES, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_every_axis_goes_across_processes(tmp_path, one_process, config, sizes):
    """A device each; the losses are those of one process."""
    (cache, expected), number = one_process, math.prod(sizes.values())
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in ({"dp": 1} | sizes).items()]
    processes = together(tmp_path / "run", cache, number, devices=1, config=config, more=("--config.train.num_steps=8", *mesh))
    with ended(processes):
        assert exit_codes(tmp_path / "run", processes) == [0] * number, log(tmp_path / "run").read_text()
    got = losses(tmp_path / "run")
    assert got.keys() == expected[config].keys() and len(got) == 8
    assert max(abs(got[step] - expected[config][step]) for step in got) < 1e-4


@pytest.mark.slow
def test_processes_that_disagree_are_told_where(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        names = dict(LM_JAX_COORDINATOR=f"127.0.0.1:{probe.getsockname()[1]}", LM_JAX_NUM_PROCESSES="2")
    pair = [
        start(
            tmp_path / "run",
            tmp_path / "cache",
            devices=1,
            more=(f"--config.train.seed={index}",),
            **names,
            LM_JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    assert 2 in exit_codes(tmp_path / "run", pair)
    assert "processes 0 and 1 have different configs: train.seed (0 and 1)" in log(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script: one process
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_NODELIST": "n[7-8]",
                "SLURM_JOB_ID": "5",
                "SLURM_STEP_ID": "1",
            },
            ("10.0.0.7:20036", 4, 3),
        ),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "LM_JAX_COORDINATOR": "h:1"}, ("h:1", 2, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "LM_JAX_COORDINATOR": "h:1"}, ("h:1", 4, 2)),
        ({"JOB_COMPLETION_INDEX": "5", "LM_JAX_NUM_PROCESSES": "8", "LM_JAX_COORDINATOR": "h:1"}, ("h:1", 8, 5)),
        ({"JOB_COMPLETION_INDEX": "5"}, None),  # independent jobs
    ],
    ids=["none", "slurm-batch", "slurm-one", "slurm", "slurm-told", "mpi", "kubernetes", "kubernetes-alone"],
)
def test_who_the_processes_are(monkeypatch, tmp_path, given, expected):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\nif [ $2 = hostnames ]; then echo n7; echo n8; else echo NodeName=$3 NodeAddr=10.0.0.7 X=1; fi\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: calls.append(args))
    join()
    assert calls == ([expected] if expected else [])


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
