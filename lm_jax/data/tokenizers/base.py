"""What every tokenizer is: text to token ids and back, and plain data (JSON) that is stored with tokens and checkpoints."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lm_jax.core.config import Config
from lm_jax.core.errors import DataError

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


class Tokenizer:
    """Base of the tokenizers.

    Attributes:
      kind: what its JSON calls it.
      vocab_size: ids are below this.
      eos: the id of the end of a document. No text encodes to it.
    """

    kind: ClassVar[str]

    vocab_size: int
    eos: int

    def encode(self, text: str) -> np.ndarray:
        """int32 [n] of `text`. Raises `DataError` for text that has no token."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; end-of-document tokens give "<|endoftext|>"."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as JSON; `from_json` rebuilds it."""
        raise NotImplementedError

    @property
    def hash(self) -> str:
        """SHA-256 of the tokenizer's JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Tokenizer":
        """Rebuilds what `to_json` gave."""
        fields = dict(record)
        kind = fields.pop("kind")
        return next(known for known in Tokenizer.__subclasses__() if known.kind == kind)(**fields)


def encode_named(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """`Tokenizer.encode` of each (name, text). Raises `DataError` with the name of the text that has no tokens."""
    try:
        return tokenizer.encode_batch([text for _, text in texts])
    except DataError:
        for name, text in texts:  # again, one by one, to name the culprit
            try:
                tokenizer.encode(text)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        raise


@dataclasses.dataclass(kw_only=True)
class TokenizerConfig(Config):
    """Base of the configs: which tokenizer, and how it is made."""

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """The tokenizer, made from training text where it is made from text."""
        raise NotImplementedError(
            f"{type(self).__name__} is no tokenizer; use Bytes, Characters, Words, BPE, TokenizerFile or SentencePiece"
        )

    def files(self) -> list[str]:
        """Paths of the files that it is read from."""
        return []
