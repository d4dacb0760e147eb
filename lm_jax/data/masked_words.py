"""Masked language modelling: words of a text are hidden, and predicted from all others."""

import dataclasses
from typing import ClassVar

import numpy as np

from lm_jax.core.config import check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Batch
from lm_jax.data.denoising import Denoise, Denoiser, Draws, unit_interval
from lm_jax.data.shuffle import random_bits
from lm_jax.data.tokenizers import Tokenizer, split_words

_WHICH, _LENGTH, _REPLACEMENT, _HOW = range(4)  # what random bits are for
_NEVER = np.uint64(2**64 - 1)


@dataclasses.dataclass(kw_only=True)
class MaskedWords(Denoise):
    """A share `rate` of the tokens of a row is chosen to be predicted (BERT, Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Of what is chosen, a share `mask` is replaced by the mask token, `random` by any token, and the rest stays. Ends of documents
    are never chosen. `unit` says what is chosen, and replaced, together:

    | unit | |
    |---|---|
    | "token" | one token |
    | "word" | all tokens of a word (whole word masking) |
    | "span" | a run of words, from 1 to `longest`, geometric with parameter `stop` (SpanBERT, arXiv:1907.10529) |

    The last word or span is chosen whole. In a batch "tokens" are what is left, "targets" the text, "weights" 1 where it is chosen.
    The mask token is the one after those of the tokenizer.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"masked words"})

    rate: float = 0.15
    unit: str = "token"
    mask: float = 0.8
    random: float = 0.1
    stop: float = 0.2
    longest: int = 10

    def validate(self) -> None:
        """Raises `ConfigError` for shares out of range or an unknown unit."""
        check_choice("unit", self.unit, ("token", "word", "span"))
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate={self.rate} must be between 0 and 1")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise ConfigError(f"mask={self.mask} and random={self.random} must be shares of 0 or more, together at most 1")
        if not 0 < self.stop <= 1 or self.longest < 1:
            raise ConfigError(f"stop={self.stop} must be in (0, 1] and longest={self.longest} at least 1")

    @property
    def num_added(self) -> int:
        """The mask token."""
        return 1

    def num_outputs(self, vocab_size: int) -> int:
        """Nobody is asked for a mask token."""
        return vocab_size

    def build(self, tokenizer: Tokenizer, length: int) -> "WordMasker":
        """See `Denoise.build`."""
        return WordMasker(self, tokenizer)


class WordMasker(Denoiser):
    """See `MaskedWords`."""

    def __init__(self, config: MaskedWords, tokenizer: Tokenizer):
        self._config, self._eos, self._vocab_size = config, tokenizer.eos, tokenizer.vocab_size
        self._edges = None if config.unit == "token" else word_edges(tokenizer)

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """See `Denoiser.__call__`."""
        config, text = self._config, batch["targets"]
        free = (batch["weights"] > 0) & (text != self._eos)
        score = np.where(free, self._scores(text, draws), _NEVER)
        # The tokens with the lowest scores are chosen; those of a unit have the same.
        number_free = free.sum(axis=1)
        number = np.maximum(np.rint(config.rate * number_free).astype(np.int64), 1)
        limit = np.take_along_axis(np.sort(score, axis=1), number[:, None] - 1, axis=1)
        chosen = free & (score <= limit)
        how = unit_interval(random_bits(draws.seed, _HOW, score))
        replacement = (draws.uniform(_REPLACEMENT, text.shape[1]) * self._vocab_size).astype(np.int32)
        hidden = np.where(how < config.mask, np.int32(self._vocab_size), replacement)
        tokens = np.where(chosen & (how < config.mask + config.random), hidden, text)
        return batch | {"tokens": tokens, "weights": chosen.astype(np.float32)}

    def invert(self, batch: Batch) -> np.ndarray:
        """See `Denoiser.invert`."""
        return np.where(batch["weights"] > 0, batch["targets"], batch["tokens"])

    def _scores(self, text: np.ndarray, draws: Draws) -> np.ndarray:
        """uint64 [R, T]: the order in which the tokens are chosen."""
        length = text.shape[1]
        scores = draws.bits(_WHICH, length)
        if self._edges is None:
            return scores
        config = self._config
        if config.unit == "span":
            # Every word may begin a span; a word is in the one of lowest score that covers it.
            u, beyond = draws.uniform(_LENGTH, length), (1 - config.stop) ** config.longest
            with np.errstate(divide="ignore"):
                reach = np.log(1 - u * (1 - beyond)) / np.log1p(-config.stop)  # how many words go on; 0 for stop=1
            first = scores
            for back in range(1, min(config.longest, length)):
                before = np.where(reach[:, :-back] >= back, first[:, :-back], _NEVER)
                scores = np.concatenate([scores[:, :back], np.minimum(scores[:, back:], before)], axis=1)
        return np.take_along_axis(scores, self._words(text), axis=1)

    def _words(self, text: np.ndarray) -> np.ndarray:
        """int64 [R, T]: the number in the row of the word that each token is in."""
        assert self._edges is not None
        begins, ends = self._edges
        joined = ends[text[:, :-1]] & begins[text[:, 1:]]
        return np.concatenate([np.zeros((len(text), 1), np.int64), np.cumsum(~joined, axis=1)], axis=1)


def word_edges(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """bool [vocab_size] twice: whether the text of a token begins, and ends, with what a word can go on with.

    A token continues the word of the one before it where that ends so and it begins so; words are those of `split_words`, Chinese
    characters each their own. Bytes that are no character by themselves are taken for parts of letters.
    """
    alone = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    # White space before a word may show only where another word stands before it.
    anchor = next((i for i, text in enumerate(alone) if _goes_on(text[-1:])), None)
    before = [] if anchor is None else [anchor]
    known = len(tokenizer.decode(before))
    texts = [tokenizer.decode([*before, i])[known:] for i in range(tokenizer.vocab_size)]
    return np.array([_goes_on(text[:1]) for text in texts]), np.array([_goes_on(text[-1:]) for text in texts])


def _goes_on(character: str) -> bool:
    return character == "\ufffd" or (character != "" and split_words(f"a{character}", False, "words") == [f"a{character}"])
