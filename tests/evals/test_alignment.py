"""What a decoder attends to: against softmax in NumPy, whatever the attention, and on a mesh."""

import jax
import numpy as np
import pytest

from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.alignment import alignment, table
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig

CROSS = {"luong": AttentionConfig(num_heads=1), "bahdanau": AdditiveAttentionConfig(), "heads": AttentionConfig(num_heads=2)}


def model(cross, *, mixer=None, repeats: int = 1) -> EncoderDecoderConfig:
    """Without norms, embedding, mixer and encoder alone make what the attention reads."""
    mixer = RecurrentConfig() if mixer is None else mixer
    encoder = BlockConfig(mixer=RecurrentConfig(), feed_forward=None, placement="none")
    decoder = BlockConfig(mixer=mixer, cross=cross, feed_forward=MLPConfig(hidden=16), placement="none")
    encoder, decoder = (StackConfig(pattern=(b,), repeats=n, final_norm=None) for b, n in ((encoder, repeats), (decoder, repeats)))
    init = Init(weights="fan_in", outputs="same", embedding_std=1.0)
    return EncoderDecoderConfig(vocab_size=12, width=16, encoder=encoder, stack=decoder, init=init)


def example():
    rng = np.random.default_rng(0)
    arrays = {"tokens": rng.integers(1, 12, 5), "targets": rng.integers(1, 12, 5), "memory_tokens": rng.integers(1, 12, 7)}
    return {name: value.astype(np.int32) for name, value in arrays.items()}


@pytest.mark.parametrize("kind", CROSS)
def test_weights_are_softmax_of_the_scores(kind):
    built, data = model(CROSS[kind]).build(jax.random.key(0)), example()
    found = alignment(*split(built), data)
    block = jax.tree.map(lambda x: x[0], built.stack.block0)
    batch = {name: value[None] for name, value in data.items()}
    memory = np.asarray(built.encode(batch)[0].x_BSD[0], np.float64)
    x_BTD = built.embedding.table[...][batch["tokens"]]
    # The mixer's output is added to what it reads.
    x = np.asarray((x_BTD + block.mixer(x_BTD, _place(5), None, None)[0])[0], np.float64)
    w = {
        name: np.asarray(getattr(block.cross, name)[...], np.float64)
        for name in ("query", "key", "score")
        if hasattr(block.cross, name)
    }
    if kind == "bahdanau":
        scores = np.tanh((x @ w["query"])[:, None, :] + (memory @ w["key"])[None, :, :])[None] @ w["score"]
    else:
        q, k = np.einsum("TD,DNH->NTH", x, w["query"]), np.einsum("SD,DNH->NSH", memory, w["key"])
        scores = np.einsum("NTH,NSH->NTS", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert found.shape == (5, 7) and found.std() > 0.01
    np.testing.assert_allclose(found, weights.mean(0), atol=1e-5)


def _place(length):
    from lm_jax.nn.place import Place

    return Place(np.arange(length, dtype=np.int32)[None, :], None)


def test_the_mean_over_layers_is_the_same_on_a_mesh():
    """Layers, heads and parameters split over devices: the rows of a distribution, as on one device."""
    config, data, found = model(CROSS["heads"], mixer=AttentionConfig(num_heads=2), repeats=2), example(), []
    for mesh in (MeshShape(dp=1), MeshShape(dp=1, pp=2, fsdp=2, tp=2)):
        with use_mesh(mesh.build(), Layout()):
            graph, params = split(jax.jit(lambda key: config.build(key))(jax.random.key(0)))
            found.append(alignment(graph, params, data))
    np.testing.assert_allclose(found[0].sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_a_table_names_the_tokens():
    tokenizer = Characters().train(["abc"])
    ids = {"targets": np.append(tokenizer.encode("ba"), tokenizer.eos), "memory_tokens": tokenizer.encode("ab")}
    weights = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
    shown = table(weights, ids, tokenizer)
    assert shown["rows"] == ["b", "a", "(end)"] and shown["columns"] == ["a", "b"]
    np.testing.assert_allclose(shown["values"], weights, atol=1e-4)
