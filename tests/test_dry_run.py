"""`lm-jax plan` against the arrays that a run makes."""

import functools
import re

import jax
import pytest

from lm_jax.config import load_experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.sharding import use_mesh
from lm_jax.dry_run import plan
from lm_jax.parts import build, initial_state, keys


@pytest.mark.parametrize("sizes", [dict(dp=8), dict(dp=2, fsdp=4), dict(dp=1, pp=2, fsdp=2, tp=2)], ids=str)
def test_the_state_is_that_of_the_real_arrays(sizes):
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
    experiment = load_experiment(["--config=experiments/shakespeare.py", "--config.data.batch_size=16", *mesh, "--config.evals=()"])
    devices = experiment.mesh.build()
    with use_mesh(devices, experiment.layout):
        parts = build(experiment)
        state = jax.jit(functools.partial(initial_state, experiment, parts))(keys(experiment)[0])
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    text = "\n".join(plan(experiment, 8))
    assert f"a device holds {held / 2**30:,.2f} GiB" in text
    assert f"{parts.num_params:,} parameters" in text
    assert ("pipeline: 2 stages" in text) == ("pp" in sizes)


def test_a_large_run_on_chips():
    experiment = load_experiment(["--config=experiments/llama_405b.py:256"])
    text = "\n".join(plan(experiment, 256, "H200"))
    seconds = float(re.search(r"at least ([\d.e+]+) s on 256 x H200", text)[1])
    assert seconds == pytest.approx(6 * 405.9e9 * 512 * 8192 / 256 / 989e12, rel=0.1)
    assert "does not fit" not in text
    assert "does not fit: a TPU v5e has 14.90 GiB" in "\n".join(plan(experiment, 256, "TPU v5e"))


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    experiment = load_experiment(["--config=experiments/shakespeare.py"])
    with pytest.raises(ConfigError, match=r"'H900' is not known; these are: NVIDIA A100, .*TPU v6e"):
        plan(experiment, 1, "H900")


def test_both_texts_of_a_pair_are_counted():
    experiment = load_experiment(["--config=experiments/sentences.py:smoke"])
    flops = 2 * 8 * 64 * experiment.model.flops_per_token(64, causal=True)
    assert plan(experiment, 1)[-1] == f"{2 * 8 * 64:,} tokens and {flops:.3g} FLOPs a step"
