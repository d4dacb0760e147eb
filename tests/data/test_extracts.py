"""Documents whose summaries are some of their sentences: where these begin, and which are in a summary."""

import json

import numpy as np
import pytest

from lm_jax.data.extracts import ExtractedSentences, sentences
from lm_jax.data.pairs import Pairs
from lm_jax.data.sources import JsonLines
from lm_jax.data.tokenizers import Characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said: "Go." She went.\nA line', ['He said: "Go."', "She went.", "A line"]),
        ("It rose 4.75% to 3. The rest, e.g. this one, did not.", ["It rose 4.75% to 3.", "The rest, e.g. this one, did not."]),
        (" \n\n", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def extracts(tmp_path, rows, **config):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"d": d, "s": s}) for d, s in rows))
    sides = [JsonLines(paths=(str(tmp_path / "a.jsonl"),), fields=(field,)) for field in "ds"]
    pairs = Pairs(source=sides[0], target=sides[1])
    return ExtractedSentences(train=pairs, test=pairs, tokenizer=Characters(), batch_size=1, **config)


def test_the_sentences_of_the_summary_are_taken(tmp_path):
    """Whatever white space and order it has."""
    data = extracts(tmp_path, [("Ab c. De.\nFg h? Ij.", "Fg h?Ab c."), ("Aa. Bb.", "Bb.")], length=32).prepare()
    first, second = data.require("train")
    text = lambda example: data.tokenizer.decode(example.arrays["tokens"])  # noqa: E731
    starts = np.flatnonzero(first.arrays["weights"])
    assert (first.arrays["tokens"][starts] == data.tokenizer.eos).all() and first.arrays["weights"].sum() == 4
    assert first.arrays["targets"][starts].tolist() == [1, 0, 1, 0]
    assert text(first) == "".join(f"<|endoftext|>{part}" for part in ("Ab c.", "De.", "Fg h?", "Ij."))
    assert second.arrays["targets"][second.arrays["weights"] > 0].tolist() == [0, 1]
    assert data.num_outputs == 2 and data.references("test") == [["Fg h?Ab c."], ["Bb."]]


def test_what_is_cut_is_counted(tmp_path):
    data = extracts(tmp_path, [("Abc. Def. Ghi.", "Ghi."), ("Abc.", "Abc.")], length=7).prepare()
    arrays = data.require("train")[0].arrays
    assert len(arrays["tokens"]) == 7 and arrays["weights"].sum() == 2 and not arrays["targets"].any()
    assert data.record["documents cut to a row"] == 2  # of train and of test
