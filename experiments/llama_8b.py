"""A Llama 3 8B-shaped model (Grattafiori et al. 2024, arXiv:2407.21783): 32 layers of width 4,096, 32 query and 8 key-value heads.

    lm-jax train --config=experiments/llama_8b.py:256 --workdir=runs/llama_8b

For `:8`, `:256` or `:4096` chips: bfloat16, rows of 8,192 tokens, 4M tokens a step (on 4,096 chips 17M), fully sharded over 8 or
32 devices, replicated over groups of them. Text and tokenizer as in gpt2_124m.py. Not run here (no accelerator); the tests check
the shardings of each. `:smoke` is a tiny version for tests.
"""

from gpt2_124m import smoke
from layouts import Chips, on_chips
from llama_1b import get_config as llama_1b

from lm_jax.config import Experiment
from lm_jax.core.mesh import MeshShape
from lm_jax.nn.head import HeadConfig

LAYOUTS = {
    8: Chips(MeshShape(dp=-1, fsdp=8), rows=512, accumulate=64),
    256: Chips(MeshShape(dp=-1, fsdp=32), rows=512, accumulate=2),
    4096: Chips(MeshShape(dp=-1, fsdp=32, tp=2), rows=2048),
}


def get_config(arg: str = "256") -> Experiment:
    """The run on `arg` chips; "smoke" shrinks it to seconds."""
    experiment = llama_1b()
    model = experiment.model
    model.width, model.stack.repeats, model.head = 4096, 32, HeadConfig(tied=False)
    for block in model.stack.pattern:
        block.mixer.head_dim, block.feed_forward.hidden = 128, 14_336
    experiment.data.length, experiment.objective.chunks = 8192, 32
    return smoke(experiment) if arg == "smoke" else on_chips(experiment, arg, LAYOUTS)
