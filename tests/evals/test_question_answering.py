"""Scores of answers on cases of SQuAD's script, the best span against loops, and windows of one question."""

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, local_rows, shard_batch, use_mesh
from lm_jax.data.tokenizers import Bytes
from lm_jax.evals.base import Shown
from lm_jax.evals.question_answering import QuestionAnsweringConfig, best_span
from lm_jax.evals.text_metrics import is_answer, normalised, word_f1
from tests.data.test_questions import data
from tests.objectives.test_spans import reader


def test_normalisation_is_that_of_the_script():
    # What evaluate-v1.1.py gives: lower case, then punctuation, then articles, then white space.
    for text, expected in (
        ("The  Eiffel-Tower,", "eiffeltower"),
        ("An apple a day", "apple day"),
        ("theory of a.n. other", "theory of other"),
        ("“quoted” text’s", "“quoted” text’s"),  # only ASCII punctuation
        ("\ta\n", ""),
    ):
        assert normalised(text) == expected
    assert is_answer("the U.S.", "US") and not is_answer("USA", "US")


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        ("October 6, 1973", "on October 6, 1973", 6 / 7),
        ("the cat cat sat", "cat sat sat", 2 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("The Cat!", "cat", 1.0),
    ],
)
def test_f1_counts_common_words(found, reference, expected):
    assert word_f1(found, reference) == pytest.approx(expected)


def test_the_best_span_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for words in (1, 5, 12):
        scores = rng.normal(size=(words, 2))
        pairs = [(i, j) for i in range(words) for j in range(i, min(i + 4, words))]
        best = max(pairs, key=lambda pair: scores[pair[0], 0] + scores[pair[1], 1])
        assert best_span(scores, 4)[1:] == best


def test_a_model_answers_from_its_best_window_on_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        words = ["".join(rng.choice(list("abc"), rng.integers(1, 4))) for _ in range(rng.integers(4, 16))]
        rows.append((" ".join(words), " ".join(rng.choice(words, 2)) + "?", [words[2], words[1]]))
    prepared = data(tmp_path, rows, tokenizer=Bytes(), length=24, question_length=8, stride=4, batch_size=4).prepare()
    assert len(prepared.examples["train"]) > len(rows)
    model = reader().build(jax.random.key(0))
    graph, params = split(model)
    config = QuestionAnsweringConfig(split="train", batch_size=4, max_words=3, shown=len(rows))
    results = list(config.scores(graph, params, prepared, lambda batch: batch, slice(None)))
    scores, shown = dict(r for r in results if not isinstance(r, Shown)), [r for r in results if isinstance(r, Shown)]
    score = jax.jit(lambda batch: model.logits(model(batch).hidden))
    best = [(-np.inf, "")] * len(rows)
    for example, place in zip(prepared.examples["train"], prepared.places["train"], strict=True):  # each alone in a row
        arrays, pad = example.arrays, 24 - example.length()
        row = {n: np.pad(arrays[n], [(0, pad), (0, 0)][: arrays[n].ndim])[None] for n in ("tokens", "features")}
        row |= {"segments": (np.arange(24) < 24 - pad)[None].astype(np.int32), "positions": np.arange(24, dtype=np.int32)[None]}
        logits = np.asarray(score(row)[0, : 24 - pad])[arrays["weights"] > 0]
        for i in range(len(logits)):
            for j in range(i, min(i + 3, len(logits))):
                text = rows[place.question][0][place.characters[i, 0] : place.characters[j, 1]]
                best[place.question] = max(best[place.question], (logits[i, 0] + logits[j, 1], text), key=lambda pair: pair[0])
    assert [r.text for r in shown] == [text for _, text in best]
    expected = [max(word_f1(text, answer) for answer in answers) for (_, text), (_, _, answers) in zip(best, rows, strict=True)]
    assert scores["f1"] == pytest.approx(np.mean(expected)) and scores["num_questions"] == len(rows)
    assert 0 <= scores["exact_match"] <= scores["f1"]
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(reader().build)(jax.random.key(0)))
        put = lambda batch: shard_batch(batch, mesh, layout, 4)  # noqa: E731
        again = list(config.scores(graph, params, prepared, put, local_rows(4, mesh, layout)))
    assert [r.text for r in again if isinstance(r, Shown)] == [r.text for r in shown]


def test_bad_values_are_named():
    for more, message in (({"max_words": 0}, "max_words=0"), ({"shown": -1}, "shown=-1")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(QuestionAnsweringConfig(**more))
