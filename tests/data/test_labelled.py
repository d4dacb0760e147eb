"""Labelled texts, from lines of files to batches."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.labelled import LabelledLines, LabelledText
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import Characters, Words


def lines(folder, name, text, **how):
    (folder / name).write_text(text)
    return LabelledLines(paths=(str(folder / name),), **how)


def data(folder, train="good film\t1\nbad film\t0\n\n", **more):
    fields = {"train": lines(folder, "train.tsv", train), "tokenizer": Words(min_count=1), "length": 8, "batch_size": 1} | more
    return LabelledText(**fields)


def test_a_batch_holds_texts_and_labels(tmp_path):
    test = lines(tmp_path, "test.tsv", "an unknown bad word\t0")
    prepared = data(tmp_path, test=test).prepare()
    tokenizer = prepared.tokenizer
    assert prepared.classes == ("0", "1") and prepared.num_outputs == 2
    batch = prepared.train_loader()(0)
    assert batch["tokens"].shape == (1, 8)
    texts = {}
    for segment in (1, 2):
        here = np.flatnonzero(batch["segments"][0] == segment)
        tokens = batch["tokens"][0, here]
        assert tokens[0] == tokenizer.eos
        np.testing.assert_array_equal(batch["weights"][0, here], [1, 0, 0])
        texts[tokenizer.decode(tokens[1:])] = prepared.classes[batch["targets"][0, here[0]]]
    assert texts == {"good film": "1", "bad film": "0"}
    (batch,) = prepared.eval_batches("test", batch_size=2)
    assert batch["tokens"].shape == (2, 8) and batch["weights"].sum() == 1 and batch["segments"][1].max() == 0


def test_features_are_those_of_the_ngrams_that_end_at_a_token(tmp_path):
    config = data(tmp_path, train="a b a b a\t1\nb a b a\t0", ngrams=3, length=16)
    examples = config.prepare().require("train")
    seen = {}
    for example in examples:
        tokens, features = example.arrays["tokens"].tolist(), example.arrays["features"]
        assert features.dtype == np.int32 and features.shape == (len(tokens), 2) and features.min() >= 0
        padded = tokens[:1] * 2 + tokens
        for at in range(len(tokens)):
            for n in (2, 3):
                seen.setdefault(tuple(padded[at + 3 - n : at + 3]), set()).add(int(features[at, n - 2]))
    assert all(len(found) == 1 for found in seen.values())  # the same n-gram, wherever it stands
    assert len(set.union(*seen.values())) == len(seen) == 5 + 7
    batch = config.prepare().train_loader()(0)
    assert batch["features"].shape == config.shapes()["features"].shape and config.inputs == {"tokens", "features"}
    assert "features" not in data(tmp_path).prepare().train_loader()(0)
    with pytest.raises(ConfigError, match="ngrams=0"):
        validate_tree(data(tmp_path, ngrams=0))


def test_label_first_and_separators_in_the_text(tmp_path):
    source = lines(tmp_path, "a.txt", "2 what is it ?\n10 who ?\r\n", label="first", separator=" ")
    prepared = data(tmp_path, train="", tokenizer=Words(min_count=1)).__class__(
        train=source, tokenizer=Words(min_count=1), length=8
    )
    prepared = prepared.prepare()
    assert prepared.classes == ("2", "10")  # short ones first: numbers in their order
    assert [prepared.tokenizer.decode(e.arrays["tokens"][1:]) for e in prepared.examples["train"]] == ["what is it ?", "who ?"]
    with_tab = lines(tmp_path, "b.tsv", "a\tb\t1\nc\t0")
    texts = list(with_tab.read(dict.fromkeys(["lines dropped: blank"], 0)))
    assert [(text.text, text.label) for text in texts] == [("a\tb", "1"), ("c", "0")]


def test_a_long_text_is_cut_and_counted(tmp_path):
    prepared = data(tmp_path, train="one two three four\t1\nb\t0", length=3).prepare()
    assert sorted(e.length() for e in prepared.examples["train"]) == [2, 3]
    assert prepared.record["texts cut to a row"] == 1 and "texts cut to a row: 1" in prepared.describe()


def test_only_the_first_texts_are_read(tmp_path):
    source = dataclasses.replace(lines(tmp_path, "c.tsv", "a\t1\n\nb\t0\nc\t1\nno label"), first=2)
    assert [text.text for text in source.read(Counter())] == ["a", "b"]
    with pytest.raises(ConfigError, match="first=0 must be above 0"):
        validate_tree(dataclasses.replace(source, first=0))


def test_what_is_held_out_does_not_train(tmp_path):
    text = "".join(f"{chr(97 + i % 26)} {i}\t{i % 2}\n" for i in range(400))
    split = HashSplit(validation=0.1, test=0.2)
    prepared = data(tmp_path, train=text, split=split, tokenizer=Characters()).prepare()
    sizes = {name: len(found) for name, found in prepared.examples.items()}
    assert sum(sizes.values()) == 400 and 20 < sizes["validation"] < 60 and 55 < sizes["test"] < 105
    names = [example.name for found in prepared.examples.values() for example in found]
    assert len(set(names)) == 400


def test_balanced_classes_are_equally_frequent_in_an_epoch(tmp_path):
    text = "".join(f"rare{i} a\t1\n" for i in range(5)) + "".join(f"common{i} a b\t0\n" for i in range(23)) + "odd\t2\n"
    prepared = data(tmp_path, train=text, balanced=True).prepare()
    loader = prepared.train_loader()
    names = [name for step in range(len(loader._rows)) for row in loader.documents(step) for name in row]
    lines = [int(name.rpartition(":")[2]) for name in names]
    per_class = [sum(low <= line <= high for line in lines) for low, high in ((1, 5), (6, 28), (29, 29))]
    assert per_class == [23, 23, 23]
    times = [lines.count(line) for line in range(1, 30)]
    assert set(times[:5]) == {4, 5} and times[5:] == [1] * 23 + [23]
    batch, again = loader(7), prepared.train_loader()(7)
    for name, value in batch.items():
        np.testing.assert_array_equal(value, again[name])
    plain = data(tmp_path, train=text).prepare().train_loader()
    assert plain.fingerprint != loader.fingerprint and sum(len(row) for row in plain._rows.rows) == 29


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"test.tsv:1: label '7' is not among those of the training texts: 0, 1"):
        data(tmp_path, test=lines(tmp_path, "test.tsv", "x\t7")).prepare()
    with pytest.raises(DataError, match=r"train.tsv:2 is no text with its label last after '\\t': 'no label'"):
        data(tmp_path, train="a\t1\nno label").prepare()
    with pytest.raises(DataError, match=r"LabelledText\.train has nothing to train on: LabelledLines"):
        data(tmp_path, train="\n").prepare()
    with pytest.raises(DataError, match=r"test.tsv:2: character 'ß' at 1 is not in the vocabulary"):
        test = lines(tmp_path, "test.tsv", "a\t1\naß\t1")
        dataclasses.replace(data(tmp_path, train="a\t1\nb\t0", test=test), tokenizer=Characters()).prepare()
    with pytest.raises(DataError, match="there is no split 'tests'"):
        data(tmp_path).prepare().require("tests")
    with pytest.raises(DataError, match="no file at"):
        dataclasses.replace(data(tmp_path), train=LabelledLines(paths=(str(tmp_path / "none.tsv"),))).prepare()
    for bad, message in (({"label": "middle"}, "label='middle'"), ({"separator": ""}, "separator is empty")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(LabelledLines(paths=("a",), **bad))
