"""Words and their tokens; and what the letters of a word say of it, for models that meet words they have never seen."""

import functools
import re
import zlib
from collections.abc import Sequence

import numpy as np


def aligned(
    ids: Sequence[np.ndarray], targets: Sequence[int], features_WN: np.ndarray, weights: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an example of words, given the tokens, the target, the features and the weight (None: 1) of each.

    Target and weight stand at the first token of a word and are 0 at the others; all have its features.
    """
    sizes = np.array([len(part) for part in ids])
    assert sizes.all(), "a word without a token has no place for its target"
    heads = np.cumsum(sizes) - sizes
    arrays = {"tokens": np.concatenate(ids).astype(np.int32), "features": np.repeat(features_WN, sizes, axis=0)}
    for name, values, dtype in (("targets", targets, np.int32), ("weights", 1.0 if weights is None else weights, np.float32)):
        arrays[name] = np.zeros(len(arrays["tokens"]), dtype)
        arrays[name][heads] = values
    return arrays


@functools.lru_cache(maxsize=1 << 18)
def word_features(word: str, affixes: int) -> np.ndarray:
    """int32 [2 * affixes + 2], not negative: hashes of a word's beginnings and ends of 1 to `affixes` characters (the whole word
    where it is shorter), its lower-case form and its shape.

    Such features are those of linear taggers (Ratnaparkhi 1996) and of spaCy's; a model takes them modulo the size of its table
    (hashed features, Weinberger et al. 2009, arXiv:0902.2206). The hash is CRC-32, the same everywhere.
    """
    sizes = range(1, affixes + 1)
    named = [f"begins {word[:n]}" for n in sizes] + [f"ends {word[-n:]}" for n in sizes]
    named += [f"is {word.lower()}", f"looks {shape(word)}"]
    return np.array([feature_hash(name) for name in named], np.int32)


def feature_hash(name: str) -> int:
    """The number, from 0 to 2^31 - 1, of the feature of a name."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) >> 1


def shape(word: str) -> str:
    """The word with X for upper-case letters, x for other letters, d for digits; of a run at most 4 are kept: Xxxxx-dd."""
    kinds = ("d" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c for c in word)
    return re.sub(r"(.)\1{4,}", r"\1\1\1\1", "".join(kinds), flags=re.DOTALL)
