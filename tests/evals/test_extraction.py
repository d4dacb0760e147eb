"""Summaries made of the sentences that a classifier takes, whichever rows they were packed in."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.data.extracts import ExtractedSentences
from lm_jax.data.pairs import Pairs
from lm_jax.data.sources import JsonLines
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.base import Shown
from lm_jax.evals.extraction import ExtractionConfig, chosen
from lm_jax.evals.text_metrics import METRICS
from lm_jax.models.tagger import TaggerConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig

ROWS = [("Ab ca. Cab. Bb.", "Cab."), ("Aa. Bca.", "Aa. Bca."), ("Cc a.", "Cc a."), ("Aba. Ca. Ab. Bc.", "Ab. Bc.")]


def test_the_likeliest_is_always_taken():
    assert chosen(np.array([-2.0, 0.5, 1.0, -1.0])).tolist() == [False, True, True, False]
    assert chosen(np.array([-2.0, -0.5])).tolist() == [False, True]


def test_summaries_are_those_of_the_documents_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"d": d, "s": s}) for d, s in ROWS))
    source, target = (JsonLines(paths=(str(tmp_path / "a.jsonl"),), fields=(field,)) for field in "ds")
    pairs = Pairs(source=source, target=target)
    config = ExtractedSentences(train=pairs, validation=pairs, tokenizer=Characters(), length=40, batch_size=2)
    data = config.prepare()
    block = BlockConfig(mixer=AttentionConfig(num_heads=2, causal=False, rotary=RotaryConfig()), feed_forward=MLPConfig(hidden=16))
    model = TaggerConfig(
        vocab_size=data.vocab_size,
        classes=2,
        width=16,
        stack=StackConfig(pattern=(block,), repeats=1),
        features=None,
        init=Init(weights="fan_in", embedding_std=1.0),
    ).build(jax.random.key(3))
    found = list(ExtractionConfig(batch_size=2, show=1).scores(*split(model), data, lambda batch: batch, slice(None)))
    scores = dict(item for item in found if not isinstance(item, Shown))
    written, hits = [], []
    for (document, _), example in zip(ROWS, data.require("validation"), strict=True):
        tokens = example.arrays["tokens"]
        logits = np.asarray(model.logits(model({"tokens": tokens[None]}).hidden))[0][tokens == data.tokenizer.eos]
        taken = logits[:, 1] > logits[:, 0]
        taken[np.argmax(logits[:, 1] - logits[:, 0])] = True
        parts = [f"{part.rstrip('.')}." for part in document.split(". ")]
        written.append(" ".join(part for part, take in zip(parts, taken, strict=True) if take))
        hits += (taken == (example.arrays["targets"][tokens == data.tokenizer.eos] > 0)).tolist()
    assert scores["accuracy"] == pytest.approx(np.mean(hits)) and 0 < scores["f1"] < 1 and scores["num_examples"] == 4
    assert scores["rougeL"] == pytest.approx(dict(METRICS["rouge"](written, [[s] for _, s in ROWS]))["rougeL"])
    (item,) = (item for item in found if isinstance(item, Shown))
    assert (item.text, item.fields["reference"]) == (written[0], "Cab.")


def test_a_library_that_is_missing_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match="metrics"):
        ExtractionConfig().check(None, types.SimpleNamespace(references=lambda split: [["Cab."]]))
