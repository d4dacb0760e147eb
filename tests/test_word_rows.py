"""Embedding tables that begin with vectors of words."""

import dataclasses

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError, StorageError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.data.tokenizers import BPE, Characters, Words
from lm_jax.data.word_windows import WordWindows
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.models.word_vectors import WordVectorsConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.objectives.negative_sampling import NegativeSamplingConfig
from lm_jax.trained import load
from lm_jax.word_rows import word_rows
from tests.runs import WORDS, events, experiment
from tests.test_transfer import arrays, frozen

ONE = MeshShape(dp=1)


def language_model(folder, **fields):
    """An experiment of BPE tokens, which differ from words in the spaces before them."""
    config = dataclasses.replace(experiment(folder, num_steps=1), **({"evals": (), "samples": None, "mesh": ONE} | fields))
    config.data.tokenizer = BPE(vocab_size=320)
    config.model.vocab_size = 320
    validate_tree(config)
    return config


def embedding(folder):
    return arrays(folder)["params"]["embedding"]["table"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The directory of a run of word vectors as wide as `language_model`."""
    folder = tmp_path_factory.mktemp("vectors")
    config = dataclasses.replace(experiment(folder, num_steps=2), evals=(), samples=None, mesh=ONE)
    data = WordWindows(
        corpora=config.data.corpora, tokenizer=Words(min_count=1), cache_dir=config.data.cache_dir, num_workers=1, length=16
    )
    model = WordVectorsConfig(vocab_size=64, width=config.model.width)
    assert run.train(dataclasses.replace(config, data=data, model=model, objective=NegativeSamplingConfig()), folder / "run") == 0
    return folder / "run"


@pytest.mark.parametrize("mesh", [ONE, pytest.param(MeshShape(dp=2, fsdp=4), marks=pytest.mark.slow)])
def test_a_token_has_the_vector_of_its_word_and_the_others_what_was_drawn(mesh, vectors, tmp_path):
    plain, given = frozen(language_model(tmp_path), "embedding"), frozen(language_model(tmp_path, mesh=mesh), "embedding")
    given = dataclasses.replace(given, words_from=str(vectors))
    assert run.train(plain, tmp_path / "plain") == run.train(given, tmp_path / "given") == 0
    drawn, table, words = embedding(tmp_path / "plain"), embedding(tmp_path / "given"), embedding(vectors)
    of_words, tokens = load(vectors).tokenizer, load(tmp_path / "given").tokenizer
    by_text = {of_words.decode([i]): i for i in range(of_words.vocab_size)}
    texts = [tokens.decode([i]).strip() for i in range(tokens.vocab_size)]
    assert {word for word in WORDS if len(word) > 2} <= set(texts)  # " the" is a token, "the" a word
    texts = [text if text in by_text else text.lower() for text in texts]
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(table[number], words[by_text[text]] if text in by_text else drawn[number], text)
    (event,) = events(tmp_path / "given", "words")
    assert event["given"] == sum(text in by_text for text in texts) and event["tokens"] == len(texts)
    assert "embedding/table" in event["message"] and not events(tmp_path / "plain", "words")
    # A run that goes on does not begin again.
    assert run.train(given, tmp_path / "given") == 0 and len(events(tmp_path / "given", "words")) == 1


def test_averages_begin_with_the_vectors_too(vectors, tmp_path):
    config = frozen(language_model(tmp_path, words_from=str(vectors)), "embedding")
    config.step.ema_decay = 0.5
    assert run.train(config, tmp_path / "run") == 0
    state = arrays(tmp_path / "run")
    np.testing.assert_array_equal(state["ema"]["embedding"]["table"], state["params"]["embedding"]["table"])


def shapes(width=2, **tables):
    return {name: {"table": np.zeros((rows, width))} for name, rows in tables.items()}


@pytest.mark.parametrize("head", ["", "3 2\n"])
def test_files_of_vectors(head, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(f"{head}the 1 -2.5\nat &t 3 4e-1 \nwe 5 6\n")
    found = word_rows(str(path), shapes(embedding=8), Words(min_count=1).train(["The we of"]))
    # Ids: 0 the end, 1 unknown, 2 "The", 3 "of", 4 "we". "The" has the vector of "the".
    assert found.ids.tolist() == [2, 4] and found.rows.tolist() == [[1, -2.5], [5, 6]]
    spaced = Words(min_count=1, split="lines").train(["at"])
    with pytest.raises(ConfigError, match="none of its words is one of the 3 tokens here"):
        word_rows(str(path), shapes(embedding=8), spaced)
    path.write_bytes("\ufeff3 2\nnew york 7 8\nb\x85c 1 2\nwe 3 4\r\n".encode())  # \x85 ends a line elsewhere
    found = word_rows(str(path), shapes(embedding=8), Words(min_count=1).train(["we york"]))
    assert found.rows.tolist() == [[3, 4]]


def test_pieces_that_differ_in_the_space_before_them_keep_their_own(tmp_path):
    config = language_model(tmp_path)
    config.data.tokenizer = BPE(vocab_size=320, leading_space=True)
    assert run.train(config, tmp_path / "run") == 0
    trained = load(tmp_path / "run")
    table, pieces = embedding(tmp_path / "run"), trained.tokenizer._tokenizer.get_vocab()
    tables = {"embedding": {"table": np.zeros((400, table.shape[1]))}}
    same = word_rows(str(tmp_path / "run"), tables, trained.tokenizer)
    assert same.ids.tolist() == list(range(len(pieces))) and np.array_equal(same.rows, table[: len(pieces)])
    other = BPE(vocab_size=290, leading_space=True).train([" ".join(WORDS * 3)])
    found = word_rows(str(tmp_path / "run"), tables, other)
    rows = dict(zip(found.ids.tolist(), found.rows, strict=True))
    shared = {number: pieces[piece] for piece, number in other._tokenizer.get_vocab().items() if piece in pieces and number in rows}
    assert len(shared) > 100 and {"he", "\u0120he"} <= pieces.keys()
    for number, there in shared.items():
        np.testing.assert_array_equal(rows[number], table[there])


def test_what_comes_first_is_the_very_text(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("a 1 1\nA 2 2\nb 3 3\n")
    found = word_rows(str(path), shapes(embedding=8), Characters().train(["A a B"]))
    tokenizer = Characters().train(["A a B"])
    by_text = {tokenizer.decode([token]): row.tolist() for token, row in zip(found.ids, found.rows, strict=True)}
    assert by_text == {"A": [2, 2], "a": [1, 1], "B": [3, 3]}


def test_every_table_that_words_are_read_by(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(f"a{' 1' * 12}\n")
    model = EncoderDecoderConfig(vocab_size=16, width=12, source=EmbeddingConfig())
    tables = jax.eval_shape(lambda: split(model.build(jax.random.key(0)))[1])
    found = word_rows(str(path), tables, Characters().train(["a"]))
    assert found.tables == [("embedding", "table"), ("source", "table")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x 1 2 3\n", ConfigError, r"has vectors of 3 numbers, and the model has \{'embedding/table': 2\}"),
        ("x 1 2\na 1\n", DataError, r"txt:2 is no word and 2 numbers, set apart by spaces: 'a 1\\n'"),
        ("a\t1\t2\n", DataError, r"txt:1 is no word and some numbers, set apart by spaces"),
        ("x 1 2\na 1 x\n", DataError, r"txt:2: .*'x'; expected a word and 2 numbers"),
        ("x 1 2\na 1e39 2\n", DataError, r"txt:2 holds a number that float32 cannot: 1e39"),
        ("a nan 2\n", DataError, r"txt:1 holds a number that float32 cannot: nan"),
        ("x 1 2\n", ConfigError, r"none of its words is one of the 2 tokens here"),
        ("", DataError, "has no vectors"),
        (b"\xff\xfe\x00", DataError, "is no text file of vectors"),
    ],
)
def test_bad_files(text, error, message, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        word_rows(str(path), shapes(embedding=8), Characters().train(["a"]))


def test_what_has_no_vectors_is_named_before_the_run_is_claimed(tmp_path):
    config = language_model(tmp_path, words_from=str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="nowhere is no file, and holds no checkpoint"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
