"""The figures of the families: each experiment trained for some seeds, its score on the test (or where there is none, on what is
held out) beside its goal and its peer.

    python -m benchmarks.families [--only=sst2,trec] [--seeds=3]

Each run is a process of its own, `lm-jax train` with the seed of the parameters and of the data; where the first takes more than
ten minutes it is the only one. Peers run in this process, on the same split; that of thucnews needs scikit-learn, that of ner
sklearn-crfsuite (the extra `peers`). Prints date and commit, and a line per experiment; results are kept in experiments/LOG.md.
Novels by models of four kinds and word vectors beside gensim have programs of their own: `equal_time` and `word_vectors`.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from benchmarks.lead import led
from benchmarks.ner_peer import tagged
from benchmarks.next_line_peer import completed
from benchmarks.squad_peer import answered

LONG = 600  # seconds: longer runs are made once


class Figure(NamedTuple):
    """What to train, what to read off its metrics ("eval/score"), what to reach, what to compare with, what to divide the score by,
    and what else to print."""

    config: str
    score: str
    goal: float | None = None
    peer: Callable[[str], tuple[str, float]] | None = None
    over: str | None = None
    also: tuple[str, ...] = ()


def character_ngrams(config: str) -> tuple[str, float]:
    """Accuracy of logistic regression on the tf-idf of 1 to 3 characters, on the texts of the experiment."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from lm_jax.config import load_experiment

    data = load_experiment([f"--config={config}"]).data
    counts = dict.fromkeys(("lines dropped: blank",), 0)
    train, test = (list(source.read(counts)) for source in (data.train, data.test))
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=300)
    model.fit(vectors.fit_transform(text.text for text in train), [text.label for text in train])
    score = model.score(vectors.transform(text.text for text in test), [text.label for text in test])
    return "logistic regression of character 1-3-grams", score


CLASSIFICATION, MASKED, NOVELS = "experiments/classification.py", "experiments/masked_lm.py", "experiments/novels.py"
TRANSLATION, EMOJI, FLICKR = "experiments/translation.py", "experiments/emoji.py", "experiments/flickr8k.py"
DIGITS, SIMILARITY = "experiments/speech_digits.py", "similarity/EN-WS-353-ALL"
RECALL = {"score": "validation/image_to_text_recall@10", "over": "validation/image_to_text_chance@10"}
FIGURES = {
    "sst2": Figure(f"{CLASSIFICATION}:sst2", "test/accuracy", 0.81),
    "trec": Figure(f"{CLASSIFICATION}:trec", "test/accuracy", 0.88),
    "subj": Figure(f"{CLASSIFICATION}:subj", "test/accuracy", 0.89),
    "thucnews": Figure(f"{CLASSIFICATION}:thucnews", "test/accuracy", None, character_ngrams),
    "translation": Figure(f"{TRANSLATION}:transformer", "test/bleu", 30.0, also=("test/chrf",)),
    "translation_original": Figure(f"{TRANSLATION}:original", "test/bleu", also=("test/chrf",)),
    "translation_luong": Figure(f"{TRANSLATION}:luong", "test/bleu", also=("test/chrf",)),
    "translation_bahdanau": Figure(f"{TRANSLATION}:bahdanau", "test/bleu", also=("test/chrf",)),
    "translation_gru": Figure(f"{TRANSLATION}:gru", "test/bleu", also=("test/chrf",)),
    "sentences": Figure("experiments/sentences.py", "test/source_to_target_recall@1", also=("test/target_to_source_recall@1",)),
    "ner": Figure("experiments/ner.py", "test/f1", None, tagged),
    "squad": Figure("experiments/squad.py:spans", "test/f1", None, answered, also=("test/exact_match",)),
    "squad_generative": Figure("experiments/squad.py:generative", "test/f1", None, answered, also=("test/exact",)),
    "headlines": Figure("experiments/summaries.py:reuters", "test/rougeL", None, led),
    "headlines_prompted": Figure("experiments/summaries.py:prompted", "test/rougeL", None, led),
    "bbc": Figure("experiments/summaries.py:bbc", "test/rougeL", None, led),
    "digits_ctc": Figure(f"{DIGITS}:ctc", "test/word_error_rate", 0.03),
    "digits_seq2seq": Figure(f"{DIGITS}:seq2seq", "test/word_error_rate", 0.03),
    "emoji": Figure(f"{EMOJI}:contrastive", goal=12.0, **RECALL),
    "emoji_sigmoid": Figure(f"{EMOJI}:sigmoid", goal=12.0, **RECALL),
    "emoji_coca": Figure(f"{EMOJI}:coca", goal=12.0, **RECALL),
    "flickr8k": Figure(f"{FLICKR}:contrastive", goal=5.0, **RECALL),
    "flickr8k_captions": Figure(f"{FLICKR}:caption", "captions/bleu"),
    "skip_gram": Figure("experiments/word_vectors.py", SIMILARITY, 0.35),
    "cbow": Figure("experiments/word_vectors.py:cbow", SIMILARITY),
    "glove": Figure("experiments/word_vectors.py:glove", SIMILARITY),
    "masked_words": Figure(MASKED, "validation/perplexity"),
    "novels": Figure(NOVELS, "test/bits_per_byte"),
    "spans": Figure("experiments/denoising.py:span", "validation/perplexity"),
    "ul2": Figure("experiments/denoising.py:ul2", "validation/perplexity"),
    "prefix": Figure("experiments/denoising.py:prefix", "validation/perplexity"),
    "python": Figure("experiments/code.py", "lines/exact", None, completed, also=("validation/bits_per_byte",)),
    "python_stdlib": Figure("experiments/code.py:stdlib", "lines/exact", None, completed, also=("validation/bits_per_byte",)),
    "python_fim": Figure("experiments/code.py:fim", "holes/exact", also=("lines/exact", "validation/perplexity")),
    "wikitext2_lstm": Figure("experiments/wikitext2.py:lstm", "test/perplexity", 102.0),
    "wikitext2_transformer": Figure("experiments/wikitext2.py:transformer", "test/perplexity"),
}
AFTER = {  # what begins with the parameters or the tokenizer of the run of another figure
    "masked_words": {
        name: Figure(f"{MASKED}:{name}", "test/accuracy", also=("validation/accuracy",)) for name in ("finetune", "scratch")
    },
    "novels": {"chat": Figure("experiments/chat.py:tuned", "test/bits_per_byte", also=("test/perplexity",))},
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FIGURES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{datetime.date.today()}, commit {commit}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            report(name, FIGURES[name], options.seeds, Path(folder, name))
            for after, figure in AFTER.get(name, {}).items():
                source = Path(folder, name, "0")
                given = [f"--config.data.tokenizer.path={source}"]
                given += [] if after == "scratch" else [f"--config.start_from={source}"]
                report(f"{name}, {after}", figure, options.seeds, Path(folder, after), given)


def report(name: str, figure: Figure, seeds: int, folder: Path, given: Sequence[str] = ()) -> None:
    """Trains and prints a line."""
    runs = [measure(figure, 0, folder / "0", given)]
    if runs[0].seconds < LONG:
        runs += [measure(figure, seed, folder / str(seed), given) for seed in range(1, seeds)]
    what = figure.score if figure.over is None else f"{figure.score} over {figure.over}"
    line = f"{name}: {what} {mean(run.score for run in runs):.4f} ({', '.join(f'{run.score:.4f}' for run in runs)})"
    for i, also in enumerate(figure.also):
        line += f", {also} {mean(run.also[i] for run in runs):.4f}"
    line += f" in {mean(run.seconds for run in runs):.0f} s; goal {figure.goal}"
    if figure.peer is not None:
        what, score = figure.peer(figure.config)
        line += f"; {what}: {score:.4f}"
    print(line, flush=True)


class Run(NamedTuple):
    """What a run was worth."""

    score: float
    also: tuple[float, ...]
    seconds: float


def measure(figure: Figure, seed: int, workdir: Path, given: Sequence[str] = ()) -> Run:
    """Scores at the last step, and the seconds of one run."""
    command = [sys.executable, "-m", "lm_jax.main", "train", f"--config={figure.config}", f"--workdir={workdir}", *given]
    command += [f"--config.train.seed={seed}", f"--config.data.seed={seed}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = {row["eval"]: row for row in rows if row["kind"] == "eval"}

    def value(name: str) -> float:
        return last[name.split("/")[0]][name.split("/", 1)[1]]

    score = value(figure.score) / (1.0 if figure.over is None else value(figure.over))
    return Run(score, tuple(map(value, figure.also)), seconds)


if __name__ == "__main__":
    main()
