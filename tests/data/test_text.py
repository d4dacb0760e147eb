"""From a config to batches: defaults, splits, sizes, and what a mistake gets."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lm_jax.core.config import from_json, to_json, validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.denoising import TRAINING, Draws
from lm_jax.data.masked_words import MaskedWords
from lm_jax.data.mixture import Stage
from lm_jax.data.packing import Packing
from lm_jax.data.prefixes import FillInTheMiddle, PrefixLM
from lm_jax.data.sources import TextFiles
from lm_jax.data.span_corruption import UL2, SpanCorruption
from lm_jax.data.store import Corpus
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import Characters
from tests.data.token_stores import make_store


@pytest.fixture
def make_config(tmp_path):
    def make(names="ab", **settings):
        source = TextFiles(paths=(str(tmp_path / "*.txt"),))
        corpora = tuple(Corpus(name=name, source=source) for name in names)
        return TextData(**({"corpora": corpora, "tokenizer": Characters()} | settings))

    return make


def in_memory(**settings):
    corpora = {
        "large": {"train": make_store([60, 240]), "validation": make_store([20]), "test": make_store([5])},
        "small": {"train": make_store([50, 50], seed=1), "validation": make_store([11], seed=1)},
    }
    return PreparedText(
        TextData(corpora=(), tokenizer=Characters(), **({"length": 10, "batch_size": 4} | settings)),
        None,
        corpora,
        {"documents": 9},
    )


def test_rows_come_in_proportion_to_size_unless_weighted():
    assert in_memory().train_loader().weights == [[0.75, 0.25]]
    stages = (Stage(start_step=5, weights=(0.0, 1.0)),)
    loader = in_memory(weights=(1.0, 1.0), stages=stages).train_loader()
    assert loader.weights == [[0.5, 0.5], [0.0, 1.0]]


def test_splits_of_all_corpora_are_evaluated_together():
    prepared = in_memory()
    assert prepared.splits == ["train", "validation", "test"]
    assert [source.name for source in prepared.sources("test")] == ["large"]
    assert prepared.num_bytes("validation") == 3 * 31
    assert prepared.num_tokens("small") == 111
    batches = prepared.eval_batches("validation")
    assert (batches.batch_size, batches.length) == (4, 10)
    assert sum(batch["weights"].sum() for batch in batches) == 31
    (batch,) = prepared.eval_batches("test", batch_size=2, length=7, stride=3)
    assert batch["tokens"].shape == (2, 7) and batch["weights"].sum() == 5


def test_evaluation_masks_documents_as_training_does():
    (batch,) = in_memory().eval_batches("test")
    assert "segments" not in batch
    for settings in ({"document_mask": True}, {"packing": Packing(method="pack")}):
        prepared = in_memory(**settings)
        assert next(iter(prepared.eval_batches("test"))).keys() == prepared.train_loader()(0).keys() == {
            "tokens", "targets", "weights", "segments", "positions"
        }  # fmt: skip


def test_processes_share_one_global_batch():
    whole = in_memory().train_loader()(3)
    half = len(whole["tokens"]) // 2
    parts = [in_memory().train_loader(rows)(3) for rows in (slice(0, half), slice(half, None))]
    np.testing.assert_array_equal(np.concatenate([part["tokens"] for part in parts]), whole["tokens"])


class Vocabulary:
    vocab_size = 1234


class Numbers:
    vocab_size, eos = 5000, 0  # those of the stores


DENOISERS = [MaskedWords(), SpanCorruption(), UL2(), PrefixLM(), FillInTheMiddle(rate=1.0)]


def denoised(denoise, **settings):
    return dataclasses.replace(in_memory(denoise=denoise, length=20, **settings), tokenizer=Numbers())


@pytest.mark.parametrize("denoise", DENOISERS, ids=lambda denoise: type(denoise).__name__)
def test_denoised_batches_are_those_of_the_same_rows(denoise):
    plain, prepared = in_memory(length=20), denoised(denoise)
    denoiser, loader = denoise.build(Numbers(), 20), prepared.train_loader()
    for step in (0, 3, 300):  # in chunks of several steps
        batch = loader(step)
        rows = plain.train_loader()(step)
        np.testing.assert_array_equal(denoiser.invert(batch), rows["targets"])
        expected = denoiser(rows, Draws(0, TRAINING, step * 4 + np.arange(4)))  # by the number of the row in all of training
        for name, value in batch.items():
            np.testing.assert_array_equal(value, expected[name])
        assert {value.shape[0] for value in batch.values()} == {4} and batch["tokens"].shape[1] == prepared.config.row_length()
        assert prepared.config.inputs <= batch.keys() and batch["targets"].max() < prepared.num_outputs
        assert max(batch[name].max() for name in batch if name.endswith("tokens")) < prepared.vocab_size
        parts = [denoised(denoise).train_loader(rows)(step) for rows in (slice(0, 1), slice(1, 4))]
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    assert (
        loader.fingerprint
        != plain.train_loader().fingerprint
        == {name: value for name, value in loader.fingerprint.items() if name != "denoise"}
    )
    # Evaluation: every row of the split, each time alike, also cut otherwise between processes; training: another time otherwise.
    once, again = (list(prepared.eval_batches("validation", batch_size=2)) for _ in range(2))
    other = [list(prepared.eval_batches("validation", batch_size=2, rows=rows)) for rows in (slice(0, 1), slice(1, 2))]
    for number, batch in enumerate(once):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, again[number][name])
            np.testing.assert_array_equal(value, np.concatenate([part[number][name] for part in other]))
    texts = [batch["targets"] for batch in plain.eval_batches("validation", batch_size=2)]
    np.testing.assert_array_equal([denoiser.invert(batch) for batch in once], texts)
    assert prepared.num_bytes("validation") == 0


def test_every_epoch_is_denoised_anew():
    prepared = denoised(MaskedWords(), batch_size=4, packing=Packing(tail="drop"), weights=(1.0, 0.0))
    loader = prepared.train_loader()
    masks: dict[bytes, set] = {}
    for step in range(15 * 4):  # 15 rows an epoch
        batch = loader(step)
        for text, weights in zip(batch["targets"], batch["weights"], strict=True):
            masks.setdefault(text.tobytes(), set()).add(weights.tobytes())
    assert len(masks) == 15 and all(len(found) > 10 for found in masks.values())


def test_what_denoising_adds_to_the_vocabulary():
    sizes = {type(d).__name__: (denoised(d).vocab_size - 5000, denoised(d).num_outputs - 5000) for d in DENOISERS}
    assert sizes == {
        **{"MaskedWords": (1, 0), "SpanCorruption": (100, 100), "UL2": (103, 103)},
        **{"PrefixLM": (0, 0), "FillInTheMiddle": (3, 3)},
    }
    assert denoised(UL2()).describe().splitlines()[0] == "vocabulary of 5,000 and 103 for denoising"


def test_describe_counts_documents_tokens_and_bytes():
    lines = dataclasses.replace(in_memory(), tokenizer=Vocabulary()).describe().splitlines()
    assert lines[0] == "vocabulary of 1,234"
    assert lines[1] == "large train: 2 documents, 300 tokens, 900 bytes (3.00 bytes per token)"
    assert len(lines) == 6


def test_a_missing_split_names_those_that_exist():
    with pytest.raises(DataError, match="no split 'valid'; did you mean 'validation'"):
        in_memory().eval_batches("valid")
    prepared = in_memory()
    del prepared.corpora["small"]["train"]
    with pytest.raises(DataError, match="corpus 'small' has no split 'train'; it has 'validation'"):
        prepared.train_loader()


def test_a_row_longer_than_the_data_names_both_numbers():
    with pytest.raises(DataError, match="'small' has 100 training tokens, fewer than one row of length=101"):
        in_memory(length=101, batch_size=1).train_loader()


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("length=0 must be above 0", {"length": 0}),
        ("batch_size=-2 must be above 0", {"batch_size": -2}),
        ("num_workers=0 must be above 0", {"num_workers": 0}),
        ("corpora is empty", {"corpora": ()}),
        ("two corpora have one name: a, a", {"names": "aa"}),
        ("takes a row for one text", {"denoise": SpanCorruption(), "document_mask": True}),
        ("need as many sentinels, not 100", {"denoise": SpanCorruption(), "length": 4096}),
        ("3 mixture weights", {"weights": (1.0, 2.0, 3.0)}),
        ("corpus 'b' is -1.0", {"weights": (1.0, -1.0)}),
        ("stages start at steps \\[0, 0\\]", {"stages": (Stage(weights=(1.0, 1.0)),)}),
        ("method='pac' is not one of .* did you mean 'pack'", {"packing": Packing(method="pac")}),
    ],
)
def test_mistakes_are_named(message, settings, make_config):
    with pytest.raises(ConfigError, match=message):
        validate_tree(make_config(**settings))


def test_the_cache_is_where_it_is_said_to_be(monkeypatch, make_config):
    monkeypatch.delenv("LM_JAX_CACHE", raising=False)
    assert make_config().cache() == Path("~/.cache/lm_jax").expanduser()
    monkeypatch.setenv("LM_JAX_CACHE", "/some/where")
    assert make_config().cache() == Path("/some/where")
    assert make_config(cache_dir="/else/where").cache() == Path("/else/where")


def test_the_config_is_rebuilt_from_its_record(make_config):
    config = make_config(weights=(0.5, 1.5), stages=(Stage(start_step=3, weights=(1.0, 0.0)),))
    validate_tree(config)
    assert from_json(to_json(config)) == config
