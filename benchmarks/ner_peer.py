"""A tagger of hand-made features beside experiments/ner.py: a linear-chain conditional random field.

    python -m benchmarks.ner_peer [--config=experiments/ner.py]

It sees the word, its lower-case form, its beginnings and ends of 1 to 4 characters and its shape, and the same of the two words
before and after it. It needs sklearn-crfsuite. F1 is that of `lm_jax.evals.tagging`.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lm_jax.config import load_experiment
from lm_jax.data.tagged import Sentence
from lm_jax.data.words import shape
from lm_jax.evals.tagging import span_scores, spans

Features = list[list[dict[str, bool]]]  # of sentences, of their words
Tags = list[list[str]]


def word_names(word: str) -> list[str]:
    """What a word looks like."""
    ends = [f"{place}{part}" for n in range(1, 5) for place, part in (("^", word[:n]), ("$", word[-n:]))]
    return [f"is {word}", f"lower {word.lower()}", f"shape {shape(word)}", *ends]


def sentence_features(sentence: Sentence) -> list[dict[str, bool]]:
    """For each word, the names of it and of its neighbours."""
    names = [word_names(word) for word in sentence.words]

    def at(place: int) -> Iterator[str]:
        for offset in range(-2, 3):
            there = names[place + offset] if 0 <= place + offset < len(names) else ["nothing"]
            yield from (f"{offset} {name}" for name in there)

    return [dict.fromkeys(at(place), True) for place in range(len(names))]


def random_field(train: Features, tags: Tags, test: Features) -> Tags:
    """The tags of a linear-chain conditional random field (Lafferty et al. 2001), by L-BFGS with L1 and L2 penalties of 0.1."""
    import sklearn_crfsuite

    model = sklearn_crfsuite.CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=100, all_possible_transitions=True)
    model.fit(train, tags)
    return model.predict(test)


def tagged(config: str) -> tuple[str, float]:
    """What the peer is, and its span F1 on the test split of the experiment."""
    data, counts = load_experiment([f"--config={config}"]).data, Counter()
    train, test = list(data.train.read(counts)), list(data.test.read(counts))
    found = random_field([*map(sentence_features, train)], [list(s.tags) for s in train], [*map(sentence_features, test)])
    classes = sorted({tag for sentence in (*train, *test) for tag in sentence.tags})
    begins = np.concatenate([np.arange(len(sentence.words)) == 0 for sentence in test])
    flat = lambda sentences: np.array([classes.index(tag) for tags in sentences for tag in tags])  # noqa: E731
    scores = dict(span_scores(*(spans(flat(tags), begins, classes) for tags in ([s.tags for s in test], found))))
    return "conditional random field of words, affixes, shapes and neighbours", scores["f1"]


def main() -> None:
    """Prints the score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/ner.py")
    start = time.perf_counter()
    what, score = tagged(parser.parse_args().config)
    print(f"{what}: F1 {score:.4f} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
