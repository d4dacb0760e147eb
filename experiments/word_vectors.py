"""Word vectors of English novels: skip-gram or CBOW with negative sampling, or GloVe.

    lm-jax train --config=experiments/word_vectors.py --workdir=runs/word_vectors

`:cbow` predicts a word from the mean of its context, `:glove` the logarithm of how often two words stand near each other. The text
is that of experiments/novels.py, the pairs of words that people have compared are looked for in ../shared/data/word_eval, or where
LM_JAX_DATA points to. `:smoke` is a tiny version for tests.

On 2 CPU cores skip-gram reaches a Spearman correlation of 0.51 on WordSim-353 in 3 minutes, gensim in the same time 0.52, CBOW 0.51
(sums of the vectors of words and of contexts). GloVe reached 0.17 after 3 minutes (by the vectors of words alone, in the first half
of a schedule of 4,000 steps) and would need many more. "validation" is the perplexity of the next word by the mean of those before.

Any model of this width begins with these vectors as its embedding with --config.words_from=runs/word_vectors.
"""

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.data.cooccurrence import Cooccurrences
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import ListedSplit
from lm_jax.data.store import Corpus
from lm_jax.data.tokenizers import Words
from lm_jax.data.word_windows import WordWindows
from lm_jax.evals.word_perplexity import WordPerplexityConfig
from lm_jax.evals.word_similarity import WordSimilarityConfig
from lm_jax.models.glove import GloVeConfig
from lm_jax.models.word_vectors import WordVectorsConfig
from lm_jax.objectives.glove import GloVeLossConfig
from lm_jax.objectives.negative_sampling import NegativeSamplingConfig
from lm_jax.optim.adagrad import Adagrad
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

SETS = ("WS-353-ALL", "WS-353-SIM", "WS-353-REL", "MEN-TR-3k", "SIMLEX-999", "RG-65")


def get_config(arg: str = "") -> Experiment:
    """Skip-gram, or with `arg` "cbow" CBOW, with "glove" GloVe; "smoke" shrinks skip-gram to seconds, "smoke_glove" GloVe."""
    if arg not in ("", "skipgram", "cbow", "glove", "smoke", "smoke_glove"):
        raise ValueError(f"{arg!r} is not one of skipgram, cbow, glove, smoke, smoke_glove")
    smoke, books = arg.startswith("smoke"), folder("novels")
    corpus = Corpus(
        name="novels",
        source=TextFiles(paths=(f"{books}/books/*.txt.gz",)),
        split=ListedSplit(path=f"{books}/splits.json"),
    )
    text = {"corpora": (corpus,), "tokenizer": Words(min_count=10, max_words=22_526, lowercase=True)}
    size = {"vocab_size": 22_528, "width": 8 if smoke else 100}
    files = tuple(f"{folder('word_eval')}/word-sim/EN-{name}.txt" for name in SETS)
    if arg.endswith("glove"):
        parts = {
            "data": Cooccurrences(window=2 if smoke else 10, length=256, batch_size=8 if smoke else 512, **text),
            "model": GloVeConfig(**size),
            "objective": GloVeLossConfig(),
        }
    else:
        rows = {"window": 2, "noise": 4, "length": 16, "batch_size": 8} if smoke else {"noise": 32, "length": 64, "batch_size": 256}
        parts = {
            "data": WordWindows(**rows, **text),
            "model": WordVectorsConfig(context="mean" if arg == "cbow" else "each", **size),
            "objective": NegativeSamplingConfig(),
        }
    return Experiment(
        **parts,
        optimizer=Adagrad(learning_rate=0.3, schedule=Schedule(shape="linear", warmup_steps=0, final_ratio=0.0)),
        step=StepConfig(clip_norm=None),
        train=TrainConfig(num_steps=2 if smoke else 2000 if arg == "glove" else 4000),
        checkpoint=CheckpointConfig(every=0),
        evals=(
            WordSimilarityConfig(paths=files, every=0 if smoke else 1000, vectors="sum"),
            *(() if smoke else (WordPerplexityConfig(),)),
        ),
        samples=None,
    )
