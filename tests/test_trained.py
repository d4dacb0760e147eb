"""Vectors of texts from a run: trained, scored, and as those of each text alone."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax import run
from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.data.pairs import Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.text_pairs import TextPairs
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.text_retrieval import TextRetrievalConfig
from lm_jax.objectives.contrastive import ContrastiveConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig
from lm_jax.trained import embed, evaluate, load
from tests.models.sentences_for_tests import sentence_encoder
from tests.models_for_tests import llama


@pytest.mark.slow
def test_a_run_embeds_texts(tmp_path):
    lines = ["abc", "b", "cabbage", "face", "dead", "bad", "c", "decade"]
    for name, texts in (("l", lines), ("r", [text[::-1] for text in lines])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    left, right = (TextFiles(paths=(str(tmp_path / f"{name}.txt"),), document="line") for name in "lr")
    pairs = Pairs(source=left, target=right)
    experiment = Experiment(
        data=TextPairs(train=pairs, validation=pairs, tokenizer=Characters(), buckets=(4, 8), length=8, batch_size=2),
        model=sentence_encoder(),
        objective=ContrastiveConfig(),
        optimizer=AdamW(learning_rate=3e-3, schedule=Schedule(shape="constant")),
        train=TrainConfig(num_steps=40, log_every=1),
        mesh=MeshShape(dp=1),
        checkpoint=CheckpointConfig(every=0),
        evals=(TextRetrievalConfig(at=(1,), batch_size=4),),
        samples=None,
    )
    assert run.train(experiment, tmp_path / "run") == 0
    ((_, scores),) = evaluate(tmp_path / "run")
    assert scores["source_to_target_recall@1"] > 2 * scores["chance@1"]
    trained = load(tmp_path / "run")
    model, texts = nnx.merge(trained.graph, trained.params), ["cab", "", "deadbeefacade", "a"]
    found = embed(trained, texts, batch_size=3)
    for text, vector in zip(texts, found, strict=True):
        ids = np.append(trained.tokenizer.eos, trained.tokenizer.encode(text))[:8].astype(np.int32)
        np.testing.assert_allclose(vector, model.vectors(ids[None])[0][0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    graph, params = split(llama().build(jax.random.key(0)))
    with pytest.raises(ConfigError, match="a Decoder embeds no texts"):
        embed(dataclasses.replace(trained, graph=graph, params=params), texts)
