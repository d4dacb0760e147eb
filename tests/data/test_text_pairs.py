"""Pairs of texts to be compared: what is in a row, and that batches hold pairs of one length."""

import collections
import dataclasses

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.pairs import Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.text_pairs import TextPairs
from lm_jax.data.tokenizers import Characters

LEFT = ["ab", "abcabcab", "c", "abc", "cbacba", "ca", "bb", "aaaaaaaaaaaaa", "acb"]
RIGHT = ["ba", "ab", "abccba", "cba", "abcabc", "ac", "bbb", "a", "bca"]


@pytest.fixture
def data(tmp_path):
    for name, texts in (("l", LEFT), ("r", RIGHT)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    left, right = (TextFiles(paths=(str(tmp_path / f"{name}.txt"),), document="line") for name in "lr")
    pairs = Pairs(source=left, target=right)
    return TextPairs(train=pairs, test=pairs, tokenizer=Characters(), buckets=(4, 10), length=10, batch_size=2)


def texts(prepared, batch):
    """The two texts of each row, of which the end-of-document token stands before each."""
    eos, found = prepared.tokenizer.eos, []
    for row in range(len(batch["pair_tokens"])):
        sides = []
        for side in range(2):
            real = batch["pair_segments"][row, :, side].astype(bool)
            tokens = batch["pair_tokens"][row, :, side]
            assert not tokens[~real].any() and np.array_equal(real, np.arange(len(real)) < real.sum())
            assert not real.any() or tokens[0] == eos
            sides.append(prepared.tokenizer.decode(tokens[real][1:]))
        found.append(tuple(sides))
    return found


def test_every_full_batch_of_a_bucket_once_an_epoch(data):
    """5 pairs fit 4 tokens, 4 need up to 10: of the first one is left out in each epoch."""
    validate_tree(data)
    prepared = data.prepare()
    loader = prepared.train_loader()
    left_out = set()
    for epoch in range(6):
        seen = collections.Counter()
        for step in range(4):
            batch = loader(epoch * 4 + step)
            width = batch["pair_tokens"].shape[1]
            found = texts(prepared, batch)
            assert batch["pair_tokens"].shape == batch["pair_segments"].shape == (2, width, 2)
            assert all((max(len(a), len(b)) + 1 <= 4) == (width == 4) for a, b in found)
            names = [f"l.txt:{[text[:9] for text in LEFT].index(a) + 1}" for a, _ in found]
            assert loader.documents(epoch * 4 + step) == [[name] for name in names]
            seen.update(found)
        assert set(seen.values()) == {1} and len(seen) == 8
        expected = {(a[:9], b[:9]) for a, b in zip(LEFT, RIGHT, strict=True)}
        (missing,) = expected - set(seen)
        left_out.add(missing)
    assert len(left_out) > 1
    assert prepared.tokens_per_row == 2 * (4 + 4 + 10 + 10) / 4
    assert prepared.record["texts cut to a row"] == 2  # of train and of test


def test_a_split_is_read_once_with_numbers(data):
    prepared = data.prepare()
    found = {}
    for numbers, batch in prepared.numbered_batches("test", batch_size=4):
        found |= {number: pair for number, pair in zip(numbers, texts(prepared, batch), strict=True) if number >= 0}
    assert [found[i] for i in range(9)] == [(a[:9], b[:9]) for a, b in zip(LEFT, RIGHT, strict=True)]


def test_bad_sizes(data):
    for buckets in ((4, 8), (10, 4), (4, 4, 10), (0, 10)):
        with pytest.raises(ConfigError, match="must be ascending numbers of tokens, of which length=10 is the last"):
            validate_tree(dataclasses.replace(data, buckets=buckets))
    with pytest.raises(
        DataError, match=r"the bucket of 10 has 4 training examples, fewer than one batch of batch_size=5: .* or the buckets \[10\]"
    ):
        dataclasses.replace(data, batch_size=5).prepare().train_loader()
