"""Tokenizers of the library `tokenizers`: byte-pair encoding trained here, or any that exists."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lm_jax.core.config import check_positive
from lm_jax.core.errors import DataError
from lm_jax.data.sources import find_one
from lm_jax.data.tokenizers.base import END, Tokenizer, TokenizerConfig


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`. Text that reads like a special token is encoded as ordinary text."""

    kind = "huggingface"

    def __init__(self, model: dict[str, Any], eos: str):
        import tokenizers

        self._model, self._eos = model, eos
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(model))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        number = self._tokenizer.token_to_id(eos)
        if number is None:
            raise DataError(f"the tokenizer has no token {eos!r} to end a document; name one that it has with eos=...")
        self.eos = number
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`; uses all cores."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": self.kind, "model": self._model, "eos": self._eos}


@dataclasses.dataclass(kw_only=True)
class BPE(TokenizerConfig):
    """Byte-level byte-pair encoding of `vocab_size` tokens (Sennrich et al. 2016, arXiv:1508.07909; as in GPT-2), trained on
    the training text. Lossless, but for case where `lowercase` is set.

    With `leading_space` a text starts as if a space stood before it, so that its first word is as any other; decoding drops it.
    """

    vocab_size: int = 8192
    min_count: int = 2
    lowercase: bool = False
    leading_space: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` for numbers out of range."""
        check_positive(self, "vocab_size", "min_count")

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`. Raises `DataError` for a vocabulary that cannot hold the bytes."""
        if self.vocab_size < 257:
            raise DataError(f"vocab_size={self.vocab_size} is below 257: the bytes and the end of document")
        import tokenizers

        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=self.leading_space)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        if self.leading_space:
            strip = tokenizers.decoders.Strip(" ", 1, 0)
            tokenizer.decoder = tokenizers.decoders.Sequence([tokenizer.decoder, strip])
        if self.lowercase:
            tokenizer.normalizer = tokenizers.normalizers.Lowercase()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_count,
            special_tokens=[END],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return HuggingFaceTokenizer(json.loads(tokenizer.to_str()), END)


@dataclasses.dataclass(kw_only=True)
class TokenizerFile(TokenizerConfig):
    """An existing tokenizer.json of Hugging Face `tokenizers`; `eos` is its token that ends a document."""

    path: str
    eos: str = END

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        path = find_one(self.path)
        try:
            return HuggingFaceTokenizer(json.loads(path.read_text()), self.eos)
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`."""
        return [self.path]
