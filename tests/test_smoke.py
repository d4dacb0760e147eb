"""Every family on real data: the `:smoke` variant of each experiment that makes examples trains its two steps and is saved."""

import json

import jax
import pytest

from lm_jax import run
from lm_jax.config import load_experiment
from lm_jax.core.errors import DataError
from lm_jax.trained import load
from tests.test_experiments import FOLDER, NAMES

BIG = {
    "gpt2_124m",
    "llama_1b",
    "llama_8b",
    "llama_405b",
    "mixtral_8x7b",
    "deepseek_style_moe",
}  # for many chips


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}.py:smoke" for name in NAMES if name not in BIG),
        "summaries.py:smoke_bbc",
        "translation.py:smoke_gru",
        "word_vectors.py:smoke_glove",
    ],
)
def test_two_steps_train_on_real_data(name, tmp_path):
    config = [f"--config={FOLDER}/{name}", "--config.mesh.dp=1", "--config.train.num_steps=2"]
    try:
        assert run.train(load_experiment(config), tmp_path) == 0
    except DataError as error:
        if str(error).startswith("no file at"):
            pytest.skip(str(error))
        raise
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    trained = load(tmp_path)
    assert trained.step == 2 and all(bool(jax.numpy.isfinite(x).all()) for x in jax.tree.leaves(trained.params))
