"""Small models that the tests share."""

import dataclasses

import jax
import numpy as np

from lm_jax.models.decoder import DecoderConfig
from lm_jax.models.multi_token import MultiTokenConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.gated_delta import GatedDeltaConfig
from lm_jax.nn.head import HeadConfig, TransformConfig
from lm_jax.nn.init import Init
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.rglru import RGLRUConfig
from lm_jax.nn.rope_scaling import YarnRope
from lm_jax.nn.router import RouterConfig
from lm_jax.nn.stack import StackConfig

VOCAB = 40
LOUD = Init(weights="fan_in", outputs="same", embedding_std=1.0)  # every part matters in the output; copied, as configs can change


def llama(**model) -> DecoderConfig:
    """Rotary, RMSNorm, grouped queries, QK-norm, SwiGLU, tied."""
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=4, num_kv_heads=2, rotary=RotaryConfig(), qk_norm=NormConfig()),
        feed_forward=MLPConfig(hidden=48, activation="silu", gated=True),
    )
    config = DecoderConfig(
        vocab_size=VOCAB, width=32, init=dataclasses.replace(LOUD), stack=StackConfig(pattern=(block,), repeats=3)
    )
    return dataclasses.replace(config, **model)


def gpt2(length: int = 16, **model) -> DecoderConfig:
    """Learned positions, LayerNorm, biases, GELU."""
    norm = NormConfig(kind="layer", bias=True, epsilon=1e-5)
    block = BlockConfig(
        norm=norm,
        mixer=AttentionConfig(num_heads=4, bias=True, output_bias=True),
        feed_forward=MLPConfig(hidden=64, bias=True),
    )
    config = DecoderConfig(
        vocab_size=VOCAB,
        width=32,
        init=dataclasses.replace(LOUD),
        embedding=EmbeddingConfig(positions=PositionTableConfig(length=length)),
        stack=StackConfig(pattern=(block,), repeats=2, final_norm=norm),
    )
    return dataclasses.replace(config, **model)


def odd() -> DecoderConfig:
    """What the other two lack: a window beside full attention, soft-caps, sandwich and post norms, parallel layers, own head."""
    rotary = RotaryConfig(fraction=0.5, interleaved=True, scaling=YarnRope(length=8))
    heads_norm = {"qk_norm": NormConfig(zero_centered=True), "qk_norm_whole": True, "clip": 2.0}
    window = BlockConfig(
        placement="sandwich",
        parallel=True,
        residual_scale=0.7,
        mixer=AttentionConfig(num_heads=2, head_dim=12, window=5, soft_cap=20.0, rotary=rotary, **heads_norm),
        feed_forward=MLPConfig(hidden=40, activation="gelu", gated=True),
    )
    post = BlockConfig(
        placement="post",
        norm=NormConfig(kind="layer", bias=True),
        mixer=AttentionConfig(num_heads=4, num_kv_heads=1),
        feed_forward=MLPConfig(hidden=40, activation="relu_squared"),
    )
    return DecoderConfig(
        vocab_size=VOCAB,
        width=32,
        init=dataclasses.replace(LOUD),
        embedding=EmbeddingConfig(positions=PositionTableConfig(kind="sinusoidal", length=64), scale=2.0, norm=NormConfig()),
        stack=StackConfig(pattern=(window, post), repeats=2, remat="full"),
        head=HeadConfig(tied=False, bias=True, soft_cap=15.0),
    )


def moe(**layer) -> DecoderConfig:
    """A dense layer, then a mixture of 4 experts, sigmoid-routed with a balance bias, and a shared expert; twice."""
    config = llama()
    dense = config.stack.pattern[0]
    expert = MLPConfig(hidden=24, activation="silu", gated=True)
    router = RouterConfig(scores="sigmoid", scale=1.5, balance_bias=True)
    layer = {"num_experts": 4, "expert": expert, "router": router, "shared": MLPConfig(hidden=16)} | layer
    config.stack = StackConfig(pattern=(dense, dataclasses.replace(dense, feed_forward=MoEConfig(**layer))), repeats=2)
    return config


def latent() -> DecoderConfig:
    """After DeepSeek-V3: latent attention, a dense layer before grouped experts with biases, tables padded, a further token."""
    mixer = LatentAttentionConfig(num_heads=4, query_rank=12, rank=16, head_dim=6, turned_dim=4, value_dim=8, bias=True)
    dense = BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=24, activation="silu", gated=True, limit=1.0, shift=0.5))
    expert = MLPConfig(hidden=16, activation="gelu_quick", gated=True, bias=True, limit=2.0, shift=1.0)
    router = RouterConfig(scores="sigmoid", bias=True, groups=2, top_groups=1, top_k=2, balance_over="row")
    mixture = MoEConfig(num_experts=4, expert=expert, router=router, shared=MLPConfig(hidden=16), shared_gate=True)
    block = dataclasses.replace(dense, feed_forward=mixture)
    return DecoderConfig(
        vocab_size=VOCAB,
        vocab_multiple=16,
        width=32,
        init=dataclasses.replace(LOUD),
        stack=StackConfig(prelude=(dense,), pattern=(block,), repeats=2),
        head=HeadConfig(scale=0.7, transform=TransformConfig()),
        multi_token=MultiTokenConfig(block=dense),
    )


def far() -> DecoderConfig:
    """Positions of other kinds: ALiBi in chunks beside T5's bias in all layers, and no bias of keys."""
    chunked = BlockConfig(
        mixer=AttentionConfig(num_heads=4, chunk=6, alibi=True, bias=True, key_bias=False),
        feed_forward=MLPConfig(hidden=40, activation="gelu"),
        mixer_norm=False,
    )
    block = BlockConfig(mixer=AttentionConfig(num_heads=4, num_kv_heads=2), feed_forward=MLPConfig(hidden=40))
    return DecoderConfig(
        vocab_size=VOCAB,
        width=32,
        init=dataclasses.replace(LOUD),
        embedding=EmbeddingConfig(token_types=2, norm=NormConfig(kind="layer")),
        stack=StackConfig(pattern=(chunked, block), repeats=2, relative_bias=RelativeBiasConfig(buckets=8, distance=12)),
    )


def recurrent() -> DecoderConfig:
    """Every recurrent mixer: an LSTM without feed-forward layer or residual, RG-LRU, the gated delta rule, and a GRU."""
    first = BlockConfig(mixer=RecurrentConfig(size=20), feed_forward=None, residual=False, placement="none")
    lstm = BlockConfig(mixer=RecurrentConfig(output=False), feed_forward=None)
    griffin = BlockConfig(mixer=RGLRUConfig(size=40, num_heads=4), feed_forward=MLPConfig(hidden=40))
    delta = GatedDeltaConfig(num_heads=4, num_key_heads=2, key_dim=6, value_dim=10, chunk=5)
    delta_block = BlockConfig(mixer=delta, feed_forward=MLPConfig(hidden=40))
    gru = BlockConfig(mixer=RecurrentConfig(cell="gru", output=False), feed_forward=MLPConfig(hidden=40), placement="branch")
    return DecoderConfig(
        vocab_size=VOCAB,
        width=32,
        init=dataclasses.replace(LOUD, outputs="depth_scaled"),  # 9 layers would amplify rounding
        stack=StackConfig(prelude=(first,), pattern=(lstm, griffin, delta_block, gru), repeats=2),
    )


MODELS = {"recurrent": recurrent(), "llama": llama(), "gpt2": gpt2(), "odd": odd(), "moe": moe(), "latent": latent(), "far": far()}


def batch(rows: int = 8, length: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens and targets, all weights 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((rows, length), np.float32)}


def logits(model, tokens: np.ndarray, **more: np.ndarray) -> np.ndarray:
    """The model's logits [B, T, V]."""
    return np.asarray(jax.jit(lambda batch: model.logits(model(batch).hidden))({"tokens": tokens, **more}))
