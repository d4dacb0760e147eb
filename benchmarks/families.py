"""The figures of the families: each experiment trained for some seeds, its score on the test (or where there is none, on what is
held out) beside its goal and its peer.

    python -m benchmarks.families [--only=sst2,trec] [--seeds=3]

Each run is a process of its own, `lm-jax train` with the seed of the parameters and of the data. Peers run in this process, on the
same split; that of thucnews needs scikit-learn, that of ner sklearn-crfsuite. Prints a line per experiment; results are kept in
experiments/LOG.md. Other figures of the families have programs of their own: `equal_time` (novels by models of four kinds) and
`word_vectors` (beside gensim); what masked-word pretraining is worth takes three runs, which experiments/masked_lm.py lists.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.lead import led
from benchmarks.ner_peer import tagged
from benchmarks.next_line_peer import completed
from benchmarks.squad_peer import answered


class Figure(NamedTuple):
    """What to train, what to read off its metrics (or off it `over` which other score), what to reach and what to compare with."""

    config: str
    eval: str
    score: str
    goal: float | None
    peer: Callable[[str], tuple[str, float]] | None = None
    over: str | None = None


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


CLASSIFICATION = "experiments/classification.py"
TRANSLATION, EMOJI, FLICKR = "experiments/translation.py", "experiments/emoji.py", "experiments/flickr8k.py"
DIGITS = "experiments/speech_digits.py"
TIMES_CHANCE = {"score": "image_to_text_recall@10", "over": "image_to_text_chance@10"}
FIGURES = {
    "sst2": Figure(f"{CLASSIFICATION}:sst2", "test", "accuracy", 0.81),
    "trec": Figure(f"{CLASSIFICATION}:trec", "test", "accuracy", 0.88),
    "subj": Figure(f"{CLASSIFICATION}:subj", "test", "accuracy", 0.89),
    "thucnews": Figure(f"{CLASSIFICATION}:thucnews", "test", "accuracy", None, character_ngrams),
    "translation": Figure(f"{TRANSLATION}:transformer", "test", "bleu", 30.0),
    "translation_luong": Figure(f"{TRANSLATION}:luong", "test", "bleu", None),
    "translation_bahdanau": Figure(f"{TRANSLATION}:bahdanau", "test", "bleu", None),
    "sentences": Figure("experiments/sentences.py", "test", "source_to_target_recall@1", None),
    "ner": Figure("experiments/ner.py", "test", "f1", None, tagged),
    "squad": Figure("experiments/squad.py:spans", "test", "f1", None, answered),
    "headlines": Figure("experiments/summaries.py:reuters", "test", "rougeL", None, led),
    "bbc": Figure("experiments/summaries.py:bbc", "test", "rougeL", None, led),
    "digits_ctc": Figure(f"{DIGITS}:ctc", "test", "word_error_rate", 0.03),
    "digits_seq2seq": Figure(f"{DIGITS}:seq2seq", "test", "word_error_rate", 0.03),
    "emoji": Figure(f"{EMOJI}:contrastive", "validation", goal=12.0, **TIMES_CHANCE),
    "emoji_coca": Figure(f"{EMOJI}:coca", "validation", goal=12.0, **TIMES_CHANCE),
    "flickr8k": Figure(f"{FLICKR}:contrastive", "validation", goal=5.0, **TIMES_CHANCE),
    "flickr8k_captions": Figure(f"{FLICKR}:caption", "captions", "bleu", None),
    "word_vectors": Figure("experiments/word_vectors.py", "similarity", "EN-WS-353-ALL", 0.35),
    "glove": Figure("experiments/word_vectors.py:glove", "similarity", "EN-WS-353-ALL", None),
    "spans": Figure("experiments/denoising.py:span", "validation", "perplexity", None),
    "ul2": Figure("experiments/denoising.py:ul2", "validation", "perplexity", None),
    "prefix": Figure("experiments/denoising.py:prefix", "validation", "perplexity", None),
    "python": Figure("experiments/code.py", "lines", "exact", None, completed),
    "wikitext2_lstm": Figure("experiments/wikitext2.py:lstm", "test", "perplexity", 102.0),
    "wikitext2_transformer": Figure("experiments/wikitext2.py:transformer", "test", "perplexity", None),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FIGURES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in options.only:
        figure = FIGURES[name]
        results = [measure(figure, seed) for seed in range(options.seeds)]
        scores, seconds = zip(*results, strict=True)
        what = figure.score if figure.over is None else f"{figure.score} over {figure.over}"
        line = f"{name}: {what} {statistics.mean(scores):.4f} ({', '.join(f'{score:.4f}' for score in scores)})"
        line += f" in {statistics.mean(seconds):.0f} s; goal {figure.goal}"
        if figure.peer is not None:
            what, score = figure.peer(figure.config)
            line += f"; {what}: {score:.4f}"
        print(line, flush=True)


def measure(figure: Figure, seed: int) -> tuple[float, float]:
    """(score at the last step, seconds) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lm_jax.main", "train", f"--config={figure.config}", f"--workdir={folder}/run"]
        command += [f"--config.train.seed={seed}", f"--config.data.seed={seed}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "eval" and row["eval"] == figure.eval][-1]
    return last[figure.score] / (1.0 if figure.over is None else last[figure.over]), seconds


if __name__ == "__main__":
    main()
