"""Text to token ids and back. Every tokenizer is plain data (JSON) that is stored with the tokens and the checkpoints."""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import DataError
from lm_jax.data.sources import find

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


class Tokenizer:
    """Base of the tokenizers.

    Attributes:
      vocab_size: ids are below this.
      eos: the id of the end of a document. No text encodes to it.
    """

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
        return _KINDS[fields.pop("kind")](**fields)


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


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then the end of document. Lossless for valid text."""

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
        return {"kind": "bytes"}


@dataclasses.dataclass(kw_only=True)
class Bytes(TokenizerConfig):
    """Bytes of UTF-8; see `ByteTokenizer`."""

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        return ByteTokenizer()


class CharacterTokenizer(Tokenizer):
    """One token a character, from a fixed set. Id 0 is the end of document; with `unknown`, 1 stands for all others."""

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
        return {"kind": "characters", "characters": self._characters, "unknown": self._unknown}


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


# Chinese, Japanese and Korean characters are words of their own; then runs of letters and digits; then single other signs.
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]|\n")
_LINES = re.compile(r"\n|\S+")


class WordTokenizer(Tokenizer):
    """One token a word, from a fixed list. Ids 0 and 1 are the end of document and unknown words. White space other than
    line ends is not kept: decoding puts one space between words, none beside Chinese characters.
    """

    eos, unknown = 0, 1

    def __init__(self, words: list[str], lowercase: bool, split: str):
        self._words, self._lowercase, self._split = words, lowercase, split
        self._symbols = [END, UNKNOWN, *words]
        self._ids = {word: i for i, word in enumerate(self._symbols) if i > 1}
        self.vocab_size = len(self._symbols)

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        words = split_words(text, self._lowercase, self._split)
        return np.fromiter((self._ids.get(word, 1) for word in words), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        text = " ".join(self._symbols[i] for i in map(int, ids))
        return re.sub(rf" ?(\n) ?|(?<=[{_CJK}]) (?=[{_CJK}])", r"\1", text)

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer.to_json`."""
        return {"kind": "words", "words": self._words, "lowercase": self._lowercase, "split": self._split}


def split_words(text: str, lowercase: bool, split: str) -> list[str]:
    """The words of `text`, as `Words.split` says."""
    text = text.lower() if lowercase else text
    if split == "whitespace":
        return text.split()
    return (_WORD if split == "words" else _LINES).findall(text)


def word_places(text: str) -> list[tuple[int, int]]:
    """The characters (first, end) of the words of `text` (see `_WORD`), line ends left out."""
    return [match.span() for match in _WORD.finditer(text) if match[0] != "\n"]


@dataclasses.dataclass(kw_only=True)
class Words(TokenizerConfig):
    """Words that occur in the training text at least `min_count` times, at most `max_words` of them, the frequent first.

    `split` is "words" (letters and digits, single signs, single Chinese characters, line ends); or for text whose words are set
    apart already "whitespace", or "lines", where line ends are words too.
    """

    min_count: int = 2
    max_words: int | None = None
    lowercase: bool = False
    split: str = "words"

    def validate(self) -> None:
        """Raises `ConfigError` for numbers out of range or an unknown way to split."""
        check_positive(self, "min_count")
        check_choice("split", self.split, ("words", "whitespace", "lines"))
        if self.max_words is not None:
            check_positive(self, "max_words")

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`."""
        counts = collections.Counter()
        for text in documents:
            counts.update(split_words(text, self.lowercase, self.split))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, n in ranked if n >= self.min_count][: self.max_words]
        return WordTokenizer(words, self.lowercase, self.split)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`. Text that reads like a special token is encoded as ordinary text."""

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
        return {"kind": "huggingface", "model": self._model, "eos": self._eos}


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
        path = find(self.path)[0]
        try:
            return HuggingFaceTokenizer(json.loads(path.read_text()), self.eos)
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`."""
        return [self.path]


@dataclasses.dataclass(kw_only=True)
class RunTokenizer(TokenizerConfig):
    """The tokenizer of another run, whatever its kind; `path` is that run's directory."""

    path: str

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`. Raises `DataError` where there is no run with a checkpoint."""
        return Tokenizer.from_json(json.loads(Path(*self.files()).read_text())["tokenizer"])

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`: the record of the newest checkpoint."""
        found = sorted(Path(self.path).glob("checkpoints/[0-9]*/record.json"))
        if not found:
            raise DataError(f"{self.path} holds no run with a checkpoint, of which to take the tokenizer; train it first")
        return [str(found[-1])]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Lossless up to the model's own normalisation of white space."""

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
        return {"kind": "sentencepiece", "model": self._model, "end": self._end}


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
        path = find(self.path)[0]
        try:
            return SentencePieceTokenizer(path.read_bytes().hex(), self.end)
        except (RuntimeError, TypeError) as error:
            raise DataError(f"{path} is not a SentencePiece model: {error}") from error

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`."""
        return [self.path]


_KINDS: dict[str, type[Tokenizer]] = {
    "bytes": ByteTokenizer,
    "characters": CharacterTokenizer,
    "words": WordTokenizer,
    "huggingface": HuggingFaceTokenizer,
    "sentencepiece": SentencePieceTokenizer,
}
