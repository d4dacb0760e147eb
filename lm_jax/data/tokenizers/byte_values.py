"""Bytes as tokens."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_jax.data.tokenizers.base import END, Tokenizer, TokenizerConfig


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then the end of document. Lossless for valid text."""

    kind = "bytes"

    vocab_size, eos = 257, 256

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`; bytes that are not UTF-8 give U+FFFD."""
        parts = b"".join(END.encode() if i == self.eos else bytes([i]) for i in map(int, ids))
        return parts.decode("utf-8", "replace")

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": self.kind}


@dataclasses.dataclass(kw_only=True)
class Bytes(TokenizerConfig):
    """Bytes of UTF-8; see `ByteTokenizer`."""

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        return ByteTokenizer()
