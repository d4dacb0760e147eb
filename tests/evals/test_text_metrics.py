"""Metrics of texts against values worked out by hand."""

import math

import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.evals import text_metrics
from lm_jax.evals.text_metrics import METRICS, check_metrics, normalised


def scores(name, texts, references):
    return dict(METRICS[name](texts, references))


def test_bleu_by_hand():
    pytest.importorskip("sacrebleu")
    # Precisions of 1 to 4 words 5/6, 4/5, 3/4, 2/3; as long as its reference.
    got = scores("bleu", ["The cat sat on the mat"], [["the cat sat on the rug"]])
    assert got["bleu"] == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4))
    assert got["brevity_penalty"] == 1
    # The second reference of the first text counts; the other text has one only.
    two = scores("bleu", ["a b c d e", "f g h i"], [["x x x x x", "a b c d e"], ["f g h i"]])
    assert two["bleu"] == pytest.approx(100)
    assert scores("chrf", ["ab cd"], [["ab cd"]])["chrf"] == 100


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    # 3 of 4 words are in order in 5: precision 3/4, recall 3/5.
    got = scores("rouge", ["police killed the gunman"], [["nothing at all", "police have killed a gunman"]])
    assert got["rougeL"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))


def test_answers_are_compared_as_squad_does():
    assert normalised("The  Cat, and an owl!") == "cat and owl"
    texts, references = ["The Eiffel Tower.", "Paris", ""], [["eiffel tower"], ["in Paris, France", "Rome"], ["x"]]
    assert scores("exact", texts, references)["exact"] == pytest.approx(1 / 3)
    assert scores("f1", texts, references)["f1"] == pytest.approx((1 + 2 * (1 / 1) * (1 / 3) / (1 / 1 + 1 / 3) + 0) / 3)
    assert text_metrics.word_f1("the", "a") == 0.0


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"needs the package sacrebleu: pip install 'lm_jax\[metrics\]'"):
        scores("bleu", ["a"], [["a"]])


def test_other_scripts():
    """A Chinese character is a word of BLEU, ROUGE and F1; rouge refuses what it would not read."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    text, known = ["我爱北京天门"], [["我爱北京天安门"]]
    assert scores("f1", text, known)["f1"] == pytest.approx(2 * 6 / 13)
    assert scores("rouge_words", text, known)["rouge2_words"] == pytest.approx(100 * 2 * 4 / 11)
    assert scores("rouge_words", ["Über Größe"], [["über die Größe"]])["rougeL_words"] == pytest.approx(80)
    # Precisions of 1 to 4 characters 6/6, 4/5, 3/4, 2/3; one shorter than its reference.
    precisions = (1, 4 / 5, 3 / 4, 2 / 3)
    assert scores("bleu_zh", text, known)["bleu_zh"] == pytest.approx(
        100 * math.exp(1 - 7 / 6 + sum(map(math.log, precisions)) / 4)
    )
    with pytest.raises(
        ConfigError, match="rouge reads the letters a to z and digits, and '我爱北京天安门' has none; take rouge_words"
    ):
        check_metrics(("rouge",), known)
    check_metrics(("rouge", "bleu"), [["a", ""]])
    check_metrics(("rouge_words", "bleu_zh"), known)
