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
    or the first difference; returns 0 or 1. Evaluations and samples are left out.
    """
    every = max(num_steps // (5 * (kills + 1)), 1)
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
        seconds = _finish(arguments, straight)
        moments = random.Random(seed)
        for number in range(kills):
            # One in four falls while the program starts or restores, the others while it trains or saves.
            running = number % 4 != 3
            wait = moments.uniform(0, 2 * seconds / kills) if running else moments.uniform(1, 5)
            step = _kill(arguments, killed, wait, running)
            where = f"{wait:.2f} s after its first step" if running else f"{wait:.2f} s after its start"
            print(f"kill {number + 1} of {kills}, {where}: {step}", flush=True)
        _finish(arguments, killed)
        differences = list(_differences(straight, killed))
    print("\n".join(differences[:1]) or "equal: every array, the random key and all batches, as bits")
    return 1 if differences else 0


def _start(arguments: list[str], workdir: Path) -> subprocess.Popen:
    workdir.mkdir(exist_ok=True)
    with open(workdir / "output.log", "ab") as log:
        command = [sys.executable, "-m", "lm_jax.main", "train", f"--workdir={workdir}", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ)


def _finish(arguments: list[str], workdir: Path) -> float:
    """Runs to the end; returns the seconds it trained."""
    code = _start(arguments, workdir).wait()
    if code:
        tail = (workdir / "output.log").read_text(errors="replace").splitlines()[-5:]
        raise StorageError(f"training ended with exit code {code}: " + " | ".join(tail))
    walls = [row["wall"] for row in read_metrics(workdir) if row["kind"] == "train"]
    return max(walls) - min(walls)


def _kill(arguments: list[str], workdir: Path, seconds: float, running: bool) -> str:
    """Starts or continues the run and kills it after `seconds`, counted from its first new step if `running`."""
    process = _start(arguments, workdir)
    metrics = workdir / "metrics.jsonl"
    if running:
        before = metrics.read_bytes().count(b'"kind": "train"') if metrics.exists() else 0
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b'"kind": "train"') > before:
                break
            time.sleep(0.05)
    try:
        process.wait(seconds)
        return "the run had ended"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return f"at step {max((row['step'] for row in read_metrics(workdir)), default=0)}"


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
