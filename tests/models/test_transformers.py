"""Logits of random GPT-2 and Llama models equal those of Hugging Face `transformers` (tests/fixtures/make_transformers.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.param import split
from lm_jax.models.decoder import DecoderConfig, HeadConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.stack import StackConfig
from tests.models_for_tests import logits

FILE = Path(__file__).parents[1] / "fixtures" / "transformers.npz"


@pytest.fixture(scope="module")
def arrays():
    with np.load(FILE) as data:
        return dict(data)


def stack_layers(arrays, name, shape, transpose=False):
    """The weight `name` (with {} for the layer) of both layers as [2, *shape]."""
    layers = [arrays[name.format(i)] for i in range(2)]
    return np.stack([(x.T if transpose else x).reshape(shape) for x in layers])


def gpt2_params(arrays):
    def get(name, *shape):
        return stack_layers(arrays, f"gpt2/transformer.h.{{}}.{name}", shape)

    def norm(name):
        return {"scale": get(f"{name}.weight", 24), "bias": get(f"{name}.bias", 24)}

    qkv, qkv_bias = get("attn.c_attn.weight", 24, 3, 3, 8), get("attn.c_attn.bias", 3, 3, 8)
    mixer = {name: qkv[:, :, i] for i, name in enumerate(("query", "key", "value"))}
    mixer |= {f"{name}_bias": qkv_bias[:, i] for i, name in enumerate(("query", "key", "value"))}
    mixer |= {"output": get("attn.c_proj.weight", 3, 8, 24), "output_bias": get("attn.c_proj.bias", 24)}
    mlp = {"up": get("mlp.c_fc.weight", 24, 96), "up_bias": get("mlp.c_fc.bias", 96)}
    mlp |= {"down": get("mlp.c_proj.weight", 96, 24), "down_bias": get("mlp.c_proj.bias", 24)}
    final = {"scale": arrays["gpt2/transformer.ln_f.weight"], "bias": arrays["gpt2/transformer.ln_f.bias"]}
    block = {"mixer": mixer, "feed_forward": mlp, "mixer_norm": norm("ln_1"), "feed_forward_norm": norm("ln_2")}
    table, positions = arrays["gpt2/transformer.wte.weight"], arrays["gpt2/transformer.wpe.weight"]
    return {
        "embedding": {"table": table, "positions": {"table": positions}},
        "stack": {"block0": block, "final_norm": final},
    }


def llama_params(arrays):
    def get(name, *shape):
        return stack_layers(arrays, f"llama/model.layers.{{}}.{name}.weight", shape, transpose=True)

    mixer = {"query": get("self_attn.q_proj", 24, 6, 4), "key": get("self_attn.k_proj", 24, 2, 4)}
    mixer |= {"value": get("self_attn.v_proj", 24, 2, 4), "output": get("self_attn.o_proj", 6, 4, 24)}
    mlp = {"up": get("mlp.up_proj", 24, 40), "gate": get("mlp.gate_proj", 24, 40), "down": get("mlp.down_proj", 40, 24)}
    block = {"mixer": mixer, "feed_forward": mlp, "mixer_norm": {"scale": get("input_layernorm", 24)}}
    block["feed_forward_norm"] = {"scale": get("post_attention_layernorm", 24)}
    return {
        "embedding": {"table": arrays["llama/model.embed_tokens.weight"]},
        "stack": {"block0": block, "final_norm": {"scale": arrays["llama/model.norm.weight"]}},
        "head": arrays["llama/lm_head.weight"].T,
    }


LAYER_NORM = NormConfig(kind="layer", bias=True, epsilon=1e-5)
RMS_NORM = NormConfig(epsilon=1e-5)
GPT2 = DecoderConfig(
    vocab_size=40,
    width=24,
    embedding=EmbeddingConfig(positions=PositionTableConfig(length=16)),
    stack=StackConfig(
        repeats=2,
        final_norm=LAYER_NORM,
        pattern=(
            BlockConfig(
                norm=LAYER_NORM,
                mixer=AttentionConfig(num_heads=3, bias=True, output_bias=True),
                feed_forward=MLPConfig(hidden=96, bias=True),
            ),
        ),
    ),
)
LLAMA = DecoderConfig(
    vocab_size=40,
    width=24,
    head=HeadConfig(tied=False),
    stack=StackConfig(
        repeats=2,
        final_norm=RMS_NORM,
        pattern=(
            BlockConfig(
                norm=RMS_NORM,
                mixer=AttentionConfig(num_heads=6, num_kv_heads=2, rotary=RotaryConfig()),
                feed_forward=MLPConfig(hidden=40, gated=True, activation="silu"),
            ),
        ),
    ),
)


@pytest.mark.parametrize(
    ("name", "config", "params"), [("gpt2", GPT2, gpt2_params), ("llama", LLAMA, llama_params)], ids=["gpt2", "llama"]
)
def test_logits_equal_transformers(arrays, name, config, params):
    graph, shapes = split(jax.eval_shape(config.build, jax.random.key(0)))
    loaded = params(arrays)
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, loaded)
    got = logits(nnx.merge(graph, jax.tree.map(jnp.asarray, loaded)), arrays["tokens"])
    np.testing.assert_allclose(got, arrays[f"{name}/logits"], atol=2e-5)
