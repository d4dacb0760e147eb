"""`lm-jax doctor` on a healthy installation and on broken ones."""

import importlib.metadata

import jax

from lm_jax.doctor import diagnose


def problems(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("PROBLEM")]


def test_a_healthy_installation():
    lines, healthy = diagnose()
    assert healthy and not problems(lines)
    assert f"jax {jax.__version__}" in lines and any("8 x cpu" in line for line in lines)


def test_an_old_and_a_missing_package_are_named_with_the_remedy(monkeypatch):
    version = importlib.metadata.version

    def fake(name: str) -> str:
        if name == "optax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.4.1" if name == "flax" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", fake)
    lines, healthy = diagnose()
    assert not healthy
    assert [p.split(":")[0] for p in problems(lines)] == [
        next(p for p in problems(lines) if "flax 0.4.1 is older than" in p).split(":")[0],
        "PROBLEM optax is not installed",
    ]
    assert all("pip install" in p for p in problems(lines))


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LM_JAX_CACHE", str(tmp_path / "file"))
    lines, healthy = diagnose()
    assert not healthy and "LM_JAX_CACHE" in problems(lines)[0]
