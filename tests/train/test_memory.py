"""What a step keeps in memory, by the compiler's own account, without running it."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, spec, use_mesh
from lm_jax.objectives.lm import LMConfig
from lm_jax.train.step import gradients
from tests.models_for_tests import llama

DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}


def temporaries(*, remat="none", chunks=1, length=512, rows=4, vocab=40, repeats=8, **sizes) -> int:
    """Bytes of temporary memory of one device in a forward and backward pass."""
    config = llama(width=128, vocab_size=vocab)
    config.stack.repeats, config.stack.remat = repeats, remat
    config.stack.pattern[0].feed_forward.hidden = 512
    mesh = MeshShape(**(dict(dp=1) | sizes)).build()
    with use_mesh(mesh, Layout()):
        graph, params = split(jax.eval_shape(config.build, jax.random.key(0)))
        place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))  # noqa: E731
        params = jax.tree.map(lambda x: place(x, x.sharding.spec), params)
        batch = {
            name: place(jax.ShapeDtypeStruct((rows, length), dtype), spec("batch", "sequence")) for name, dtype in DTYPES.items()
        }
        step = functools.partial(gradients, graph=graph, objective=LMConfig(chunks=chunks).build())
        compiled = jax.jit(step).lower(params, batch, jax.random.key(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_each_policy_keeps_less():
    kept = {name: temporaries(remat=name) for name in ("none", "matmuls", "attention", "full")}
    assert kept["matmuls"] < 0.5 * kept["none"]
    assert kept["attention"] < 0.7 * kept["matmuls"] and kept["full"] < 0.7 * kept["matmuls"]


def test_memory_falls_with_the_devices_of_the_sequence():
    one, four = (temporaries(length=1024, rows=1, cp=cp) for cp in (1, 4))
    assert four < 0.35 * one


def test_activations_fall_with_tensor_parallelism():
    one, four = temporaries(rows=8), temporaries(rows=8, tp=2, fsdp=2)
    assert four < 0.35 * one


def test_chunks_of_the_loss_bound_its_memory():
    whole, chunked = (temporaries(vocab=20_000, repeats=1, chunks=chunks) for chunks in (1, 16))
    logits = 4 * 512 * 20_000 * 4
    assert whole > 2 * logits and chunked < whole - 1.5 * logits
