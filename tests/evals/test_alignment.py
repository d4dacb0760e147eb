"""What a decoder attends to: against softmax in NumPy, whatever the attention, and on a mesh."""

import jax
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.alignment import alignment, can_align, tables
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.place import Place
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


def texts(rows=1):
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(1, 12, (rows, length)).astype(np.int32)  # noqa: E731
    return {"tokens": draw(5), "memory_tokens": draw(7), "memory_segments": np.ones((rows, 7), np.int32)}


@pytest.mark.parametrize("kind", CROSS)
def test_weights_are_softmax_of_the_scores(kind):
    built, batch = model(CROSS[kind]).build(jax.random.key(0)), texts()
    (found,) = alignment(*split(built), batch)
    block = jax.tree.map(lambda x: x[0], built.stack.block0)
    memory = np.asarray(built.encode(batch)[0].x_BSD[0], np.float64)
    x_BTD = built.embedding.table[...][batch["tokens"]]
    # The mixer's output is added to what it reads.
    x = np.asarray((x_BTD + block.mixer(x_BTD, Place(np.arange(5, dtype=np.int32)[None, :], None), None, None)[0])[0], np.float64)
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


def test_the_mean_over_layers_is_the_same_on_a_mesh():
    """Heads, tokens and parameters split over devices: the rows of a distribution, as on one device."""
    config, data, found = model(CROSS["heads"], mixer=AttentionConfig(num_heads=2), repeats=2), texts(rows=3), []
    for mesh in (MeshShape(dp=1), MeshShape(dp=1, fsdp=2, cp=2, tp=2)):
        with use_mesh(mesh.build(), Layout()):
            graph, params = split(jax.jit(lambda key: config.build(key))(jax.random.key(0)))
            assert can_align(graph, params)
            found.append(alignment(graph, params, data))
    np.testing.assert_allclose(found[0].sum(2), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_a_pipeline_is_refused():
    config = model(CROSS["heads"], mixer=AttentionConfig(num_heads=2), repeats=2)
    with use_mesh(MeshShape(dp=1, pp=2).build(), Layout()):
        graph, params = split(jax.jit(lambda key: config.build(key))(jax.random.key(0)))
        assert not can_align(graph, params)
        with pytest.raises(ConfigError, match="cannot be watched where layers are split over a pipeline"):
            alignment(graph, params, texts(rows=2))


def test_tables_are_of_what_was_written():
    """A row for each token and the end, if it was written; the same whatever texts stand beside it."""
    tokenizer = Characters().train(["abcdefghijk"])
    graph, params = split(model(CROSS["luong"]).build(jax.random.key(0)))
    pad = lambda rows: np.stack([np.pad(row, (0, 4 - len(row))) for row in rows])  # noqa: E731
    sources = [tokenizer.encode(text) for text in ("abc", "dk")]
    batch = {"memory_tokens": pad(sources), "memory_segments": pad([np.ones_like(ids) for ids in sources])}
    written = [tokenizer.encode(text).tolist() for text in ("fg", "hcb")]
    first, second = tables(graph, params, batch, written, tokenizer, max_tokens=3)
    assert first["rows"] == ["f", "g", "(end)"] and first["columns"] == ["a", "b", "c"]
    assert second["rows"] == ["h", "c", "b"] and second["columns"] == ["d", "k"]  # cut off before an end
    alone = {"tokens": np.array([[tokenizer.eos, *written[1][:2]]], np.int32)}
    alone |= {"memory_tokens": sources[1][None], "memory_segments": np.ones((1, 2), np.int32)}
    np.testing.assert_allclose(second["values"], alignment(graph, params, alone)[0], atol=1e-4)
