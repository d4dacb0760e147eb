"""Tokenising many documents on all cores. Workers import no jax."""

import concurrent.futures
import multiprocessing
from collections.abc import Sequence

import numpy as np

from lm_jax.data.sources import Document
from lm_jax.data.tokenizers import Tokenizer, encode_named

_SMALL = 4_000_000  # characters that one process tokenises sooner than others have started
_CHUNK = 1_000_000

_tokenizer: Tokenizer | None = None


def encode(tokenizer: Tokenizer, documents: Sequence[Document], num_workers: int) -> list[np.ndarray]:
    """The tokens of each document, followed by the end of document; the same whatever `num_workers`.

    Raises `DataError` naming the document that has no tokens for its text.
    """
    if num_workers == 1 or sum(len(document.text) for document in documents) < _SMALL:
        return _encode(tokenizer, documents)
    chunks, size = [[]], 0
    for document in documents:
        if size > _CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append(document)
        size += len(document.text)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _start, (tokenizer.to_json(),)) as pool:
        return [tokens for chunk in pool.map(_encode_here, chunks) for tokens in chunk]


def _start(record: dict) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.from_json(record)


def _encode_here(documents: list[Document]) -> list[np.ndarray]:
    assert _tokenizer is not None
    return _encode(_tokenizer, documents)


def _encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[np.ndarray]:
    found = encode_named(tokenizer, documents)
    return [np.append(tokens, np.int32(tokenizer.eos)) for tokens in found]
