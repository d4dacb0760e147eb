"""Language models of one text at equal time: a Transformer, an LSTM, a GRU and n-grams, by test bits per byte against seconds.

    python -m benchmarks.equal_time [--config=experiments/novels.py] [--points=3] [--order=5] [--plot=docs/equal_time.svg]

Trains `CONFIG:transformer`, `:lstm` and `:gru` one after the other and scores `points` checkpoints of each on the test split
afterwards: in rows of the length that its evals have, the Transformer by a window that moves by half of it. Seconds are those of
training, compilation included; data is prepared before. n-grams are counted on all of the training text. Prints a table in
Markdown; the plot needs matplotlib.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from lm_jax.config import load_experiment
from lm_jax.counting import count, score
from lm_jax.models.ngram import NGramConfig
from lm_jax.trained import evaluate

KINDS = ("transformer", "lstm", "gru")


class Point(NamedTuple):
    """What a model has read after so many seconds, and its score."""

    seconds: float
    tokens: float
    bits_per_byte: float


def main() -> None:
    """Prints the table and writes the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/novels.py")
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    curves = {f"{options.order}-gram, Kneser-Ney": [counted(options.config, options.order)]}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            curves[kind] = trained(f"{options.config}:{kind}", Path(folder, kind), options.points)
    print("| model | seconds | tokens read | test bits per byte |\n|---|---|---|---|")
    for name, points in curves.items():
        for point in points:
            print(f"| {name} | {point.seconds:.0f} | {point.tokens / 1e6:.1f}M | {point.bits_per_byte:.3f} |", flush=True)
    if options.plot is not None:
        draw(curves, options.plot)


def counted(config: str, order: int) -> Point:
    """The n-grams of the training text: one point."""
    data = load_experiment([f"--config={config}"]).data.prepare()
    start = time.perf_counter()
    model = count(data, NGramConfig(order=order))
    seconds = time.perf_counter() - start
    tokens = sum(len(source.store.tokens) for source in data.sources("train"))
    return Point(seconds, tokens, dict(score(model, data, "test"))["bits_per_byte"])


def trained(config: str, workdir: Path, points: int) -> list[Point]:
    """Points of a run, at equal numbers of steps."""
    experiment = load_experiment([f"--config={config}"])
    steps = experiment.train.num_steps
    every = -(-steps // points)
    saved = [f"--config.checkpoint.every={every}", f"--config.checkpoint.keep_latest={points + 1}"]
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--config={config}", f"--workdir={workdir}", *saved]
    subprocess.run([*command, "--config.samples=None"], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    walls = {row["step"]: row["wall"] for row in rows if row["kind"] == "train"}
    batch = experiment.data.batch_size * experiment.data.length
    found = []
    for step in [*range(every, steps, every), steps]:
        near = max(known for known in walls if known <= step)
        seconds = walls[near] * step / near
        stride = experiment.data.length // 2 if config.endswith(":transformer") else None
        ((_, scores),) = evaluate(workdir, step=step, split="test", stride=stride)
        found.append(Point(seconds, step * batch, scores["bits_per_byte"]))
    return found


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Test bits per byte against seconds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot([p.seconds for p in points], [p.bits_per_byte for p in points], marker="o", label=name)
    axes.set(xlabel="seconds of training, 2 CPU cores", ylabel="test bits per byte", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
