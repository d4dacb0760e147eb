"""A Mixtral 8x7B-shaped model (Jiang et al. 2024, arXiv:2401.04088): 32 layers of width 4,096, 8 experts of which a token uses 2;
46.7B parameters, 12.9B active.

    lm-jax train --config=experiments/mixtral_8x7b.py:256 --workdir=runs/mixtral

For `:8`, `:256` or `:4096` chips: bfloat16, rows of 8,192 tokens, 4M tokens a step (on 4,096 chips 17M), each expert on a device of
its own; tokens travel to them with room for twice the even share. A step needs 126 GiB of each of 8 chips (by the TPU's
compiler: too much for those of 95 GB), 37 GiB of 256. Text as in gpt2_124m.py, with a tokenizer of 32,000. Not run here (no
accelerator); the tests check the shardings of each. `:smoke` is a tiny version for tests.
"""

from gpt2_124m import smoke
from layouts import Chips, on_chips
from llama_8b import get_config as llama_8b

from lm_jax.config import Experiment
from lm_jax.core.mesh import MeshShape
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.router import RouterConfig

LAYOUTS = {
    8: Chips(MeshShape(dp=-1, ep=8), rows=512, accumulate=64),
    256: Chips(MeshShape(dp=-1, fsdp=4, ep=8), rows=512, accumulate=2),
    4096: Chips(MeshShape(dp=-1, fsdp=8, ep=8, tp=2), rows=2048),
}


def get_config(arg: str = "256") -> Experiment:
    """The run on `arg` chips; "smoke" shrinks it to seconds."""
    experiment = llama_8b()
    model = experiment.model
    model.vocab_size = 32_000
    for block in model.stack.pattern:
        block.mixer.rotary.base = 1e6
        block.feed_forward = MoEConfig(
            num_experts=8,
            expert=MLPConfig(hidden=14_336, activation="silu", gated=True),
            router=RouterConfig(top_k=2, load_balance=0.02, z_loss=0.0),
            room=2.0,
        )
    return smoke(experiment) if arg == "smoke" else on_chips(experiment, arg, LAYOUTS)
