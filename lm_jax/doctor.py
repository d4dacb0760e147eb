"""`lm-jax doctor`: what is installed, what it sees, and what is wrong with it."""

import importlib
import importlib.metadata
import os
import platform
import re
import tempfile
from pathlib import Path


def diagnose() -> tuple[list[str], bool]:
    """Printable lines, and whether nothing is wrong. Every problem is a line that starts with "PROBLEM" and says what to do."""
    lines = [f"python {platform.python_version()} on {platform.platform()}"]
    problems: list[str] = []
    for requirement in importlib.metadata.requires("lm_jax") or []:
        if "extra ==" not in requirement:
            _check_package(requirement, lines, problems)
    if not problems:
        _check_devices(lines, problems)
    _check_cache(lines, problems)
    return lines + [f"PROBLEM {problem}" for problem in problems], not problems


def _check_package(requirement: str, lines: list[str], problems: list[str]) -> None:
    match = re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", requirement)
    assert match, requirement
    name, least = match[1], match[2]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        problems.append(f"{name} is not installed: pip install '{requirement}'")
        return
    lines.append(f"{name} {version}")
    if least and _numbers(version) < _numbers(least):
        problems.append(f"{name} {version} is older than {least}: pip install --upgrade '{requirement}'")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _check_devices(lines: list[str], problems: list[str]) -> None:
    import jax
    import jaxlib

    from lm_jax.core.hardware import peak_flops

    if _numbers(jax.__version__)[:2] != _numbers(jaxlib.__version__)[:2]:
        problems.append(f"jax {jax.__version__} and jaxlib {jaxlib.__version__} differ: pip install --upgrade jax jaxlib")
    try:
        devices = jax.devices()
        value = float(jax.jit(lambda x: x @ x)(jax.numpy.full((4, 4), 2.0))[0, 0])
    except Exception as error:
        problems.append(f"jax cannot use its devices: {str(error).splitlines()[0]}")
        return
    kind = devices[0].device_kind
    peak = peak_flops(kind)
    lines.append(f"{len(devices)} x {kind} ({jax.default_backend()}), {os.cpu_count()} CPU cores")
    lines.append(f"peak {peak / 1e12:.0f} TFLOP/s dense bfloat16 a device" if peak else "peak speed unknown: no MFU is shown")
    if value != 16.0:
        problems.append(f"a 4 x 4 matrix product gave {value}, not 16: the device or its driver is broken")
    if jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
        problems.append("there is an NVIDIA GPU but jax runs on the CPU: pip install 'lm_jax[cuda]'")


def _check_cache(lines: list[str], problems: list[str]) -> None:
    folder = Path(os.environ.get("LM_JAX_CACHE") or "~/.cache/lm_jax").expanduser()
    lines.append(f"data cache {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problems.append(f"the data cache {folder} cannot be written ({error.strerror}): set LM_JAX_CACHE to another folder")
