"""A small encoder of sentences, and a batch of pairs."""

import dataclasses

import numpy as np

from lm_jax.models.sentence_encoder import SentenceEncoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from tests.models_for_tests import LOUD, VOCAB


def sentence_encoder(**model) -> SentenceEncoderConfig:
    """Rotary attention to all tokens."""
    mixer = AttentionConfig(num_heads=4, causal=False, rotary=RotaryConfig())
    stack = StackConfig(pattern=(BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=48)),), repeats=2)
    config = SentenceEncoderConfig(vocab_size=VOCAB, width=32, stack=stack, init=dataclasses.replace(LOUD))
    return dataclasses.replace(config, **model)


def batch_of_pairs(rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    """Texts of at least 2 tokens, padded at the right."""
    rng = np.random.default_rng(1)
    real = np.arange(length)[None, :, None] < rng.integers(2, length + 1, (rows, 1, 2))
    tokens = np.where(real, rng.integers(1, VOCAB, (rows, length, 2)), 0)
    return {"pair_tokens": tokens.astype(np.int32), "pair_segments": real.astype(np.int32)}
