"""Rows of running text for word vectors: against loops, and as a pure function of the step."""

import collections

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.sources import TextFiles
from lm_jax.data.store import Corpus
from lm_jax.data.tokenizers import Words
from lm_jax.data.word_windows import WordWindows, keep_probabilities, windows


def config(folder, **more):
    fields = {"length": 8, "batch_size": 3, "window": 3, "subsample": 1e-2, "noise": 5, "num_workers": 1}
    return WordWindows(
        corpora=(Corpus(name="words", source=TextFiles(paths=(f"{folder}/*.txt",))),),
        tokenizer=Words(min_count=2, lowercase=True),
        cache_dir=str(folder / "cache"),
        **(fields | more),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four documents of Zipf's words, with signs, and words that occur once."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for number in range(4):
        ranks = np.minimum(rng.zipf(1.4, 700 + 50 * number), 60)
        words = [f"w{rank}" for rank in ranks] + [f"once{number}"]
        (folder / f"{number}.txt").write_text(
            "".join(word + (", " if i % 9 == 0 else "\n" if i % 7 == 0 else " ") for i, word in enumerate(words))
        )
    return folder


def test_a_batch_holds_words_of_the_text_in_order_and_never_signs_or_unknown_words(folder):
    data = config(folder).prepare()
    loader = data.train_loader()
    store = data.text.sources("train")[0].store
    text = np.asarray(store.tokens)
    kept = set(np.flatnonzero(data.words()).tolist())
    assert {data.tokenizer.decode([i]) for i in range(data.vocab_size)} - {data.tokenizer.decode([i]) for i in kept} >= {",", "\n"}
    for step in (0, 1, 50):
        batch = loader(step)
        assert batch["tokens"].shape == (3, 8) and batch["negatives"].shape == (3, 5) and batch["windows"].shape == (3, 8, 8)
        assert set(batch["tokens"].ravel().tolist()) | set(batch["negatives"].ravel().tolist()) <= kept
        for row, names in zip(batch["tokens"].tolist(), loader.documents(step), strict=True):
            assert any(is_subsequence(row, text[start:]) for start in store.offsets[:-1])
            assert all(name.startswith("words: ") for name in names)


def is_subsequence(row, text):
    rest = iter(text.tolist())
    return all(token in rest for token in row)


def test_a_batch_is_a_function_of_the_step_and_processes_share_it(folder):
    data = config(folder).prepare()
    loader, again = data.train_loader(), data.train_loader()
    later = [again(step) for step in (9, 3)]
    halves = [data.train_loader(rows)(3) for rows in (slice(0, 1), slice(1, 3))]
    for name, value in loader(3).items():
        np.testing.assert_array_equal(value, later[1][name])
        np.testing.assert_array_equal(value, np.concatenate([half[name] for half in halves]))
    assert not np.array_equal(loader(3)["tokens"], loader(9)["tokens"])
    other = config(folder, seed=1).prepare().train_loader()
    assert other.fingerprint != loader.fingerprint and not np.array_equal(other(3)["tokens"], loader(3)["tokens"])


def whole_epochs(folder, **more):
    """(data, step -> the words of an epoch): a step is one."""
    num_rows = config(folder, **more).prepare().train_loader().num_rows
    data = config(folder, batch_size=num_rows, **more).prepare()
    loader = data.train_loader()
    return data, lambda step: loader(step)["tokens"]


def test_an_epoch_has_every_word_as_often_as_it_is_kept_and_the_next_leaves_out_others(folder):
    data, epoch = whole_epochs(folder, subsample=None)
    found = np.sort(epoch(0).ravel())
    text = np.asarray(data.text.sources("train")[0].store.tokens)
    text = text[data.words()[text]]
    np.testing.assert_array_equal(found, np.sort(text[: found.size]))
    data, epoch = whole_epochs(folder)
    counts = np.bincount(text, minlength=data.vocab_size)
    epochs = 40
    seen = np.bincount(np.concatenate([epoch(step).ravel() for step in range(epochs)]))
    ratio = 1e-2 * len(text) / np.maximum(counts, 1)  # t / f
    for word in np.argsort(-counts)[:5]:
        expected = min(1.0, ratio[word] ** 0.5 + ratio[word]) * counts[word] * epochs
        assert seen[word] == pytest.approx(expected, rel=0.06), word


def test_keep_probabilities_are_those_of_the_authors_program():
    counts = np.array([0, 900, 90, 10])
    keep = keep_probabilities(counts, 1e-2)
    expected = [0.0, *(min(1, ((c / (1e-2 * 1000)) ** 0.5 + 1) * (1e-2 * 1000) / c) for c in (900, 90, 10))]  # word2vec.c
    np.testing.assert_allclose(keep, expected)
    np.testing.assert_array_equal(keep_probabilities(counts, None), [0, 1, 1, 1])


def test_windows_are_those_of_loops_and_reach_as_drawn(folder):
    rng = np.random.default_rng(0)
    document, reach = np.sort(rng.integers(0, 3, (4, 9)), axis=1), rng.integers(1, 4, (4, 9))
    found = windows(document, reach)
    for b in range(4):
        for t in range(9):
            for s in range(9):
                context = t != s and abs(t - s) <= reach[b, t] and document[b, t] == document[b, s]
                assert found[b, t, s] == context, (b, t, s)
    loader = config(folder, length=40).prepare().train_loader()
    middle = np.concatenate([loader(step)["windows"][:, 15:25].sum(-1).ravel() for step in range(30)])
    sizes = collections.Counter(middle.tolist())
    assert {2, 4, 6} <= sizes.keys() <= {1, 2, 3, 4, 5, 6}  # odd ones are cut at a document's end
    for size in (2, 4, 6):
        assert sizes[size] / len(middle) == pytest.approx(1 / 3, abs=0.06)


def test_noise_is_drawn_by_the_power_of_the_counts(folder):
    data = config(folder, noise=500).prepare()
    loader = data.train_loader()
    text = np.asarray(data.text.sources("train")[0].store.tokens)
    expected = np.bincount(text, minlength=data.vocab_size) ** 0.75 * data.words()
    drawn = np.bincount(np.concatenate([loader(step)["negatives"].ravel() for step in range(30)]), minlength=data.vocab_size)
    np.testing.assert_allclose(drawn / drawn.sum(), expected / expected.sum(), atol=5e-3)


def test_bad_input_is_named(folder):
    for more, message in (
        ({"window": 8}, "window=8 must be below length=8"),
        ({"subsample": 0.0}, "subsample=0.0"),
        ({"noise": 0}, "noise=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config(folder, **more))
    with pytest.raises(DataError, match="fewer than one batch of batch_size=9999"):
        config(folder, batch_size=9999).prepare().train_loader()
    with pytest.raises(ConfigError, match="not evaluated on batches"):
        config(folder).prepare().eval_batches("train")
