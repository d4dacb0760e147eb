"""Quickstart: a character-level model of tiny Shakespeare, at the budget of nanoGPT's CPU recipe.

    lm-jax train --config=experiments/shakespeare.py --workdir=runs/shakespeare

At most 0.83M parameters, rows of 64 characters, 12 a step, 2,000 steps (1.5M characters seen); the last 10 % of the text are
the validation split. On 2 CPU cores: 2 minutes, validation loss 1.56 nats per character. `:smoke` is a tiny version for tests.
"""

from pathlib import Path

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.core.config import check_choice
from lm_jax.data.packing import Packing
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import TailFraction
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.optim.muon import Muon
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig

TEXT = Path(__file__).parent / "data" / "shakespeare.txt"


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "smoke"))
    smoke = arg == "smoke"
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=4, rotary=RotaryConfig(), qk_norm=NormConfig()),
        feed_forward=MLPConfig(hidden=32 if smoke else 352, activation="silu", gated=True),
    )
    return Experiment(
        data=TextData(
            corpora=(Corpus(name="shakespeare", source=TextFiles(paths=(str(TEXT),)), split=TailFraction(validation=0.1)),),
            tokenizer=Characters(),
            length=16 if smoke else 64,
            batch_size=8 if smoke else 12,
            packing=Packing(shift=True),
        ),
        model=DecoderConfig(
            vocab_size=66,
            width=16 if smoke else 128,
            stack=StackConfig(pattern=(block,), repeats=2 if smoke else 4, unroll=4),
            head=HeadConfig(soft_cap=15.0),
            init=Init(weights="fan_in", outputs="zeros", embedding_std=0.02),
        ),
        optimizer=Muon(
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            weight_decay=0.0,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 50, decay_fraction=0.6, final_ratio=0.0),
        ),
        train=TrainConfig(num_steps=4 if smoke else 2000),
        checkpoint=CheckpointConfig(every=2 if smoke else 500),
        evals=(PerplexityConfig(every=2 if smoke else 250, batch_size=64),),
        samples=SamplesConfig(
            every=0 if smoke else 1000,
            prompts=("ROMEO:\n",),
            num_samples=2,
            max_tokens=20 if smoke else 400,
            sampling=SamplingConfig(temperature=0.8),
        ),
    )
