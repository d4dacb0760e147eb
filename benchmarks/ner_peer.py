"""Taggers of hand-made features beside experiments/ner.py: a conditional random field and a linear classifier of words.

    python -m benchmarks.ner_peer [--config=experiments/ner.py]

Both see the word, its lower-case form, its beginnings and ends of 1 to 4 characters and its shape, and the same of the two words
before and after it. They need sklearn-crfsuite, or scikit-learn. F1 is that of `lm_jax.evals.tagging`.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator

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


def word_by_word(train: Features, tags: Tags, test: Features) -> Tags:
    """The tags of a linear classifier of each word alone, by stochastic gradient descent on the log loss."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import SGDClassifier

    vectors = DictVectorizer(dtype=np.float32)
    x = vectors.fit_transform([word for sentence in train for word in sentence])
    x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)  # the classifier takes no others
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=20, random_state=0, tol=None, n_jobs=2)
    model.fit(x, [tag for sentence in tags for tag in sentence])
    return [list(model.predict(vectors.transform(sentence))) for sentence in test]


PEERS: dict[str, tuple[str, Callable[[Features, Tags, Features], Tags]]] = {
    "crf": ("conditional random field of words, affixes, shapes and neighbours", random_field),
    "linear": ("linear classifier of words, affixes, shapes and neighbours", word_by_word),
}


def tagged(config: str, peer: str = "crf") -> tuple[str, float]:
    """What the peer is, and its span F1 on the test split of the experiment."""
    data, counts = load_experiment([f"--config={config}"]).data, Counter()
    train, test = list(data.train.read(counts)), list(data.test.read(counts))
    what, run = PEERS[peer]
    found = run([*map(sentence_features, train)], [list(s.tags) for s in train], [*map(sentence_features, test)])
    classes = sorted({tag for sentence in (*train, *test) for tag in sentence.tags})
    begins = np.concatenate([np.arange(len(sentence.words)) == 0 for sentence in test])
    flat = lambda sentences: np.array([classes.index(tag) for tags in sentences for tag in tags])  # noqa: E731
    scores = dict(span_scores(*(spans(flat(tags), begins, classes) for tags in ([s.tags for s in test], found))))
    return what, scores["f1"]


def main() -> None:
    """Prints a line for each peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/ner.py")
    for peer in PEERS:
        start = time.perf_counter()
        what, score = tagged(parser.parse_args().config, peer)
        print(f"{what}: F1 {score:.4f} in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
