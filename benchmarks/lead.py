"""The peer of experiments/summaries.py: the first sentence of an article as its headline.

python -m benchmarks.lead [--limit=1000]
"""

import argparse
import re
from collections import Counter

from lm_jax.config import load_experiment
from lm_jax.evals.text_metrics import METRICS


def lead(text: str) -> str:
    """Up to the first full stop that ends a sentence, line ends read as spaces."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def main() -> None:
    """Prints the scores of the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=1000, help="articles, as the experiment reads")
    limit = parser.parse_args().limit
    pairs = list(load_experiment(["--config=experiments/summaries.py"]).data.test.read(Counter()))[:limit]
    scores = dict(METRICS["rouge"]([lead(pair.source) for pair in pairs], [[pair.target] for pair in pairs]))
    print(f"first sentence, {len(pairs):,} articles: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
