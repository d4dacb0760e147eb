"""Language models of one text at equal time: a Transformer, an LSTM, a GRU and n-grams, by test bits per byte against seconds.

    python -m benchmarks.equal_time [--config=experiments/novels.py] [--seconds=480] [--points=3] [--order=5]
                                    [--workdir=runs/equal] [--plot=docs/equal_time.svg]

Trains `CONFIG:transformer`, `:lstm` and `:gru` one after the other, each for as many steps, with its whole schedule, as take
that long by the speed of its first, and scores `points` checkpoints of each on the test split afterwards: in rows of the length its
its evals have, the Transformer by a window that moves by half of it. Seconds are those of training, compilation included; data is
prepared before. n-grams are counted on all of the training text. Prints a table in Markdown; the plot needs matplotlib. The runs
stay in `workdir`, where one is given.
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
PROBE_STEPS = 60
PROBE_LOG_EVERY = 20


class Point(NamedTuple):
    """What a model has read after so many seconds, and its score."""

    seconds: float
    tokens: float
    bits_per_byte: float


def main() -> None:
    """Prints the table and writes the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/novels.py")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--workdir", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    curves = {f"{options.order}-gram, Kneser-Ney": [counted(options.config, options.order)]}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            config, runs = f"{options.config}:{kind}", options.workdir or Path(folder)
            steps = steps_in(options.seconds, config, Path(folder, f"{kind}_probe"))
            curves[kind] = trained(config, runs / kind, steps, options.points)
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


def train(config: str, workdir: Path, steps: int, *overrides: str) -> dict[int, float]:
    """A run without samples; the seconds that had passed at each logged step."""
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    command += [f"--config.train.num_steps={steps}", "--config.samples=None"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["wall"] for row in rows if row["kind"] == "train"}


def steps_in(seconds: float, config: str, workdir: Path) -> int:
    """How many steps take so long, by the first ones of a short run."""
    short = (f"--config.train.log_every={PROBE_LOG_EVERY}", "--config.checkpoint.every=0", "--config.evals=()")
    walls = train(config, workdir, PROBE_STEPS, *short)
    first, last = walls[PROBE_LOG_EVERY], walls[PROBE_STEPS]
    step = (last - first) / (PROBE_STEPS - PROBE_LOG_EVERY)
    return int(PROBE_LOG_EVERY + (seconds - first) / step)


def trained(config: str, workdir: Path, steps: int, points: int) -> list[Point]:
    """Points of a run, at equal numbers of steps."""
    experiment = load_experiment([f"--config={config}"])
    every = -(-steps // points)
    walls = train(config, workdir, steps, f"--config.checkpoint.every={every}", f"--config.checkpoint.keep_latest={points + 1}")
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
