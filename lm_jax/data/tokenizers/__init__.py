"""Text to token ids and back: a file for each kind of tokenizer."""

from lm_jax.data.tokenizers.base import END, UNKNOWN, Tokenizer, TokenizerConfig, encode_named
from lm_jax.data.tokenizers.byte_values import Bytes, ByteTokenizer
from lm_jax.data.tokenizers.characters import Characters, CharacterTokenizer
from lm_jax.data.tokenizers.huggingface import BPE, HuggingFaceTokenizer, TokenizerFile
from lm_jax.data.tokenizers.of_run import RunTokenizer
from lm_jax.data.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from lm_jax.data.tokenizers.words import CJK, Words, WordTokenizer, split_words, word_places

# Records of runs, and keys of prepared data, name the package wherever in it a config stands.
for _config in (BPE, Bytes, Characters, RunTokenizer, SentencePiece, TokenizerFile, Words):
    _config.__module__ = __name__

__all__ = [
    "BPE",
    "CJK",
    "END",
    "UNKNOWN",
    "ByteTokenizer",
    "Bytes",
    "CharacterTokenizer",
    "Characters",
    "HuggingFaceTokenizer",
    "RunTokenizer",
    "SentencePiece",
    "SentencePieceTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerFile",
    "WordTokenizer",
    "Words",
    "encode_named",
    "split_words",
    "word_places",
]
