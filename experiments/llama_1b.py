"""A Llama 3.2 1B-shaped model (Grattafiori et al. 2024, arXiv:2407.21783): 16 layers of width 2,048, 32 query and 8
key-value heads.

    lm-jax train --config=experiments/llama_1b.py --workdir=runs/llama_1b

For 8 GPUs or more: bfloat16, fully sharded, rows of 4,096 tokens, 1M tokens a step, loss in 16 chunks, activations of a layer
recomputed. Text and tokenizer as in gpt2_124m.py. Not run here (no accelerator); the tests check its shardings on 8 devices.
`:smoke` is a tiny version for tests.
"""

import dataclasses

from gpt2_124m import get_config as gpt2
from gpt2_124m import smoke

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.step import StepConfig

NUM_DEVICES = 8


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "smoke"))
    norm = NormConfig(epsilon=1e-5)
    block = BlockConfig(
        norm=norm,
        mixer=AttentionConfig(num_heads=32, num_kv_heads=8, head_dim=64, rotary=RotaryConfig(base=500_000.0)),
        feed_forward=MLPConfig(hidden=8192, activation="silu", gated=True),
    )
    experiment = gpt2()
    experiment.data.length, experiment.data.batch_size = 4096, 256
    experiment = dataclasses.replace(
        experiment,
        model=DecoderConfig(
            vocab_size=128_256,
            width=2048,
            stack=StackConfig(pattern=(block,), repeats=16, final_norm=norm, remat="full"),
            dtype="bfloat16",
        ),
        objective=LMConfig(chunks=16, z_loss=1e-4),
        optimizer=AdamW(learning_rate=3e-4, schedule=Schedule(shape="cosine", warmup_steps=2000, final_ratio=0.1)),
        step=StepConfig(accumulate=8),
    )
    return smoke(experiment) if arg == "smoke" else experiment
