"""A Llama 3 8B-shaped model (Grattafiori et al. 2024, arXiv:2407.21783): 32 layers of width 4,096, 32 query and 8 key-value heads.

    lm-jax train --config=experiments/llama_8b.py --workdir=runs/llama_8b

For 256 chips: bfloat16, fully sharded over 32 devices and replicated over 8 groups of them, rows of 8,192 tokens, 4M tokens a
step. Text and tokenizer as in gpt2_124m.py. Not run here (no accelerator); the tests check its shardings on 256 devices.
`:smoke` is a tiny version for tests.
"""

import dataclasses

from gpt2_124m import smoke
from llama_1b import get_config as llama_1b

from lm_jax.config import Experiment
from lm_jax.core.sharding import MeshShape
from lm_jax.models.decoder import HeadConfig
from lm_jax.train.step import StepConfig

NUM_DEVICES = 256


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    experiment = llama_1b()
    model = experiment.model
    model.width, model.stack.repeats, model.head = 4096, 32, HeadConfig(tied=False)
    for block in model.stack.pattern:
        block.mixer.head_dim, block.feed_forward.hidden = 128, 14_336
    experiment.data.length, experiment.data.batch_size = 8192, 512
    experiment.objective.chunks = 32
    experiment = dataclasses.replace(experiment, step=StepConfig(accumulate=2), mesh=MeshShape(dp=-1, fsdp=32))
    experiment.evals[0].batch_size = 256
    return smoke(experiment) if arg == "smoke" else experiment
