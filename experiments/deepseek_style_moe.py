"""A mixture of many small experts in the style of DeepSeekMoE 16B (Dai et al. 2024, arXiv:2401.06066), routed as DeepSeek-V3
(arXiv:2412.19437): 28 layers of width 2,048, 64 experts of which a token uses 6 and two shared ones (here one of twice the width);
sigmoid scores, load balanced by biases and by a small loss over each row; 16.9B parameters, 2.9B active.

    lm-jax train --config=experiments/deepseek_style_moe.py:256 --workdir=runs/deepseek

For `:8`, `:256` or `:4096` chips: bfloat16, rows of 4,096 tokens, 4M tokens a step (on 4,096 chips 34M). Tokens travel to their
experts with room for twice the even share. On 4,096 chips a pipeline of 4 stages, each with 7 pieces of one layer, passes 8
micro-batches. The published models have a dense first layer, and DeepSeek-V3 latent attention; not here. Text as in
gpt2_124m.py, with a tokenizer of 102,400. Not run here (no accelerator); the tests check the shardings of each. `:smoke` is a tiny
version for tests.
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
    8: Chips(MeshShape(dp=-1, ep=8), rows=1024, accumulate=64),
    256: Chips(MeshShape(dp=-1, fsdp=8, ep=8), rows=1024, accumulate=2),
    4096: Chips(MeshShape(dp=-1, pp=4, fsdp=16, ep=16), rows=8192),
}


def get_config(arg: str = "256") -> Experiment:
    """The run on `arg` chips; "smoke" shrinks it to seconds."""
    experiment = llama_8b()
    model = experiment.model
    model.vocab_size, model.width, model.stack.repeats, model.stack.rounds = 102_400, 2048, 28, 7
    for block in model.stack.pattern:
        block.mixer.num_heads, block.mixer.num_kv_heads = 16, None
        block.mixer.rotary.base = 10_000.0
        block.feed_forward = MoEConfig(
            num_experts=64,
            expert=MLPConfig(hidden=1408, activation="silu", gated=True),
            shared=MLPConfig(hidden=2816, activation="silu", gated=True),
            router=RouterConfig(top_k=6, scores="sigmoid", load_balance=1e-4, balance_over="row", z_loss=0.0, balance_bias=True),
            room=2.0,
        )
    experiment.data.length, experiment.objective.chunks = 4096, 16
    return smoke(experiment) if arg == "smoke" else on_chips(experiment, arg, LAYOUTS)
