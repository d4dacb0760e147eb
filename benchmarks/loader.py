"""How fast ready batches are made from cached text, on one core: `python -m benchmarks.loader`.

Reads the novels of ../shared/data with a trained BPE tokenizer where they are there, else tiny Shakespeare by
characters. Prints, for each batch shape and setting, the median over rounds of million tokens (places in rows) per
second of CPU time of this single-threaded process, and of wall time. The gate is 20.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm_jax.data.loader import Loader
from lm_jax.data.packing import Packing, best_fit_decreasing
from lm_jax.data.shuffle import permute
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import TailFraction
from lm_jax.data.store import Corpus
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import BPE, Characters

ROOT = Path(__file__).resolve().parent.parent
GATE = 20e6
SHAPES = ((12, 64), (16, 512), (64, 1024))
SETTINGS = {
    "stream": {},
    "stream, document mask": {"document_mask": True},
    "pack": {"packing": Packing(method="pack")},
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", default=None, help="folder of prepared data (default: as in training)")
    arguments = parser.parse_args()
    prepared = text_data(arguments.cache).prepare()
    store = prepared.sources("train")[0].store
    print(f"{len(store.tokens):,} tokens, {len(store.offsets) - 1:,} documents, {store.tokens.dtype}")
    print(f"{'rows x length':>14}  {'setting':<22}  {'M tokens/s CPU':>15}  {'wall':>7}")
    for batch_size, length in SHAPES:
        for name, setting in SETTINGS.items():
            loader = make_loader(prepared, batch_size=batch_size, length=length, **setting)
            cpu, wall = measure(loader, arguments.rounds)
            note = "" if cpu >= GATE else "  below the gate"
            print(f"{batch_size:>6} x {length:<5}  {name:<22}  {cpu / 1e6:>15.0f}  {wall / 1e6:>7.0f}{note}")
    indices, sizes = np.arange(1_000_000), np.random.default_rng(0).integers(1, 1025, 1_000_000)
    print(f"shuffle: {seconds(lambda: permute(indices, 10**7, seed=0)) * 1e3:.0f} ns per index")
    print(f"best fit decreasing of 1,000,000 documents: {seconds(lambda: best_fit_decreasing(sizes, 1024)):.2f} s")


def text_data(cache_dir: str | None) -> TextData:
    """The text that is measured."""
    novels = ROOT.parent / "shared" / "data" / "novels" / "books"
    if novels.is_dir():
        source, tokenizer = TextFiles(paths=(str(novels / "*.txt.gz"),)), BPE(vocab_size=8000)
    else:
        source = TextFiles(paths=(str(ROOT / "experiments" / "data" / "shakespeare.txt"),))
        tokenizer = Characters()
    corpus = Corpus(name="text", source=source, split=TailFraction(validation=0.05))
    return TextData(corpora=(corpus,), tokenizer=tokenizer, cache_dir=cache_dir)


def make_loader(prepared: PreparedText, **settings: object) -> Loader:
    """A training loader of the prepared text with other settings of rows and batches."""
    config = dataclasses.replace(prepared.config, **settings)
    return dataclasses.replace(prepared, config=config).train_loader()


def measure(loader: Loader, rounds: int, tokens_per_round: int = 10_000_000) -> tuple[float, float]:
    """(tokens per second of CPU time, of wall time) of consecutive batches: medians over the rounds."""
    tokens_per_batch = loader.batch_size * loader.length
    steps = tokens_per_round // tokens_per_batch
    rates = []
    for number in range(rounds + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        for step in range(number * steps, (number + 1) * steps):
            loader(step)
        spent = time.process_time() - cpu, time.perf_counter() - wall
        rates.append([steps * tokens_per_batch / seconds for seconds in spent])
    return tuple(map(statistics.median, zip(*rates[1:], strict=True)))


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call, the least of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
