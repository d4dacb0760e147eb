"""The peer of experiments/summaries.py: the beginning of an article as its headline or summary.

    python -m benchmarks.lead [--config=experiments/summaries.py] [--limit=1000]

The first sentence of an article; where summaries are extracts, as many of the first sentences as the training summaries take.
"""

import argparse
from collections import Counter

from lm_jax.config import load_experiment
from lm_jax.data.extracts import ExtractedSentences, sentences
from lm_jax.data.pairs import PairData
from lm_jax.evals.text_metrics import METRICS


def lead(text: str, share: float = 0.0) -> str:
    """The first sentences, this share of them and at least one, line ends read as spaces."""
    parts = sentences(text if share else " ".join(text.split()))
    return " ".join(parts[: max(round(share * len(parts)), 1)])


def taken_share(data: PairData) -> float:
    """The share of the sentences of training documents that their summaries take; 0 where these are no extracts."""
    if not isinstance(data, ExtractedSentences):
        return 0.0
    weighted = [(example.arrays["targets"].sum(), example.arrays["weights"].sum()) for example in data.prepare().require("train")]
    return float(sum(taken for taken, _ in weighted) / sum(number for _, number in weighted))


def led(config: str, limit: int = 1000) -> tuple[str, float]:
    """What the peer is, and its ROUGE-L on the first articles of the test split of the experiment."""
    what, scores = _scores(config, limit)
    return what, scores["rougeL"]


def _scores(config: str, limit: int) -> tuple[str, dict[str, float]]:
    data = load_experiment([f"--config={config}"]).data
    pairs, share = list(data.test.read(Counter()))[:limit], taken_share(data)
    scores = dict(METRICS["rouge"]([lead(pair.source, share) for pair in pairs], [[pair.target] for pair in pairs]))
    what = f"the first {share:.0%} of the sentences" if share else "the first sentence"
    return f"{what} of {len(pairs):,} articles", scores


def main() -> None:
    """Prints the scores of the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/summaries.py")
    parser.add_argument("--limit", type=int, default=1000, help="articles, as the experiment reads")
    options = parser.parse_args()
    what, scores = _scores(options.config, options.limit)
    print(f"{what}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
