"""Rows of text as the loader cuts them, for tests of denoising."""

import numpy as np
from hypothesis import strategies as st

from lm_jax.data.denoising import Draws
from lm_jax.data.packing import Packing, fill, pad
from tests.data.token_stores import EOS, make_store

VOCAB = 60


class Numbers:
    """A tokenizer of which nothing is asked but its size."""

    vocab_size, eos = VOCAB, EOS


@st.composite
def rows(draw, packed=None, longest=40):
    """A batch of documents of any sizes in rows of any length, cut from the stream or `packed` (None: either), with padding."""
    store = make_store(draw(st.lists(st.integers(1, 30), min_size=1, max_size=8)), seed=draw(st.integers(0, 99)), vocab_size=VOCAB)
    size, segments = draw(st.integers(2, longest)), draw(st.booleans()) if packed is None else packed
    table = Packing(method="pack" if segments else "stream").build(store.offsets, size, seed=0, stream=0)
    index = np.arange(table.num_rows)
    spans = pad(table.spans(index, np.zeros_like(index)), table.num_rows, size)
    return fill(spans, [store.tokens], table.num_rows, size, EOS, segments=segments)


def draws(batch, seed=0, stream=0, first=0) -> Draws:
    """Of the rows of a batch, numbered from `first`."""
    return Draws(seed, stream, np.arange(first, first + len(batch["targets"])))


def stream_rows(num_rows: int, length: int, seed: int = 0):
    """Full rows of one long text with an end of document here and there."""
    text = np.random.default_rng(seed).integers(1, VOCAB, (num_rows, length)).astype(np.int32)
    text[np.random.default_rng(seed + 1).random(text.shape) < 0.02] = EOS
    before = np.concatenate([[EOS], text.reshape(-1)[:-1]]).reshape(text.shape).astype(np.int32)
    return {"tokens": before, "targets": text, "weights": np.ones(text.shape, np.float32)}
