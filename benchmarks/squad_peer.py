"""What answers a question without any learning, beside experiments/squad.py: the sentence that shares most words with it.

    python -m benchmarks.squad_peer [--config=experiments/squad.py]

Words are compared without case; of equal sentences the shortest is the answer. F1 and exact match are those of
`lm_jax.evals.text_metrics`.
"""

import argparse
import re
from collections import Counter

from lm_jax.config import load_experiment
from lm_jax.data.questions import Question
from lm_jax.data.tokenizers import split_words
from lm_jax.evals.text_metrics import is_answer, word_f1


def nearest_sentence(question: Question) -> str:
    """The sentence of the context that has most of the different words of the question."""
    asked = set(split_words(question.question, lowercase=True, split="words"))
    sentences = re.split(r"(?<=[.!?])\s+", question.context)
    overlap = lambda sentence: len(asked & set(split_words(sentence, lowercase=True, split="words")))  # noqa: E731
    return max(sentences, key=lambda sentence: (overlap(sentence), -len(sentence)))


def answered(config: str) -> tuple[str, float]:
    """What the peer is, and its F1 on the test split of the experiment."""
    what, scores = _scores(config)
    return what, scores[0]


def _scores(config: str) -> tuple[str, tuple[float, float]]:
    questions = list(load_experiment([f"--config={config}"]).data.test.read(Counter()))
    found = [(nearest_sentence(question), [text for text, _ in question.answers]) for question in questions]
    both = (
        sum(max(score(text, answer) for answer in answers) for text, answers in found) / len(found)
        for score in (word_f1, is_answer)
    )
    return "the sentence that shares most words with the question", tuple(both)


def main() -> None:
    """Prints the scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/squad.py")
    what, scores = _scores(parser.parse_args().config)
    print(f"{what}: F1 {scores[0]:.4f}, exact match {scores[1]:.4f}")


if __name__ == "__main__":
    main()
