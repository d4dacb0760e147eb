"""A small experiment that tests run from end to end, and ways to run it."""

import random
from pathlib import Path

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import TailFraction
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.preemption import Preemption
from lm_jax.train.rows import read_metrics
from lm_jax.train.trainer import TrainConfig
from tests.models_for_tests import llama

WORDS = "the of and to in that was his he it with is for as had you not be on at by her she which all".split()


def experiment(folder: Path, num_steps: int = 12) -> Experiment:
    """A character model of made-up text in `folder`, evaluated and saved every 4 steps."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(" ".join(random.Random(0).choices(WORDS, k=3000)))
    return Experiment(
        data=TextData(
            corpora=(Corpus(name="words", source=TextFiles(paths=(str(text),)), split=TailFraction(validation=0.1)),),
            tokenizer=Characters(),
            length=16,
            batch_size=8,
            cache_dir=str(folder / "cache"),
            num_workers=1,
        ),
        model=llama(),
        optimizer=AdamW(learning_rate=1e-2),
        train=TrainConfig(num_steps=num_steps, log_every=1),
        checkpoint=CheckpointConfig(every=4),
        evals=(PerplexityConfig(every=4, batch_size=8),),
        samples=SamplesConfig(prompts=("the ",), max_tokens=8, sampling=SamplingConfig(temperature=0.8)),
    )


def stop_after(monkeypatch, step: int | None) -> None:
    """From now on runs are asked to stop after `step`, as by SIGTERM; None: they are not."""
    monkeypatch.setattr(Preemption, "requested", lambda self, now: now == step)


def losses(workdir: Path) -> dict[int, float]:
    """The training loss of every step."""
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if row["kind"] == "train"}


def events(workdir: Path, name: str) -> list[dict]:
    """The events of one name."""
    return [row for row in read_metrics(workdir) if row["kind"] == "event" and row["event"] == name]


def evals(workdir: Path, name: str = "validation") -> dict[int, dict]:
    """The rows of an eval, by step."""
    return {row["step"]: row for row in read_metrics(workdir) if row["kind"] == "eval" and row["eval"] == name}
