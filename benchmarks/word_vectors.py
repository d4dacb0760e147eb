"""Word vectors beside those of gensim: the same words of the same text, the same sizes, in the same time on the same machine.

    python -m benchmarks.word_vectors [--config=experiments/word_vectors.py] [--config.FIELD=VALUE ...]

Trains the experiment by `lm-jax train`, then gensim (pip install gensim) by as many epochs as come nearest to its seconds, and
prints the Spearman correlations of both with people's scores (see `lm_jax.evals.word_similarity`), of gensim by its word vectors
and by their sum with those of contexts, which the experiment takes. gensim reads a file of lines in its threads, its fastest way.
Its window, noise and subsampling are those of the experiment, all else is its default.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lm_jax.config import Experiment, load_experiment
from lm_jax.data.sources import find
from lm_jax.data.word_windows import PreparedWords
from lm_jax.evals.word_similarity import WordSimilarityConfig, agreement, normalised

LINE = 1000  # words of a line


def main() -> None:
    """Prints three lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="experiments/word_vectors.py")
    options, overrides = parser.parse_known_args()
    config = [f"--config={options.config}", *overrides]
    experiment = load_experiment(config)
    data = experiment.data.prepare(print)
    with tempfile.TemporaryDirectory() as folder:
        seconds, ours = trained(config, Path(folder, "run"))
        show("lm_jax", seconds, ours)
        path = Path(folder, "words.txt")
        write_words(data, path)
        seconds, found, epochs = by_gensim(experiment, data, path, seconds)
    config = next(config for config in experiment.evals if isinstance(config, WordSimilarityConfig))
    paths = [path for pattern in config.paths for path in find(pattern)]
    for kind, vectors in found.items():
        scores = dict(score for path in paths for score in agreement(vectors, data.tokenizer, path))
        show(f"gensim, {epochs} epochs, {kind}", seconds, scores)


def show(name: str, seconds: float, scores: dict[str, float]) -> None:
    """A line: who, how long, and the correlations."""
    values = " ".join(f"{key}={value:.3f}" for key, value in scores.items() if key.startswith("EN-") and "/" not in key)
    print(f"{name}: {seconds:.0f} s, {values}", flush=True)


def trained(config: list[str], workdir: Path) -> tuple[float, dict[str, float]]:
    """(seconds of the whole command, the last scores) of the experiment."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lm_jax.main", "train", *config, f"--workdir={workdir}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return seconds, [row for row in rows if row["kind"] == "eval" and row["eval"] == "similarity"][-1]


def write_words(data: PreparedWords, path: Path) -> None:
    """The words of the training text that the experiment learns, as ids, in lines that end where documents do."""
    kept = data.words()
    with open(path, "w") as file:
        for source in data.text.sources("train"):
            store = source.store
            for start, stop in zip(store.offsets[:-1], store.offsets[1:], strict=True):
                words = np.asarray(store.tokens[start:stop])
                words = words[kept[words]].tolist()
                file.writelines(" ".join(map(str, words[i : i + LINE])) + "\n" for i in range(0, len(words), LINE))


def by_gensim(experiment: Experiment, data: PreparedWords, path: Path, seconds: float) -> tuple[float, dict[str, np.ndarray], int]:
    """(seconds, unit vectors [V, D] by kind, epochs) of gensim's training, for about `seconds`."""
    from gensim.models import Word2Vec

    settings = {
        "corpus_file": str(path),
        "vector_size": experiment.model.width,
        "window": experiment.data.window,
        "negative": int(experiment.objective.negatives),
        "ns_exponent": experiment.data.noise_power,
        "sample": experiment.data.subsample or 0,
        "sg": int(experiment.model.context == "each"),
        "min_count": 1,
        "workers": len(os.sched_getaffinity(0)),
    }
    start = time.perf_counter()
    Word2Vec(**settings, epochs=1)
    epochs = max(round(seconds / (time.perf_counter() - start)), 1)
    start = time.perf_counter()
    model = Word2Vec(**settings, epochs=epochs)
    seconds = time.perf_counter() - start
    found = {}
    for kind, table in (("words", model.wv.vectors), ("sum", model.wv.vectors + model.syn1neg)):
        vectors = np.zeros((data.vocab_size, experiment.model.width), np.float32)
        for word, place in model.wv.key_to_index.items():
            vectors[int(word)] = table[place]
        found[kind] = normalised(vectors)
    return seconds, found, epochs


if __name__ == "__main__":
    main()
