"""`lm-jax verify resume`: a run that is killed and started again ends where the uninterrupted one does, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config import load_experiment
from lm_jax.core.errors import StorageError
from lm_jax.train.checkpoint import Checkpoints
from lm_jax.train.rows import read_metrics


def verify_resume(configs: list[str], num_steps: int, kills: int, seed: int) -> int:
    """Trains `num_steps` straight, and again with `kills` SIGKILLs at random moments; compares the last checkpoints.

    Every array of the state, the dropout key and the digest of all batches must be equal as bits. Prints what was compared,
    or the first difference; returns 0 or 1. Evaluations and samples are left out. Several kills fall while the program
    starts, restores, trains or saves, whatever it is doing at that time.
    """
    every = max(num_steps // 10, 1)
    overrides = [
        f"--config.train.num_steps={num_steps}",
        "--config.train.log_every=1",
        f"--config.checkpoint.every={every}",
        "--config.evals=()",
        "--config.samples=None",
        "--config.train.early_stop=None",
    ]
    arguments = [*configs, *overrides]
    load_experiment(arguments).data.prepare()  # once, so that no kill falls into it
    with tempfile.TemporaryDirectory(prefix="lm_jax_verify_") as folder:
        straight, killed = Path(folder) / "straight", Path(folder) / "killed"
        started = time.monotonic()
        _finish(arguments, straight)
        whole = time.monotonic() - started
        moments = random.Random(seed)
        for number in range(kills):
            wait = moments.uniform(0.1, 1.0) * whole
            print(f"kill {number + 1} of {kills} after {wait:.1f} s at step {_kill_after(arguments, killed, wait)}")
        _finish(arguments, killed)
        differences = list(_differences(straight, killed))
    print("\n".join(differences[:1]) or "equal: every array, the random key and all batches, as bits")
    return 1 if differences else 0


def _start(arguments: list[str], workdir: Path) -> subprocess.Popen:
    workdir.mkdir(exist_ok=True)
    with open(workdir / "output.log", "ab") as log:
        command = [sys.executable, "-m", "lm_jax.main", "train", f"--workdir={workdir}", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ)


def _finish(arguments: list[str], workdir: Path) -> None:
    code = _start(arguments, workdir).wait()
    if code:
        tail = (workdir / "output.log").read_text(errors="replace").splitlines()[-5:]
        raise StorageError(f"training ended with exit code {code}: " + " | ".join(tail))


def _kill_after(arguments: list[str], workdir: Path, seconds: float) -> int:
    """Starts or continues the run, kills it after `seconds`; returns the last step it logged."""
    process = _start(arguments, workdir)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def _differences(a: Path, b: Path) -> Iterator[str]:
    (step_a, state_a, record_a), (step_b, state_b, record_b) = _last(a), _last(b)
    if step_a != step_b:
        yield f"the last checkpoints are of step {step_a} and {step_b}"
        return
    for name in ("data", "tokenizer"):
        if record_a[name] != record_b[name]:
            yield f"{name}: {json.dumps(record_a[name])[:200]} and {json.dumps(record_b[name])[:200]}"
    for name in ("dropout_key", "batches_digest"):
        if record_a["progress"][name] != record_b["progress"][name]:
            yield f"{name}: {record_a['progress'][name]} and {record_b['progress'][name]}"
    if state_a.keys() != state_b.keys():
        yield f"arrays in one only: {sorted(state_a.keys() ^ state_b.keys())}"
        return
    for name, x in state_a.items():
        y = state_b[name]
        if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
            count = np.count_nonzero(x.view(np.uint8) != y.view(np.uint8)) if x.nbytes == y.nbytes else "all"
            yield f"{name} ({x.dtype}{list(x.shape)}) differs in {count} bytes"


def _last(workdir: Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
    """The newest checkpoint: its step, its arrays by path, its record."""
    import jax

    from lm_jax.train.checkpoint import CheckpointConfig

    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        step, state = checkpoints.restore()
        record = checkpoints.record(step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}, record
