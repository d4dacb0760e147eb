"""Classical Chinese poetry, one token a character: Tang poems and Song lyrics, each poem a document of its own.

    lm-jax train --config=experiments/poetry.py --workdir=runs/poetry

Poems are packed whole into rows, and attention stays within a poem. 2 % of the poems are held out for validation and 2 % for
the test, by the hash of their place. The text is looked for in ../shared/data/poetry, or where LM_JAX_DATA points to. On 2 CPU
cores: 7 minutes, test loss 4.55 nats per character. `:smoke` is a tiny version for tests.
"""

from shared_data import folder

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.core.config import check_choice
from lm_jax.data.packing import Packing
from lm_jax.data.sources import JsonLines
from lm_jax.data.splits import HashSplit
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


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "smoke"))
    smoke = arg == "smoke"
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=4, rotary=RotaryConfig(), qk_norm=NormConfig()),
        feed_forward=MLPConfig(hidden=32 if smoke else 512, activation="silu", gated=True),
    )
    poems = JsonLines(paths=(f"{folder('poetry')}/*.jsonl.gz",), fields=("title", "author", "text"))
    return Experiment(
        data=TextData(
            corpora=(Corpus(name="poetry", source=poems, split=HashSplit(validation=0.02, test=0.02)),),
            tokenizer=Characters(min_count=5),
            packing=Packing(method="pack"),
            length=64 if smoke else 256,
            batch_size=8,
        ),
        model=DecoderConfig(
            vocab_size=8000,
            width=16 if smoke else 192,
            stack=StackConfig(pattern=(block,), repeats=2 if smoke else 4, unroll=4),
            head=HeadConfig(soft_cap=15.0),
            init=Init(weights="fan_in", outputs="zeros", embedding_std=0.02),
        ),
        optimizer=Muon(
            learning_rate=0.02,
            adam_learning_rate=6e-3,
            weight_decay=0.0,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 50, decay_fraction=0.6, final_ratio=0.0),
        ),
        train=TrainConfig(num_steps=2 if smoke else 900),
        checkpoint=CheckpointConfig(every=0 if smoke else 300),
        evals=() if smoke else (PerplexityConfig(batch_size=16), PerplexityConfig(name="test", split="test", batch_size=16)),
        samples=None
        if smoke
        else SamplesConfig(prompts=("", "靜夜思\n李白\n"), num_samples=2, max_tokens=80, sampling=SamplingConfig(temperature=0.8)),
    )
