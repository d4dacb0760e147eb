"""Prefix-LM and fill-in-the-middle against loops over documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.prefixes import FillInTheMiddle, PrefixLM
from lm_jax.data.tokenizers import Bytes
from tests.data.denoised_rows import VOCAB, Numbers, draws, rows, stream_rows
from tests.data.token_stores import EOS

PRE, SUF, MID = VOCAB, VOCAB + 1, VOCAB + 2


def parts_of(batch, row):
    """(begin, end) of the documents of a row of text: by segments, else by the token that ends them."""
    text = batch["targets"][row]
    last = batch["segments"][row][1:] != batch["segments"][row][:-1] if "segments" in batch else text[:-1] == EOS
    ends = [*(np.flatnonzero(last) + 1).tolist(), len(text)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@settings(max_examples=60, deadline=None)
@given(batch=rows(), seed=st.integers(0, 9))
def test_a_prefix_is_seen_and_what_follows_is_predicted(batch, seed):
    prefixer = PrefixLM().build(Numbers(), batch["targets"].shape[1])
    made = prefixer(batch, draws(batch, seed))
    np.testing.assert_array_equal(prefixer.invert(made), batch["targets"])
    np.testing.assert_array_equal(made["tokens"], batch["tokens"])
    T = batch["targets"].shape[1]
    for row in range(len(batch["targets"])):
        stop = int(np.flatnonzero(batch["weights"][row]).max(initial=-1)) + 1  # padding follows
        assert not made["prefix"][row, stop:].any()
        documents = parts_of(batch, row) if "segments" in batch else [(0, T)]
        for begin, end in [(begin, min(end, stop)) for begin, end in documents if begin < stop]:
            prefix, weights = made["prefix"][row, begin:end], made["weights"][row, begin:end]
            size = int(prefix.sum())
            assert 1 <= size <= end - begin and prefix[:size].all()
            assert not weights[: size - 1].any()
            np.testing.assert_array_equal(weights[size - 1 :], batch["weights"][row, begin + size - 1 : end])


def test_every_size_of_a_prefix_is_as_likely():
    batch = stream_rows(8000, 10)
    sizes = PrefixLM().build(Numbers(), 10)(batch, draws(batch))["prefix"].sum(axis=1)
    np.testing.assert_allclose(np.bincount(sizes, minlength=11)[1:] / 8000, 0.1, atol=0.015)


@settings(max_examples=150, deadline=None)
@given(
    batch=rows(),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    spm=st.sampled_from([0.0, 0.5, 1.0]),
    most=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_the_text_comes_back_from_the_middle(batch, rate, spm, most, seed):
    T = batch["targets"].shape[1]
    most = min(most, T)
    config = FillInTheMiddle(rate=rate, spm=spm, documents=most)
    filler = config.build(Numbers(), T)
    made = filler(batch, draws(batch, seed))
    assert made.keys() == batch.keys()
    assert all(
        made[name].dtype == value.dtype and made[name].shape == (len(value), config.row_length(T)) for name, value in batch.items()
    )
    np.testing.assert_array_equal(filler.invert(made), batch["targets"])
    for row, targets in enumerate(made["targets"].tolist()):
        documents, cut, new = parts_of(batch, row), 0, []
        for begin, end in documents:
            text, at = batch["targets"][row, begin:end].tolist(), len(new)
            length = end - begin + 3 * (at < len(targets) and targets[at] == PRE)
            here, weight = targets[at : at + length], batch["weights"][row, begin]
            if length > end - begin:
                cut += 1
                body, tail = (text[:-1], text[-1:]) if text[-1] == EOS else (text, [])
                suffix, middle = here.index(SUF), here.index(MID)
                assert here[len(here) - len(tail) :] == tail and weight > 0
                inner = here[: len(here) - len(tail)]
                if spm == 0:
                    prefix, rest = inner[1:suffix], inner[suffix + 1 : middle]
                    assert prefix + inner[middle + 1 :] + rest == body
                if spm == 1:
                    assert suffix == 1 and inner[middle + 1 :] + inner[2:middle] == body
            else:
                assert here == text
            expected = [batch["tokens"][row, begin], *here[:-1]]
            assert made["tokens"][row, at : at + length].tolist() == expected
            weights = batch["weights"][row, begin:end].sum() + 3 * (length > end - begin)
            assert made["weights"][row, at : at + length].sum() == weights
            if "segments" in batch:
                assert (made["segments"][row, at : at + length] == batch["segments"][row, begin]).all()
                if batch["segments"][row, begin]:
                    assert made["positions"][row, at : at + length].tolist() == list(range(length))
            new += here
        real = sum(batch["weights"][row, begin] > 0 for begin, _ in documents)
        assert cut == min(real, most) if rate == 1 else cut <= most * rate * 2
        assert not made["weights"][row, len(new) :].any() and targets[len(new) :] == [EOS] * (len(targets) - len(new))


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_a_prompt_with_a_hole_is_a_training_row_up_to_its_middle(spm):
    tokenizer, text = Bytes().train(()), b"the cat sat on the mat"
    config, ids = FillInTheMiddle(rate=1.0, spm=spm), np.array([[*text, tokenizer.eos]], np.int32)
    batch = {"tokens": np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=tokenizer.eos), "targets": ids}
    batch["weights"] = np.ones(ids.shape, np.float32)
    for seed in range(8):
        made = config.build(tokenizer, ids.shape[1])(batch, draws(batch, seed))
        row = [made["tokens"][0, 0], *made["targets"][0].tolist()]
        suf, mid = row.index(tokenizer.vocab_size + 1), row.index(tokenizer.vocab_size + 2)
        prefix = row[mid + 1 :] if spm else row[2:suf]  # with spm the prefix comes last, and the middle goes on from it
        for cut in [len(prefix)] if not spm else range(3):
            asked = bytes(prefix[:cut]) + b"<FILL>" + bytes(row[suf + 1 : mid])
            ((prompt,), inputs) = config.prompts(tokenizer, [asked.decode()])
            assert prompt == row[: mid + 1 + (cut if spm else 0)] and inputs == {}
    assert config.prompts(tokenizer, ["a"])[0] == [[tokenizer.eos, *b"a"]]
    assert config.shown_prompt("a<FILL>b") == "a<FILL>b\n<FILL> = " and config.shown_prompt("a") == "a"


def test_shares_and_cuts_are_as_they_should_be():
    batch = stream_rows(4000, 12)
    batch["targets"][:] = np.arange(1, 13)
    made = FillInTheMiddle(rate=0.6, spm=0.3).build(Numbers(), 12)(batch, draws(batch))["targets"]
    cut = made[made[:, 0] == PRE]
    assert len(cut) / 4000 == pytest.approx(0.6, abs=0.03)
    # Suffix first: certainly where the next token is <SUF>, but for prefixes that are empty by chance.
    suffix = np.argmax(cut == SUF, axis=1)
    first, second = np.sort(np.random.default_rng(0).integers(0, 13, (2, 100_000)), axis=0)
    assert (suffix == 1).mean() == pytest.approx(0.3 + 0.7 * (first == 0).mean(), abs=0.03)
    prefix = suffix[suffix > 1] - 1
    assert prefix.mean() == pytest.approx(first[first > 0].mean(), rel=0.05)
    middles = 15 - 1 - np.argmax(cut == MID, axis=1)[suffix > 1]
    assert middles.mean() == pytest.approx((second - first)[first > 0].mean(), rel=0.05)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"rate=1.5 and spm=0.5"):
        validate_tree(FillInTheMiddle(rate=1.5))
    with pytest.raises(ConfigError, match="documents=0"):
        validate_tree(FillInTheMiddle(documents=0))
    with pytest.raises(ConfigError, match=r"a prompt has 2 times '<FILL>', and one hole is filled: 'a<FILL>"):
        FillInTheMiddle().prompts(Bytes().train(()), ["a<FILL>b<FILL>"])


def test_the_prefix_of_a_short_row_leaves_some_of_its_text():
    """Of 5 tokens in a row of 64; no padding is seen."""
    batch = stream_rows(500, 64)
    batch["weights"] = np.where(np.arange(64) < 5, batch["weights"], 0)
    made = PrefixLM().build(Numbers(), 64)(batch, draws(batch))
    assert not made["prefix"][:, 5:].any() and (made["weights"].sum(axis=1) == 6 - made["prefix"].sum(axis=1)).all()
