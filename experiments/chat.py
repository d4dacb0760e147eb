"""A small model that answers: a language model of novels, tuned on conversations (DialogSum) by a template.

    lm-jax train --config=experiments/novels.py --workdir=runs/novels
    lm-jax train --config=experiments/chat.py:tuned --workdir=runs/chat
    lm-jax generate --workdir=runs/chat --prompt="Hello, how are you?"

`:tuned` starts from runs/novels (another run is named twice: --config.start_from=RUN --config.data.tokenizer.path=RUN), `:scratch`
from random parameters and with its own vocabulary. The 500 conversations of DialogSum's development set are for training, a tenth
of them for validation, the 500 of its test set for the test; only the second speaker's words are learned. The data is looked for in
../shared/data, or where LM_JAX_DATA points to. `:smoke` is a tiny version of `scratch`.
"""

import dataclasses

import novels
from shared_data import folder

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.data.chat import Chat, Dialogues
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import BPE, RunTokenizer
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig

PRETRAINED = "runs/novels"


def dialogues(split: str) -> Dialogues:
    """A file of DialogSum."""
    return Dialogues(paths=(f"{folder('dialogsum')}/dialogsum.{split}.jsonl",))


def get_config(arg: str = "tuned") -> Experiment:
    """The run that starts from novels, or "scratch"; "smoke" shrinks the latter to seconds."""
    if arg not in ("tuned", "scratch", "smoke"):
        raise ValueError(f"{arg!r} is not one of tuned, scratch, smoke")
    smoke, tuned = arg == "smoke", arg == "tuned"
    base = novels.get_config("smoke" if smoke else "transformer")
    prompts = ("Hello, how are you today?", "Can you help me to find the station?")
    return dataclasses.replace(
        base,
        data=Chat(
            train=dialogues("dev"),
            test=dialogues("test"),
            split=HashSplit(validation=0.1),
            tokenizer=RunTokenizer(path=PRETRAINED) if tuned else BPE(vocab_size=500 if smoke else base.model.vocab_size),
            length=64 if smoke else 256,
            batch_size=8,
        ),
        optimizer=dataclasses.replace(
            base.optimizer,
            learning_rate=0.005,
            adam_learning_rate=1.5e-3,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 10, final_ratio=0.0),
        ),
        train=TrainConfig(num_steps=2 if smoke else 120),
        checkpoint=CheckpointConfig(every=0),
        evals=() if smoke else (PerplexityConfig(every=40), PerplexityConfig(name="test", split="test")),
        samples=None if smoke else SamplesConfig(prompts=prompts, num_samples=2, sampling=SamplingConfig(temperature=0.7)),
        start_from=PRETRAINED if tuned else None,
    )
