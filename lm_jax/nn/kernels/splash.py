"""Splash attention: JAX's Pallas kernel for TPUs, which skips the blocks of scores that a mask leaves empty."""

import functools
import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lm_jax.core.local import unchecked
from lm_jax.core.types import Array
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens

BLOCK = 128  # lengths must be multiples of it
LARGEST_BLOCK = 512


def splash(
    spec: AttentionSpec, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, queries: Tokens, keys: Tokens, sinks_N: Array | None
) -> Array:
    """[B, T, N, H] in the dtype of `q_BTNH`, of rows that are whole on this device; float32 softmax. See `AttentionSpec`.

    T and S are multiples of 128. Not on a TPU the kernel is interpreted, which is slow.
    """

    def run(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, sinks_N: Array | None, segments: kernel.SegmentIds | None) -> Array:
        (_, T, N, _), S = q_BTNH.shape, k_BSKH.shape[1]
        attention = kernel.make_splash_mha(
            masks.MultiHeadMask([_mask(spec, T, S)] * N),
            block_sizes=_blocks(T, S),
            attn_logits_soft_cap=spec.soft_cap,
            head_shards=1,
            q_seq_shards=1,
            interpret=jax.default_backend() != "tpu",
        )
        heads_first = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
        segmented = None if segments is None else 0
        return jax.vmap(attention, (0, 0, 0, segmented, None))(*heads_first, segments, sinks_N).swapaxes(1, 2)

    segments = None
    if queries.segments is not None and keys.segments is not None:
        segments = kernel.SegmentIds(queries.segments, keys.segments)
    return unchecked(run, q_BTNH * spec.scale, k_BSKH, v_BSKH, sinks_N, constant=segments)


@functools.cache
def _mask(spec: AttentionSpec, T: int, S: int) -> masks.Mask:
    left = None if spec.window is None else spec.window - 1
    right = 0 if spec.causal else left
    if left is None and right is None:
        return masks.FullMask((T, S))
    return masks.LocalMask((T, S), (left, right), offset=0)


def _blocks(T: int, S: int) -> kernel.BlockSizes:
    q, kv = math.gcd(T, LARGEST_BLOCK), math.gcd(S, LARGEST_BLOCK)
    return kernel.BlockSizes(q, kv, kv, q, kv, kv, q, kv)
