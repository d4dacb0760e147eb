"""Tagged sentences, from lines of files to the targets of tokens, and back to words."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.tagged import TaggedLines, TaggedText
from lm_jax.data.tokenizers import BPE, Bytes, Characters, Words
from lm_jax.data.words import feature_hash, shape, word_features

NAMES = "en:Anne\tB-PER\nen:of\tO\nen:New\tB-LOC\nen:York\tI-LOC\n\nen:Anne\tB-PER\nen:Lee\tI-PER\n"


def lines(folder, text, name="train.txt", **how):
    (folder / name).write_text(text)
    return TaggedLines(paths=(str(folder / name),), **({"word": "en:(.+)"} | how))


def data(folder, text=NAMES, **more):
    fields = {"train": lines(folder, text), "tokenizer": Words(min_count=1, split="whitespace"), "length": 8, "batch_size": 1}
    return TaggedText(**(fields | more))


def read(source):
    counts = collections.Counter()
    return list(source.read(counts)), counts


def test_sentences_of_wikiann(tmp_path):
    (one, two), _ = read(lines(tmp_path, NAMES.replace("\n\n", "\r\n \r\n\n")))
    assert one == ("train.txt:1", ("Anne", "of", "New", "York"), ("B-PER", "O", "B-LOC", "I-LOC"))
    assert two.name == "train.txt:7" and two.words == ("Anne", "Lee")  # after two blank lines


def test_other_columns_and_schemes(tmp_path):
    (weibo,), _ = read(lines(tmp_path, "科0\tB-ORG.NAM\n技1\tI-ORG.NAM\n1\u300010\tO\n", word=r"(.+)\d"))
    assert weibo.words == ("科", "技", "1\u30001") and weibo.tags == ("B-ORG.NAM", "I-ORG.NAM", "O")
    text = "高 B-NAME\n勇 E-NAME\n： O\n中 S-LOC\n国 B-LOC\n人 M-LOC\n民 E-LOC\n"
    (resume,), _ = read(lines(tmp_path, text, word="(.)", separator=" ", scheme="BMES"))
    assert resume.tags == ("B-NAME", "I-NAME", "O", "B-LOC", "B-LOC", "I-LOC", "I-LOC")


def test_a_batch_holds_words_tags_and_features(tmp_path):
    prepared = data(tmp_path).prepare()
    assert prepared.classes == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and prepared.num_outputs == 5
    batch = prepared.train_loader()(0)
    assert batch["tokens"].shape == (1, 8) and batch["features"].shape == (1, 8, 10)
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 1, 1, 2, 2, 0, 0]])
    np.testing.assert_array_equal(batch["targets"], [[3, 0, 1, 2, 3, 4, 0, 0]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1, 1, 1, 0, 0]])
    assert prepared.tokenizer.decode(batch["tokens"][0, :6]) == "Anne of New York Anne Lee"
    np.testing.assert_array_equal(batch["features"][0, 3], word_features("York", 4))
    assert not batch["features"][0, 6:].any()


WORDS = st.text(st.characters(exclude_categories=("C", "Z"), codec="utf-8"), min_size=1, max_size=12)
TAGGED = st.lists(st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-X", "B-Y"])), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(TAGGED, st.sampled_from([Words(min_count=1, split="whitespace"), Characters(), Bytes(), BPE(vocab_size=260)]))
def test_tokens_lead_back_to_words(tmp_path_factory, sentences, tokenizer):
    """Of any tokenizer: as many weights as words, at the first token of each, and the tokens up to the next are the word's."""
    text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences)
    source = lines(tmp_path_factory.mktemp("tagged"), text, word="(.+)")
    prepared = TaggedText(train=source, tokenizer=tokenizer, length=50).prepare()
    found = []
    for example in prepared.examples["train"]:
        heads = np.flatnonzero(example.arrays["weights"])
        assert heads[0] == 0 and example.length() <= 50
        for first, end in zip(heads, [*heads[1:], example.length()], strict=True):
            word = prepared.tokenizer.decode(example.arrays["tokens"][first:end])
            found.append((word, prepared.classes[example.arrays["targets"][first]]))
            features = example.arrays["features"][first:end]
            np.testing.assert_array_equal(features, np.broadcast_to(word_features(word, 4), features.shape))
    assert found == [pair for sentence in sentences for pair in sentence]
    if isinstance(tokenizer, Words):
        assert all(example.arrays["weights"].all() for example in prepared.examples["train"])


def test_long_sentences_and_words_are_cut_and_counted(tmp_path):
    prepared = data(tmp_path, tokenizer=Bytes(), length=7).prepare()
    pieces = [prepared.tokenizer.decode(example.arrays["tokens"]) for example in prepared.examples["train"]]
    assert pieces == ["Anneof", "NewYork", "AnneLee"] and prepared.record["sentences cut into several"] == 1
    assert sum(int(e.arrays["weights"].sum()) for e in prepared.examples["train"]) == 6
    prepared = data(tmp_path, tokenizer=Bytes(), length=3).prepare()
    assert prepared.record["words cut to a row"] == 3  # Anne, York, Anne
    assert [int(e.arrays["weights"].sum()) for e in prepared.examples["train"]] == [1] * 6


def test_bad_input_is_named(tmp_path):
    for text, message in (
        (
            "en:a\tO\nen:b\tI-PER\n",
            r"train.txt:2: tag 'I-PER' goes on with a span, and none of its type is open after 'O'; correct it",
        ),
        ("en:a\tB-LOC\nen:b\tI-PER\n", r"train.txt:2: tag 'I-PER' goes on .* open after 'B-LOC'"),
        ("en:a\tB-PER\n\nen:b\tI-PER\n", r"train.txt:3: tag 'I-PER' goes on .* open after 'O'"),
        ("en:a\tO\nen:b\n", r"train.txt:2 is no word 'en:\(.\+\)' with a tag after '\\t': 'en:b'"),
        ("en:a\tO\nb\tO\n", r"train.txt:2 is no word"),
        ("en:a\tE-PER\n", r"train.txt:1: tag 'E-PER' is none of O, B-TYPE, I-TYPE \(scheme='BIO'\)"),
        ("en:a\tB\n", r"train.txt:1: tag 'B' is none of"),
    ):
        with pytest.raises(DataError, match=message):
            data(tmp_path, text).prepare()
    for tags in ("S-LOC E-LOC", "B-LOC E-LOC M-LOC"):  # an end and a single word are the last of their span
        text = "".join(f"en:a\t{tag}\n" for tag in tags.split())
        with pytest.raises(DataError, match=rf"train.txt:{tags.count('-')}: tag 'I-LOC' \(in BIO\) goes on with a span"):
            read(lines(tmp_path, text, scheme="BMES"))
    with pytest.raises(DataError, match=r"train.txt:2: tag 'I-LOC' \(in BIO\) goes on with a span"):
        read(lines(tmp_path, "en:a\tO\nen:b\tE-LOC\n", scheme="BMES"))
    with pytest.raises(DataError, match=r"train.txt:1 is no word 'en:\(.\)\|dog' with a tag"):
        read(lines(tmp_path, "dog\tO\n", word="en:(.)|dog"))
    test = lines(tmp_path, "en:a\tO\nen:b\tB-ORG\n", "test.txt")
    with pytest.raises(DataError, match=r"test.txt:2: tag 'B-ORG' is not among those of the training sentences: O, B-LOC, I-LOC"):
        data(tmp_path, test=test).prepare()
    for bad, message in (
        ({"scheme": "IO"}, "scheme='IO'"),
        ({"invalid": "drop"}, "invalid='drop'"),
        ({"word": "(.)(.)"}, "has 2 groups and must have one: it is the word"),
        ({"word": "("}, "is no regular expression"),
        ({"separator": ""}, "separator is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(TaggedLines(paths=("a",), **bad))


def test_repairs_are_counted(tmp_path):
    text = "en:a\tI-PER\nen:b\tI-PER\nen:c\tI-LOC\n\nen:d\tI-LOC\n"
    sentences, counts = read(lines(tmp_path, text, invalid="repair"))
    assert [s.tags for s in sentences] == [("B-PER", "I-PER", "B-LOC"), ("B-LOC",)]
    assert counts["tags repaired: a span that had no beginning"] == 3


def test_features_of_words():
    assert [shape(w) for w in ("McDonald-90", "USA", "kindergarten", "''")] == ["XxXxxxx-dd", "XXX", "xxxx", "''"]
    names = [
        "begins U",
        "begins US",
        "begins USA",
        "begins USA",
        "ends A",
        "ends SA",
        "ends USA",
        "ends USA",
        "is usa",
        "looks XXX",
    ]
    np.testing.assert_array_equal(word_features("USA", 4), [feature_hash(name) for name in names])
    assert word_features("\ud800", 1).min() >= 0  # half a surrogate pair has features too
