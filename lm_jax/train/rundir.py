"""The run directory's identity: which config it belongs to, and which software wrote it."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lm_jax.core.config import Config, diff, from_json, to_json
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.files import write_json

_PACKAGES = (
    "lm_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "tensorflow-datasets",
    "array_record",
    "ml_collections",
    "tokenizers",
    "numpy",
)


def read_config(workdir: Path) -> Config:
    """The config that the run was started with. Raises `StorageError` where the directory holds no run."""
    path = workdir / "config.json"
    if not path.is_file():
        raise StorageError(f"{workdir} holds no run: there is no {path.name}; start one with lm-jax train")
    try:
        return from_json(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise StorageError(f"{path} is not valid JSON ({error}); restore it from a backup") from error


# Where a run computes does not change what it computes: a run may go on with these fields changed.
_FREE = ("mesh.", "layout.")
_NAMED = 8  # differences that an error names; the other model of another experiment has a hundred


def claim_config(workdir: Path, config: Config) -> None:
    """Writes the config into the run directory. The run that is there already must have the same one, mesh and layout apart.

    Raises `ConfigError` with the first differing fields when it is the directory of another run.
    """
    path = workdir / "config.json"
    differing = []
    if path.exists():
        differing = [line for line in diff(read_config(workdir), config) if not line.startswith(_FREE)]
    if not differing:
        write_json(path, to_json(config))
    else:
        more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        named = "; ".join(differing[:_NAMED])
        raise ConfigError(f"{workdir} belongs to a run with another config; take another --workdir. Different: {named}{more}")


def versions() -> dict[str, Any]:
    """Versions of Python and the packages a run depends on, the code's git commit, the command and the devices."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "git_commit": _git_commit(),
        "command": " ".join(sys.argv),
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from, "-dirty" where files differ; None outside a checkout."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
