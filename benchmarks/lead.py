"""The peer of experiments/summaries.py: the first sentence of an article as its headline.

python -m benchmarks.lead [--config=experiments/summaries.py] [--limit=1000]
"""

import argparse
import re
from collections import Counter

from lm_jax.config import load_experiment
from lm_jax.evals.text_metrics import METRICS


def lead(text: str) -> str:
    """Up to the first full stop that ends a sentence, line ends read as spaces."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def led(config: str, limit: int = 1000) -> tuple[str, float]:
    """What the peer is, and its ROUGE-L on the first articles of the test split of the experiment."""
    number, scores = _scores(config, limit)
    return f"the first sentence of {number:,} articles", scores["rougeL"]


def _scores(config: str, limit: int) -> tuple[int, dict[str, float]]:
    pairs = list(load_experiment([f"--config={config}"]).data.test.read(Counter()))[:limit]
    return len(pairs), dict(METRICS["rouge"]([lead(pair.source) for pair in pairs], [[pair.target] for pair in pairs]))


def main() -> None:
    """Prints the scores of the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/summaries.py")
    parser.add_argument("--limit", type=int, default=1000, help="articles, as the experiment reads")
    options = parser.parse_args()
    number, scores = _scores(options.config, options.limit)
    print(f"first sentence of {number:,} articles: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
