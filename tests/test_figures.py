"""The table of `benchmarks.families`: what it reads off a run is there."""

import pytest

from benchmarks.families import AFTER, FIGURES
from lm_jax.config import load_experiment


@pytest.mark.parametrize("figure", [*FIGURES.values(), *(figure for after in AFTER.values() for figure in after.values())])
def test_a_figure_is_one_of_its_experiment(figure):
    names = [config.name for config in load_experiment([f"--config={figure.config}"]).evals]
    assert {score.split("/")[0] for score in (figure.score, *figure.also)} <= set(names)
