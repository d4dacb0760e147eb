"""Several processes, one run."""

import os

import jax

from lm_jax.core.errors import ConfigError

ADDRESS, COUNT, INDEX = "LM_JAX_COORDINATOR", "LM_JAX_NUM_PROCESSES", "LM_JAX_PROCESS_ID"


def join() -> None:
    """Joins the other processes of the run, before anything asks JAX for its devices.

    The environment says who they are, the same on all but the last: LM_JAX_COORDINATOR (host:port of process 0),
    LM_JAX_NUM_PROCESSES and LM_JAX_PROCESS_ID (from 0). With none of them set, the run has one process. Raises `ConfigError`
    when some are missing or make no sense.
    """
    given = {name: os.environ.get(name) for name in (ADDRESS, COUNT, INDEX)}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set too: a run of several processes needs {', '.join(given)}")
    count, index = (_number(name, given[name]) for name in (COUNT, INDEX))
    if not 0 <= index < count:
        raise ConfigError(f"{INDEX}={index} must be at least 0 and below {COUNT}={count}")
    # Detecting a cluster would pin one device a process; what the environment says is all there is to know.
    jax.distributed.initialize(given[ADDRESS], count, index, cluster_detection_method="deactivate")


def _number(name: str, value: str) -> int:
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} must be a number")
    return int(value)
