"""Every test runs on 8 fake CPU devices, with strict dtype and rank promotion."""

import os

os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # most of the time of these tests is compilation; this halves it
        # A process is ended whose devices wait longer than this (by default 40 s) for each other: 8 of them share two busy cores.
        "--xla_cpu_collective_call_terminate_timeout_seconds=200",
        "--xla_cpu_collective_timeout_seconds=200",
        os.environ.get("XLA_FLAGS", ""),
    )
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def forgetful():
    """What a file has compiled is of no use to the next one, and adds up to gigabytes."""
    yield
    jax.clear_caches()
