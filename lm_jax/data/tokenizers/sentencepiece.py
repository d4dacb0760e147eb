"""SentencePiece models."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_jax.core.config import check_choice
from lm_jax.core.errors import DataError
from lm_jax.data.sources import find_one
from lm_jax.data.tokenizers.base import END, Tokenizer, TokenizerConfig


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Lossless up to the model's own normalisation of white space."""

    kind = "sentencepiece"

    def __init__(self, model: str, end: str = "eos"):
        try:
            import sentencepiece
        except ModuleNotFoundError as error:
            raise DataError("a SentencePiece model needs the extra: pip install 'lm_jax[sentencepiece]'") from error
        self._model, self._end = model, end
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=bytes.fromhex(model))
        self.eos = self._processor.eos_id() if end == "eos" else self._processor.bos_id()
        self.vocab_size = self._processor.vocab_size()
        if self.eos < 0:
            raise DataError(f"the SentencePiece model has no {end} token to set documents apart")

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        return np.array(self._processor.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        parts, piece = [], []
        for i in [*map(int, ids), None]:
            if i is None or i == self.eos:
                parts.append(self._processor.decode(piece))
                piece = []
            else:
                piece.append(i)
        return END.join(parts)

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": self.kind, "model": self._model, "end": self._end}


@dataclasses.dataclass(kw_only=True)
class SentencePiece(TokenizerConfig):
    """An existing SentencePiece .model file. Documents are set apart by its token `end`, "eos" or (as in Llama) "bos"."""

    path: str
    end: str = "eos"

    def validate(self) -> None:
        """Raises `ConfigError` for another token."""
        check_choice("end", self.end, ("eos", "bos"))

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        path = find_one(self.path)
        try:
            return SentencePieceTokenizer(path.read_bytes().hex(), self.end)
        except (RuntimeError, TypeError) as error:
            raise DataError(f"{path} is not a SentencePiece model: {error}") from error

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`."""
        return [self.path]
