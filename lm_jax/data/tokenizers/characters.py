"""Characters as tokens."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_jax.core.config import check_positive
from lm_jax.core.errors import DataError
from lm_jax.data.tokenizers.base import END, UNKNOWN, Tokenizer, TokenizerConfig


class CharacterTokenizer(Tokenizer):
    """One token a character, from a fixed set. Id 0 is the end of document; with `unknown`, 1 stands for all others."""

    kind = "characters"

    eos = 0

    def __init__(self, characters: str, unknown: bool):
        self._characters, self._unknown = characters, unknown
        self._symbols = [END, *([UNKNOWN] if unknown else []), *characters]
        self.vocab_size = len(self._symbols)
        codes = np.array([ord(c) for c in characters], np.int64)
        self._table = np.full(0x110000, 1 if unknown else -1, np.int32)
        self._table[codes] = np.arange(self.vocab_size - len(characters), self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        ids = self._table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
        if not self._unknown and ids.size and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise DataError(
                f"character {text[at]!r} at {at} is not in the vocabulary of {len(self._characters)} characters, "
                "which comes from the training split; set the tokenizer's unknown=True"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`; an unknown character gives U+FFFD."""
        symbols = self._symbols
        return "".join("\ufffd" if symbols[i] == UNKNOWN else symbols[i] for i in map(int, ids))

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": self.kind, "characters": self._characters, "unknown": self._unknown}


@dataclasses.dataclass(kw_only=True)
class Characters(TokenizerConfig):
    """The characters that occur in the training text at least `min_count` times, in order of their code points.

    With `unknown` one token stands for all others; without it, another character in the data is an error. Lossless but for
    unknown characters.
    """

    min_count: int = 1
    unknown: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for a count below 1."""
        check_positive(self, "min_count")

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        counts = collections.Counter()
        for text in documents:
            counts.update(text)
        kept = "".join(sorted(c for c, n in counts.items() if n >= self.min_count))
        return CharacterTokenizer(kept, self.unknown or len(kept) < len(counts))
