"""Several processes, one run: how they find each other, and how they part when one is lost."""

import json
import os
import re
import subprocess
import sys
import traceback
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm_jax.core.errors import ConfigError, UserError

ADDRESS, COUNT, INDEX = "LM_JAX_COORDINATOR", "LM_JAX_NUM_PROCESSES", "LM_JAX_PROCESS_ID"

# Who says the number and the index of the processes, in the order asked: ours, SLURM's srun, Open MPI, an indexed Kubernetes Job.
# (SLURM_NTASKS is not asked: a batch script has it too, with one process.)
COUNTS = (COUNT, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
INDICES = (INDEX, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")

HEARTBEAT_SECONDS = 30  # a process that says nothing for so long is lost
RESTART = 75  # EX_TEMPFAIL
_LOST = re.compile("gloo|nccl|connection|socket|heartbeat|unavailable|peer", re.IGNORECASE)


def join() -> None:
    """Joins the other processes of the run, before anything asks JAX for its devices.

    LM_JAX_COORDINATOR (host:port of process 0), LM_JAX_NUM_PROCESSES and LM_JAX_PROCESS_ID (from 0) say who they are; under
    `srun` none is needed, under Open MPI the coordinator, in an indexed Kubernetes Job the coordinator and the number. With
    none, or a number of 1, the run has one process. Raises `ConfigError` when some are missing or make no sense.
    """
    count, index, address = _first(COUNTS), _first(INDICES), os.environ.get(ADDRESS)
    if (count and _number(*count) == 1) or not (count or address or os.environ.get(INDEX)):
        return
    if not address and count and count[0].startswith("SLURM"):
        address = _slurm_coordinator()
    missing = [name for name, value in {ADDRESS: address, COUNT: count, INDEX: index}.items() if not value]
    if missing:
        needed = ", ".join((ADDRESS, COUNT, INDEX))
        raise ConfigError(f"{', '.join(missing)} must be set too: a run of several processes needs {needed}")
    num_processes, process_id = _number(*count), _number(*index)
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"{index[0]}={process_id} must be at least 0 and below {count[0]}={num_processes}")
    jax.distributed.initialize(
        address,
        num_processes,
        process_id,
        cluster_detection_method="deactivate",  # it would pin one device a process
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def check_same(fields: dict[str, Any]) -> None:
    """Raises `ConfigError` on all processes, naming the fields, where one has other values (JSON-ready) than process 0."""
    first, *others = gather(fields)
    for number, other in enumerate(others, start=1):
        names = [name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
        if names:
            shown = ", ".join(f"{name} ({first.get(name)!r} and {other.get(name)!r})" for name in names[:5])
            raise ConfigError(f"processes 0 and {number} have different configs: {shown}; start all with the same arguments")


def gather(value: Any) -> list[Any]:
    """The (JSON-ready) value of every process, on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value, sort_keys=True).encode()
    size = int(multihost_utils.process_allgather(np.array([len(text)])).max())
    padded = multihost_utils.process_allgather(np.frombuffer(text.ljust(size), np.uint8))
    return [json.loads(row.tobytes()) for row in padded]


def leave(error: BaseException) -> NoReturn:
    """Ends this process, one of several, at once: an orderly exit would wait for a process that is gone.

    One line for a user's mistake, and (with exit code 75) where another process was lost; else the traceback and code 1.
    """
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        print(f"lm-jax: {who}: {error}", file=sys.stderr)
        code = error.exit_code
    elif isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        print(
            f"lm-jax: {who} lost the connection to another process ({str(error).splitlines()[0][:200]}); "
            "look for the first error of the others, then start all again to continue from the last checkpoint",
            file=sys.stderr,
        )
        code = RESTART
    else:
        print(f"lm-jax: {who} failed", file=sys.stderr)
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first(names: tuple[str, ...]) -> tuple[str, str] | None:
    return next(((name, os.environ[name]) for name in names if os.environ.get(name)), None)


def _number(name: str, value: str) -> int:
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} must be a number")
    return int(value)


def _slurm_coordinator() -> str:
    """host:port of the first node of this job step; the port follows from the job and step, so that steps do not collide."""
    nodes, job, step = (os.environ[f"SLURM_{name}"] for name in ("STEP_NODELIST", "JOB_ID", "STEP_ID"))
    first = _scontrol("hostnames", nodes).split()[0]
    found = re.search(r"NodeAddr=(\S+)", _scontrol("node", first, "--oneliner"))
    port = 20_000 + (int(job) * 7 + int(step)) % 40_000
    return f"{found[1] if found else first}:{port}"


def _scontrol(*arguments: str) -> str:
    try:
        return subprocess.run(["scontrol", "show", *arguments], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"srun started this process, but scontrol cannot say who process 0 is ({error}): set {ADDRESS}"
        ) from error
