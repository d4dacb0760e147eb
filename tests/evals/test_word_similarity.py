"""Word similarity: ranks against scipy, and the scores of vectors whose cosines are known."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.data.tokenizers import WordTokenizer
from lm_jax.evals.base import Shown
from lm_jax.evals.word_similarity import WordSimilarityConfig, spearman
from lm_jax.models.word_vectors import WordVectorsConfig
from tests.models_for_tests import llama

WORDS = ["king", "queen", "sea", "ship", "run", "walk"]
PAIRS = [("King", "queen", 9.0), ("sea", "ship", 7.5), ("king", "sea", 1.0), ("run", "walk", 7.5), ("sea", "aeroplane", 2.0)]


class Data:
    """A vocabulary as prepared data: ids 0 and 1 are the end of a document and unknown words."""

    tokenizer, vocab_size = WordTokenizer(WORDS, lowercase=False, split="words"), len(WORDS) + 2


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_equals_scipy_also_with_ties(levels):
    rng = np.random.default_rng(0)
    a = rng.integers(0, levels, 60)
    b = a + rng.integers(0, levels, 60)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, rel=1e-12)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_scores_are_over_known_pairs_and_the_nearest_words_are_shown(tmp_path):
    (tmp_path / "some.txt").write_text("".join(f"{one}\t{other}\t{score}\n" for one, other, score in PAIRS))
    config = WordSimilarityConfig(paths=(f"{tmp_path}/some.txt",), queries=("king", "aeroplane"), nearest=2)
    table = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    known = [(WORDS.index(one.lower()) + 2, WORDS.index(other) + 2) for one, other, _ in PAIRS[:4]]
    cosine = lambda i, j: float(table[i] @ table[j] / np.linalg.norm(table[i]) / np.linalg.norm(table[j]))  # noqa: E731
    expected = scipy.stats.spearmanr([9.0, 7.5, 1.0, 7.5], [cosine(i, j) for i, j in known]).statistic
    near = sorted((i for i in range(8) if i != 2), key=lambda i: -cosine(2, i))[:2]

    def check(graph, like):
        place = lambda x: x if like is None else jax.device_put(x, like["embedding"]["table"].sharding)  # noqa: E731
        params = {"embedding": {"table": place(table)}, "contexts": {"table": place(np.zeros_like(table))}}
        both = dataclasses.replace(config, vectors="sum")
        parts = {"embedding": {"table": place(table - 1.0)}, "contexts": {"table": place(np.ones_like(table))}}
        summed = dict(x for x in both.scores(graph, parts, Data(), None, slice(None)) if not isinstance(x, Shown))
        assert summed["some"] == pytest.approx(expected)
        found = list(config.scores(graph, params, Data(), lambda batch: batch, slice(None)))
        scores, shown = (
            dict(pair for pair in found if not isinstance(pair, Shown)),
            [one for one in found if isinstance(one, Shown)],
        )
        assert scores == pytest.approx({"some/pairs": 4.0, "some/missing": 1.0, "some": expected})
        assert shown == [Shown("king: ", ", ".join(Data.tokenizer.decode([i]) for i in near), {})]

    vectors = WordVectorsConfig(vocab_size=8, width=4)
    check(split(vectors.build(jax.random.key(0)))[0], None)
    with use_mesh(MeshShape(dp=1, fsdp=2, tp=4).build(), Layout()):
        check(*split(jax.jit(vectors.build)(jax.random.key(0))))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match="vectors='sum' is for models with two vectors of each word, and this is a DecoderConfig"):
        WordSimilarityConfig(paths=("x",), vectors="sum").check(llama(), None)
    with pytest.raises(ConfigError, match="paths is empty"):
        validate_tree(WordSimilarityConfig(paths=()))
    (tmp_path / "bad.txt").write_text("king\tqueen\t9\nsea ship 3\n")
    config = WordSimilarityConfig(paths=(f"{tmp_path}/bad.txt",))
    graph, params = split(WordVectorsConfig(vocab_size=8, width=4).build(jax.random.key(0)))
    with pytest.raises(DataError, match=r"bad.txt:2 is no pair of words with a score"):
        list(config.scores(graph, params, Data(), lambda batch: batch, slice(None)))


def test_files_are_read_before_training(tmp_path):
    model = WordVectorsConfig()
    with pytest.raises(DataError, match="no file at"):
        WordSimilarityConfig(paths=(str(tmp_path / "no.tsv"),)).check(model, None)
    (tmp_path / "latin.txt").write_text("king\tqueen\t9\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "latin.tsv").write_text("king\tqueen\t9\n")
    both = WordSimilarityConfig(paths=(f"{tmp_path}/latin.txt", f"{tmp_path}/more/latin.tsv"))
    with pytest.raises(ConfigError, match=r"would both be named 'latin'; rename one"):
        both.check(model, None)
    (tmp_path / "latin.tsv").write_bytes("na\u00efve\tdull\t1.0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.tsv is not valid UTF-8 at byte 2"):
        WordSimilarityConfig(paths=(str(tmp_path / "latin.tsv"),)).check(model, None)
