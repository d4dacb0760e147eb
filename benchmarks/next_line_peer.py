"""How many next lines n-grams complete, beside experiments/code.py: the likeliest token after the last few, one after another.

    python -m benchmarks.next_line_peer [--config=experiments/code.py] [--order=5]

The lines, what stands before them and when one counts as right are those of `lm_jax.evals.next_line`; the model is that of
`lm-jax ngram`.
"""

import argparse

import numpy as np

from lm_jax.config import load_experiment
from lm_jax.counting import count
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.evals.next_line import NextLineConfig, first_line
from lm_jax.models.ngram import NGram, NGramConfig


def likeliest(model: NGram, tokens: list[int]) -> int:
    """The token of the greatest probability after `tokens`, of which a document's first is the end-of-text token."""
    context = tokens[-(model.order - 1) :] if model.order > 1 else tokens[-1:]
    inputs = np.tile(np.array(context), (model.vocab_size, 1))
    targets = np.zeros_like(inputs)
    targets[:, -1] = np.arange(model.vocab_size)
    return int(np.argmax(model.log_probs({"tokens": inputs, "targets": targets})[:, -1]))


def written(model: NGram, tokenizer: Tokenizer, prompt: list[int], max_tokens: int) -> str:
    """The first line that is not blank of at most `max_tokens` tokens that the model writes after the prompt."""
    new: list[int] = []
    while len(new) < max_tokens:
        token = likeliest(model, prompt + new)
        if token == tokenizer.eos:
            break
        new.append(token)
        text = tokenizer.decode(new)
        if first_line(text) and first_line(text) != first_line(text + "x"):  # a line end stands after it
            break
    return first_line(tokenizer.decode(new))


def completed(config: str, order: int = 5) -> tuple[str, float]:
    """What the peer is, and the share of lines that it completes exactly."""
    experiment = load_experiment([f"--config={config}"])
    data = experiment.data.prepare()
    model = count(data, NGramConfig(order=order))
    rule = next(config for config in experiment.evals if isinstance(config, NextLineConfig))
    lines = rule.lines(data)
    texts = [written(model, data.tokenizer, rule.prompt(data, line), rule.max_tokens) for line in lines]
    right = [line.is_written(text) for line, text in zip(lines, texts, strict=True)]
    return f"{order}-grams, the likeliest token each time", sum(right) / len(right)


def main() -> None:
    """Prints the share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/code.py")
    parser.add_argument("--order", type=int, default=5)
    options = parser.parse_args()
    what, share = completed(options.config, options.order)
    print(f"{what}: {share:.4f} of the lines")


if __name__ == "__main__":
    main()
