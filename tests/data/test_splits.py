"""Rules that hold text out."""

import json

import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.sources import Document
from lm_jax.data.splits import HashSplit, ListedSplit, Split, TailFraction

DOCUMENTS = [Document(f"d{i}.txt:{i}", f"text {i} " * (i + 1)) for i in range(2000)]


def test_no_rule_trains_on_everything():
    assert list(Split().assign(DOCUMENTS)) == [("train", d) for d in DOCUMENTS]


def test_the_tail_of_every_document_is_held_out_and_nothing_is_lost():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1003)))
    parts = list(TailFraction(validation=0.1, test=0.2).assign([Document("a", text)]))
    assert [split for split, _ in parts] == ["train", "validation", "test"]
    assert "".join(d.text for _, d in parts) == text
    assert [len(d.text) for _, d in parts] == [702, 100, 201]
    shakespeare = list(TailFraction(validation=0.1).assign([Document("s", "x" * 1_115_394)]))
    assert [len(d.text) for _, d in shakespeare] == [1_003_854, 111_540]  # as nanoGPT cuts it


def test_a_hash_decides_alone_for_each_document():
    rule = HashSplit(validation=0.1, test=0.05)
    place = {d.name: split for split, d in rule.assign(DOCUMENTS)}
    assert place == {d.name: split for split, d in rule.assign(DOCUMENTS[::-1])}
    assert {n: place[n] for n in list(place)[:500]} == {d.name: s for s, d in rule.assign(DOCUMENTS[:500])}
    counts = [list(place.values()).count(split) / 2000 for split in ("validation", "test")]
    assert counts == pytest.approx([0.1, 0.05], abs=0.02)
    other = {d.name: split for split, d in HashSplit(validation=0.1, test=0.05, seed=1).assign(DOCUMENTS)}
    assert other != place


def test_a_list_of_files(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["d0.txt"], "test": ["d1.txt"]}))
    assert [s for s, _ in ListedSplit(path=str(path)).assign(DOCUMENTS[:2])] == ["train", "test"]
    with pytest.raises(DataError, match=r"does not say in which split d2\.txt is"):
        list(ListedSplit(path=str(path)).assign(DOCUMENTS[:3]))
    path.write_text(json.dumps({"train": ["d0.txt"], "test": ["d0.txt"]}))
    with pytest.raises(DataError, match=r"d0\.txt is both in train and in test"):
        list(ListedSplit(path=str(path)).assign(DOCUMENTS[:1]))
    path.write_text(json.dumps({"dev": ["d0.txt"]}))
    with pytest.raises(DataError, match="'dev' is not one of train, validation, test"):
        list(ListedSplit(path=str(path)).assign(DOCUMENTS[:1]))


def test_shares_must_leave_something():
    with pytest.raises(ConfigError, match="sum below 1"):
        validate_tree(TailFraction(validation=0.5, test=0.5))
