"""`lm-jax import` and `export` through the command line, on a real pretrained model where it lies beside the checkout."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.interop.safetensors import Tensors
from lm_jax.main import main
from lm_jax.trained import load
from tests.models_for_tests import logits

DATA = Path(__file__).parents[2] / "shared" / "data" / "llama_stories260k"
FIXTURES = Path(__file__).parent / "fixtures" / "huggingface"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/llama_stories260k")


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("import") / "run"
    assert run("import", f"--from={DATA / 'hf'}", f"--tokenizer={DATA / 'tok512.model'}", f"--workdir={workdir}") == 0
    return workdir


def sample_loss(graph, params, tokenizer):
    """Mean nats per token over the stories of the sample, each after the token that starts a document."""
    model, losses = nnx.merge(graph, params), []
    for text in (DATA / "tinystories_sample.txt").read_text().split("<|endoftext|>"):
        if text.strip():
            ids = np.array([tokenizer.eos, *tokenizer.encode(text.strip())], np.int32)
            log_p = jax.nn.log_softmax(logits(model, ids[None, :-1])[0])
            losses.extend(-np.take_along_axis(np.asarray(log_p), ids[1:, None], axis=1)[:, 0])
    return float(np.mean(losses))


def test_a_pretrained_model_says_what_it_said_elsewhere(workdir, capsys):
    golden, trained = json.loads((DATA / "golden.json").read_text()), load(workdir)
    model, expected = nnx.merge(trained.graph, trained.params), np.load(DATA / "golden_logits.npz")
    for i, prompt in enumerate(golden["prompts"]):
        ids = [trained.tokenizer.eos, *trained.tokenizer.encode(prompt["text"])] if prompt["text"] else [trained.tokenizer.eos]
        assert ids == prompt["ids"]
        got, wanted = logits(model, np.array([ids], np.int32))[0], expected[f"logits_{i}"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    capsys.readouterr()
    assert run("generate", f"--workdir={workdir}", "--temperature=0", "--max_tokens=256") == 0
    text = capsys.readouterr().out.split("\n" + "-" * 40)[0]
    assert text == golden["published_greedy_text"] and len(text) == 565
    assert sample_loss(trained.graph, trained.params, trained.tokenizer) == pytest.approx(1.266, abs=5e-4)


def test_what_is_exported_is_what_was_imported(workdir, tmp_path, capsys):
    assert run("export", f"--workdir={workdir}", f"--to={tmp_path / 'out'}", "--shard_size=0.0005") == 0
    assert "LlamaForCausalLM of step 0 in float32, logits within 0e+00" in capsys.readouterr().out
    before, after = Tensors(DATA / "hf"), Tensors(tmp_path / "out")
    assert set(before) == set(after) and len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (DATA / "tok512.model").read_bytes()
    assert run("import", f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'again'}") == 0
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "again").params, load(workdir).params)
    assert run("export", f"--workdir={workdir}", f"--to={tmp_path / 'out'}") == 74
    assert "exists; take another --to" in capsys.readouterr().err
    assert run("export", f"--workdir={workdir}", f"--to={tmp_path / 'half'}", "--dtype=bfloat16") == 0
    assert {str(Tensors(tmp_path / "half")[name].dtype) for name in before} == {"bfloat16"}


def test_an_imported_model_trains_on(workdir, tmp_path):
    """From its own level of loss, downwards, on other text than it was trained on."""
    from lm_jax.train.logging import read_metrics

    config = ["--config=experiments/shakespeare.py:smoke", "--config.data.length=64", "--config.train.num_steps=20"]
    config += ["--config.evals[0].every=20", "--config.train.log_every=1", "--config.optimizer.learning_rate=0.001"]
    where = [f"--from={DATA / 'hf'}", f"--tokenizer={DATA / 'tok512.model'}", f"--workdir={tmp_path / 'x'}"]
    assert run("import", *where, *config) == 0
    assert run("train", f"--workdir={tmp_path / 'x'}") == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "x") if row["kind"] == "train"]
    assert losses[0] < 5.5 and np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((f"--from={DATA / 'hf'}",), 65, r"there is no tokenizer at .*tokenizer.json or .*name one with --tokenizer=FILE"),
        (
            (f"--from={FIXTURES / 'llama'}", f"--tokenizer={DATA / 'tok512.model'}"),
            65,
            "the tokenizer has 512 tokens, but the embedding",
        ),
        ((f"--from={DATA}",), 65, "config.json cannot be read"),
        ((f"--from={FIXTURES / 'bert'}",), 65, "holds a bert, and runs train decoders; read it in Python"),
    ],
)
def test_a_bad_import_leaves_nothing(arguments, code, message, tmp_path, capsys):
    assert run("import", *arguments, f"--workdir={tmp_path / 'x'}") == code
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("x/*"))


def test_a_run_is_not_overwritten(workdir, capsys):
    assert run("import", f"--from={DATA / 'hf'}", f"--tokenizer={DATA / 'tok512.model'}", f"--workdir={workdir}") == 74
    assert "holds a run already" in capsys.readouterr().err
