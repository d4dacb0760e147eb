"""Masked words: what is chosen, what it is replaced by, and the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.masked_words import MaskedWords, word_edges
from lm_jax.data.tokenizers import BPE, Bytes, Characters, Words, split_words
from tests.data.denoised_rows import VOCAB, Numbers, draws, rows, stream_rows
from tests.data.token_stores import EOS

TEXT = "The cat, the dog and 每个字 weren't out at noon.\nÉtude no. 42 was re-played again and again; the cats catnapped. " * 50
TOKENIZERS = {
    "words": Words(min_count=1),
    "characters": Characters(),
    "bytes": Bytes(),
    "bpe": BPE(vocab_size=300),
    "spaced": BPE(vocab_size=300, leading_space=True, lowercase=True),
}


@settings(max_examples=80, deadline=None)
@given(batch=rows(), rate=st.floats(0.01, 0.9), seed=st.integers(0, 9))
def test_the_text_comes_back_and_padding_and_ends_are_never_chosen(batch, rate, seed):
    masker = MaskedWords(rate=rate).build(Numbers(), batch["targets"].shape[1])
    made = masker(batch, draws(batch, seed))
    assert made.keys() == batch.keys() and {k: v.dtype for k, v in made.items()} == {k: v.dtype for k, v in batch.items()}
    np.testing.assert_array_equal(masker.invert(made), batch["targets"])
    free = (batch["weights"] > 0) & (batch["targets"] != EOS)
    assert not (made["weights"] * ~free).any()
    for here, chosen in zip(free, made["weights"], strict=True):
        assert chosen.sum() == min(max(round(rate * here.sum()), 1), here.sum())
    assert made["tokens"].max(initial=0) <= VOCAB


def test_shares_are_those_of_the_config():
    batch = stream_rows(400, 200)
    made = MaskedWords(rate=0.2, mask=0.7, random=0.2).build(Numbers(), 200)(batch, draws(batch))
    chosen, text = made["weights"] > 0, batch["targets"]
    masked, kept = made["tokens"] == VOCAB, made["tokens"] == text
    assert chosen.mean() == pytest.approx(0.2 * (text != EOS).mean(), abs=2e-3)
    assert not masked[~chosen].any() and kept[~chosen].all()
    assert masked[chosen].mean() == pytest.approx(0.7, abs=0.01)
    assert kept[chosen].mean() == pytest.approx(0.1 + 0.2 / VOCAB, abs=0.01)
    replaced = made["tokens"][chosen & ~masked & ~kept]
    assert set(replaced.tolist()) == set(range(VOCAB))
    # Every place of a row is chosen as often.
    assert np.abs(chosen.mean(axis=0) - chosen.mean()).max() < 0.1


def test_each_row_seed_and_stream_has_a_mask_of_its_own():
    batch = stream_rows(4, 100)
    batch["targets"][:] = 1
    masker = MaskedWords().build(Numbers(), 100)
    weights = lambda **how: masker(batch, draws(batch, **how))["weights"]  # noqa: E731
    np.testing.assert_array_equal(weights(), weights())
    np.testing.assert_array_equal(weights()[2:], weights(first=2)[:2])  # of the number, not of the place in the batch
    for how in ({"seed": 1}, {"stream": 1}, {"first": 4}):
        assert (weights() != weights(**how)).any(axis=1).all()


def reference_starts(tokenizer, ids):
    """Whether each token of a text begins a word, from the words of the text before it was cut into tokens."""
    words, starts, at = split_words(tokenizer.decode(ids), False, "words"), [], 0
    ends, text = set(), tokenizer.decode(ids)
    for word in words:
        at = text.index(word, at) + len(word)
        ends.add(at)
    before = 0
    for i in range(len(ids)):
        starts.append(before in ends or before == 0 or not text[before - 1].strip())
        before = len(tokenizer.decode(ids[: i + 1]))
    return starts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_those_of_the_text(name):
    tokenizer = TOKENIZERS[name].train([TEXT])
    text = TEXT[:150] if name in ("words", "characters") else "".join(c for c in TEXT[:150] if c.isascii())
    ids = tokenizer.encode(text)
    begins, ends = word_edges(tokenizer)
    got = [True, *~(ends[ids[:-1]] & begins[ids[1:]])]
    expected = reference_starts(tokenizer, ids)
    # White space of its own may count as a word or as the end of one.
    solid = [bool(tokenizer.decode([i]).strip()) for i in ids]
    assert [g for g, s in zip(got, solid, strict=True) if s] == [e for e, s in zip(expected, solid, strict=True) if s]


def test_bytes_of_one_letter_are_in_one_word():
    tokenizer = Bytes().train([])
    ids = tokenizer.encode("à la")
    begins, ends = word_edges(tokenizer)
    assert [*(ends[ids[:-1]] & begins[ids[1:]])] == [True, False, False, True]


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_chosen_and_replaced_whole(unit):
    tokenizer = TOKENIZERS["bpe"].train([TEXT])
    ids = np.array(tokenizer.encode(TEXT)[:2000].reshape(10, 200))
    batch = {"tokens": ids, "targets": ids, "weights": np.ones(ids.shape, np.float32)}
    masker = MaskedWords(unit=unit, rate=0.3).build(tokenizer, 200)
    made = masker(batch, draws(batch))
    np.testing.assert_array_equal(masker.invert(made), ids)
    begins, ends = word_edges(tokenizer)
    joined = ends[ids[:, :-1]] & begins[ids[:, 1:]]
    chosen, masked = made["weights"] > 0, made["tokens"] == tokenizer.vocab_size
    assert (
        joined.sum() > 200 and (chosen[:, 1:] == chosen[:, :-1])[joined].all() and (masked[:, 1:] == masked[:, :-1])[joined].all()
    )
    assert 0.3 <= chosen.mean() < 0.36
    # Runs of chosen words: about one without spans, several with them.
    words = np.concatenate([np.zeros((10, 1), int), np.cumsum(~joined, axis=1)], axis=1)
    runs = []
    for row, number in zip(chosen, words, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        runs += [len(set(number[a:b].tolist())) for a, b in edges.reshape(-1, 2)]
    assert (np.mean(runs) > 2.5) == (unit == "span")


def test_lengths_of_spans_are_geometric():
    batch = stream_rows(300, 400)
    batch["targets"][batch["targets"] == EOS] = 1

    class Whole(Numbers):
        def decode(self, ids):
            return " ".join("x" * (i + 1) for i in ids)

    made = MaskedWords(unit="span", rate=0.02, stop=0.2, longest=10).build(Whole(), 400)(batch, draws(batch))
    lengths = []
    for row in made["weights"] > 0:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        lengths += np.diff(edges.reshape(-1, 2), axis=1)[:, 0].tolist()
    # The mean of the paper; a few spans meet, and a few are cut by the end of a row.
    assert np.mean(lengths) == pytest.approx(3.8, rel=0.04)
    law = 0.8 ** np.arange(10)
    assert np.mean(np.array(lengths) >= 10) == pytest.approx(law[9] / law.sum(), abs=0.015)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 1.0}, "rate=1.0 must be between 0 and 1"),
        ({"mask": 0.9, "random": 0.2}, "mask=0.9 and random=0.2"),
        ({"unit": "words"}, "did you mean 'word'"),
        ({"stop": 0.0}, "stop=0.0"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate_tree(MaskedWords(**fields))
