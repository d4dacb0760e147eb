"""A Llama 3.1 405B-shaped model (Grattafiori et al. 2024, arXiv:2407.21783): 126 layers of width 16,384, 128 query and 8
key-value heads.

    lm-jax train --config=experiments/llama_405b.py:4096 --workdir=runs/llama_405b

For `:256` or `:4096` chips: bfloat16, rows of 8,192 tokens, 4M (17M) tokens a step; on 256 chips a step needs 41 GiB of each, by
the TPU's compiler. On 4,096 a pipeline of 2 stages, each with 9 pieces of 7 layers, passes 8 micro-batches, and gathers its layers
for each of them: all at once they would not fit. `:8` has 756 GiB of state a device: for checks of shardings only. Text and
tokenizer as in gpt2_124m.py. Not run here (no accelerator); the tests check the shardings of each. `:smoke` is a tiny version for
tests.
"""

from gpt2_124m import smoke
from layouts import Chips, on_chips
from llama_8b import get_config as llama_8b

from lm_jax.config import Experiment
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout

LAYOUTS = {
    8: Chips(MeshShape(dp=-1, tp=8), rows=512, accumulate=512),
    256: Chips(MeshShape(dp=-1, fsdp=32, tp=8), rows=512, accumulate=16),
    4096: Chips(MeshShape(dp=-1, pp=2, fsdp=32, tp=8), rows=2048, layout=Layout(gather_once=False)),
}


def get_config(arg: str = "4096") -> Experiment:
    """The run on `arg` chips; "smoke" shrinks it to seconds."""
    experiment = llama_8b()
    model = experiment.model
    model.width, model.stack.repeats, model.stack.rounds = 16_384, 126, 9
    for block in model.stack.pattern:
        block.mixer.num_heads, block.feed_forward.hidden = 128, 53_248
    experiment.optimizer.learning_rate = 8e-5
    return smoke(experiment) if arg == "smoke" else on_chips(experiment, arg, LAYOUTS)
