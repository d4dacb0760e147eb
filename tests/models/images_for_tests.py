"""Small models of images and texts, and a batch for them, that the tests share."""

import dataclasses
import math

import numpy as np

from lm_jax.models.coca import CoCaConfig
from lm_jax.models.image_encoder import ImageEncoderConfig
from lm_jax.models.two_tower import TwoTowerConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.stack import StackConfig
from tests.models_for_tests import LOUD, VOCAB

PATCHES = PatchesConfig(height=8, image_width=12, patch=4, class_token=False)


def layers(causal, cross=False, repeats=2):
    mixer = AttentionConfig(num_heads=4, rotary=RotaryConfig(), causal=causal)
    reads = AttentionConfig(num_heads=4, causal=False) if cross else None
    return StackConfig(pattern=(BlockConfig(mixer=mixer, cross=reads, feed_forward=MLPConfig(hidden=48)),), repeats=repeats)


def two_tower(**more):
    image = ImageEncoderConfig(width=32, patches=PATCHES, stack=layers(causal=False), pool="mean", init=dataclasses.replace(LOUD))
    fields = {"image": image, "vocab_size": VOCAB, "width": 32, "text": layers(causal=False), "pool_token": 0, "projection": 16}
    return TwoTowerConfig(**(fields | {"init": dataclasses.replace(LOUD), "log_scale": math.log(3)} | more))


def coca(**more):
    fields = {
        "vocab_size": VOCAB,
        "width": 32,
        "source": PATCHES,
        "encoder": layers(causal=False),
        "text": layers(causal=True),
        "stack": layers(causal=True, cross=True),
        "embedding": EmbeddingConfig(positions=PositionTableConfig(length=16)),
        "pool": AttentionConfig(num_heads=4, causal=False),
        "projection": 16,
        "log_scale": math.log(3),
        "init": dataclasses.replace(LOUD),
    }
    return CoCaConfig(**(fields | more))


def batch_for(config, rows=8, length=16, seed=0):
    """Images and texts of unequal length: with token 0 at their end for two towers, between tokens 0 for others."""
    rng = np.random.default_rng(seed)
    sizes, at = rng.integers(4, length + 1, (rows, 1)), np.arange(length)[None, :]
    segments = (at < sizes).astype(np.int32)
    tokens = np.where((at > 0) & (at < sizes - 1), rng.integers(1, VOCAB, (rows, length)), 0).astype(np.int32)
    images = rng.normal(size=(rows, 8, 12, 3)).astype(np.float32)
    if "memory_tokens" in config.inputs:
        return {"images": images, "memory_tokens": np.where(at == 0, 1, tokens), "memory_segments": segments}
    return {
        "images": images,
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": (at < sizes - 1).astype(np.float32),
        "segments": segments,
        "positions": np.broadcast_to(at, (rows, length)).astype(np.int32),
    }
