"""The quickstart (shakespeare.py) with mixtures of experts: 8 in every layer, of which a character uses 2, each half as wide as the
quickstart's feed-forward layer; as much work for a character, 3.2 times the parameters.

    lm-jax train --config=experiments/shakespeare_moe.py --workdir=runs/shakespeare_moe

`:smoke` is a tiny version for tests.
"""

from shakespeare import get_config as shakespeare

from lm_jax.config import Experiment
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.router import RouterConfig


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    experiment = shakespeare(arg)
    for block in experiment.model.stack.pattern:
        hidden = block.feed_forward.hidden // 2
        block.feed_forward = MoEConfig(
            num_experts=8,
            expert=MLPConfig(hidden=hidden, activation="silu", gated=True),
            router=RouterConfig(top_k=2, load_balance=0.01, balance_over="row", z_loss=0.001),
        )
    return experiment
