"""`lm-jax verify mesh` passes what is right and names what is wrong."""

import jax
import pytest

from lm_jax import verify_mesh as module
from lm_jax.config import load_experiment
from lm_jax.core.local import to_residual, ways
from lm_jax.core.mesh import MeshShape


@pytest.fixture(scope="module")
def experiment():
    return load_experiment(["--config=experiments/shakespeare.py:smoke"])


def test_legal_meshes_divide_what_they_split(experiment):
    shapes = list(module.legal_meshes(experiment, 8))
    assert MeshShape(dp=2, fsdp=2, tp=2) in shapes and MeshShape(dp=1, cp=4, tp=2) in shapes
    assert {shape.pp for shape in shapes} == {1, experiment.model.stack.repeats}
    heads = experiment.model.stack.pattern[0].mixer.num_heads
    assert all(heads % shape.tp == 0 for shape in shapes)
    assert len({tuple(vars(shape).items()) for shape in shapes}) == len(shapes) > 20


def test_a_right_mesh_is_equal(experiment, monkeypatch, capsys):
    monkeypatch.setattr(module, "legal_meshes", lambda experiment, count: [MeshShape(dp=1, cp=2)])
    assert module.verify_mesh(experiment) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("equal on all")


def test_a_mixture_is_compared_without_its_bounds(experiment, monkeypatch, capsys):
    mixture = load_experiment(["--config=experiments/shakespeare_moe.py:smoke"])
    for block in mixture.model.stack.pattern:
        block.feed_forward.capacity_factor, block.feed_forward.router.balance_over = 0.5, "batch"
    monkeypatch.setattr(module, "legal_meshes", lambda experiment, count: [MeshShape(dp=1, ep=2)])
    assert module.verify_mesh(mixture) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("compared with the balance loss by row and no bound") for line in lines)
    assert lines[-1].startswith("equal on all") and lines[-2].startswith("ep=2: ")


@pytest.mark.parametrize("config", ["speech_digits.py:smoke", "emoji.py:smoke", "word_vectors.py:smoke"])
def test_models_that_score_no_tokens_are_compared(config, monkeypatch, capsys):
    monkeypatch.setattr(module, "legal_meshes", lambda experiment, count: [MeshShape(dp=1, fsdp=2)])
    assert module.verify_mesh(load_experiment([f"--config=experiments/{config}"])) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("equal on all")


def test_a_wrong_one_is_named(experiment, monkeypatch, capsys):
    def wrong(x: jax.Array, name: str) -> jax.Array:
        return to_residual(x, name) * (1.01 if ways(name) > 1 else 1.0)

    monkeypatch.setattr("lm_jax.nn.mlp.to_residual", wrong)
    monkeypatch.setattr(module, "legal_meshes", lambda experiment, count: [MeshShape(dp=1, tp=2), MeshShape(dp=2)])
    assert module.verify_mesh(experiment) == 1
    first, second, last = capsys.readouterr().out.splitlines()[-3:]
    assert first.startswith("tp=2: ") and "DIFFERENT: " in first
    assert second.startswith("dp=2: ") and "DIFFERENT" not in second and last == "1 meshes differ"
