"""The least that a step must communicate in a layout, by arithmetic."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lm_jax.core.param import Params
from lm_jax.core.sharding import Layout
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.moe import MoEConfig

# Forward and backward pass: one takes apart what the other brought together.
BOTH_WAYS = 2


def least_bytes(config: DecoderConfig, shapes: Params, axes: Params, layout: Layout, mesh: Any, rows: int, length: int) -> Counter:
    """Bytes that each device must send in one forward and backward pass of `rows` x `length` tokens in this layout, by purpose.

    | purpose | what |
    |---|---|
    | parameters | the shards of a layer's matrices, gathered twice (for the backward pass again), of all else once |
    | gradients | their float32 sums, scattered; sums over replicas |
    | residual | the residual stream, gathered before and scattered after every mixer, dense feed-forward layer, embedding, head |
    | ring | keys and values around the devices of the sequence, and their float32 gradients back |
    | experts | tokens to the experts of a mixture and back |
    | pipeline | activations to the next stage; rows into and out of the pipeline |

    Without rematerialisation. The devices of a pipeline run in lockstep: one that is idle sends too.
    """
    size = {"float32": 4, "bfloat16": 2}[config.dtype]
    return _Layout(config, layout, mesh, rows, length, size).total(shapes, axes)


class _Layout:
    def __init__(self, config: DecoderConfig, layout: Layout, mesh: Any, rows: int, length: int, size: int):
        self.config, self.layout, self.mesh, self.size = config, layout, mesh, size
        self.rows = rows / self.ways("batch")
        self.length = length / self.ways("sequence")
        self.stages = self.ways("layers")
        schedule = config.stack.schedule(round(self.rows * self.stages), self.stages, layout.micro_batches)
        self.ticks = schedule.num_ticks / schedule.rounds  # passes through all of a device's layers, idle ones included
        self.passes = schedule.micro_batches
        self.moves = schedule.num_ticks if self.stages > 1 else 0

    def ways(self, name: str) -> int:
        return self.layout.ways(name, self.mesh)

    def total(self, shapes: Params, axes: Params) -> Counter:
        total: Counter = Counter()
        for names, numel in _parameters(shapes, axes):
            total["parameters"] += self.parameter(names, numel)
            total["gradients"] += self.gradient(names, numel)
        stack, tokens, r = self.config.stack, self.rows * self.length, self.ways("residual")
        stream = tokens * self.config.width * self.size  # of this device's rows, where the residual stream is not split
        total["residual"] += 4 * stream * (r - 1) / r  # embedding and head: one of the two each way
        busy = stack.repeats * self.ticks / self.passes  # the layers on a device are fewer where its rows are more
        for block, busy in [*((block, 1.0) for block in stack.prelude), *((block, busy) for block in stack.pattern)]:
            mixture = block.feed_forward if isinstance(block.feed_forward, MoEConfig) else None
            layers = 1 if mixture is not None and mixture.shared is None else 2
            total["residual"] += busy * layers * 2 * BOTH_WAYS * stream * (r - 1) / r
            both, n = tokens * self.keys_values(block.mixer), self.ways("sequence")
            total["ring"] += busy * both * (2 * (n - 1) * self.size + (n * 4 if n > 1 else 0))
            if mixture is not None:
                total["experts"] += busy * self.mixture(mixture)
        total["pipeline"] += BOTH_WAYS * stream / r * self.stages / self.passes * self.moves
        total["pipeline"] += 2 * BOTH_WAYS * stream / r * (self.stages - 1)
        return total

    def keys_values(self, mixer: Any) -> float:
        """How many numbers the keys and values of a token are, on a device; 0 for recurrent mixers, which gather rows instead."""
        if isinstance(mixer, AttentionConfig):
            return sum(mixer.sizes(self.config.width)) * (mixer.num_kv_heads or mixer.num_heads) / self.ways("kv_heads")
        if isinstance(mixer, LatentAttentionConfig):
            return sum(mixer.sizes(self.config.width)) * mixer.num_heads / self.ways("heads")
        return 0.0

    def parameter(self, names: tuple[str, ...], numel: int) -> float:
        """Bytes of gathering one from its shards."""
        local, gathered = self.local(names, numel)
        layers = "layers" in names
        matrix = len([name for name in names if name not in ("rounds", "layers")]) > 1
        if layers and self.stages > 1:
            gathers, size = (1, 4) if self.layout.gather_once else ((2 if matrix else 1) * self.ticks, self.size if matrix else 4)
        else:
            gathers, size = 2 if matrix and layers else 1, self.size if matrix else 4
        return gathers * local * size * (gathered - 1) / gathered

    def gradient(self, names: tuple[str, ...], numel: int) -> float:
        """Bytes of scattering the gradient into shards, and of summing these over replicas."""
        local, gathered = self.local(names, numel)
        sharded = {axis for name in names for axis in getattr(self.layout, name)}
        users = {axis for name in ("batch", "sequence", "residual") for axis in getattr(self.layout, name)}
        replicas = math.prod(self.mesh.shape[axis] for axis in users - sharded)
        repeats = self.ticks if self.stages > 1 and "layers" in names and not self.layout.gather_once else 1
        scattered = repeats * local * 4 * (gathered - 1) / gathered
        return scattered + BOTH_WAYS * (local / gathered) * 4 * (replicas - 1) / replicas

    def local(self, names: tuple[str, ...], numel: int) -> tuple[float, int]:
        """(elements of a device when gathered, over how many devices it is gathered)."""
        gather = self.layout.gather
        gathered = math.prod(self.ways(name) for name in names if name in gather)
        return numel / math.prod(self.ways(name) for name in names if name not in gather), gathered

    def mixture(self, config: MoEConfig) -> float:
        """Bytes of one mixture for all rows of this device: there and back, forward and backward."""
        length = self.length / self.ways("residual")
        n, k = self.rows * length, config.router.top_k
        e, t = self.both("experts"), self.both("expert_mlp")
        element = 2 * BOTH_WAYS * self.config.width * self.size
        if config.capacity_factor is not None:
            slots = config.num_experts * self.rows * config.capacity(round(length))
            return slots * element * ((e - 1) / e + t - 1)
        if config.room is not None and e > 1:
            own = config.num_experts // self.ways("experts")
            slots = e * min(n * min(k, own), math.ceil(config.room * n * k / e))
            return slots * (element * ((e - 1) / e + t - 1) + 4 * ((e - 1) / e) + 12 * (t - 1))
        return n * (element + 12 * k) * (e * t - 1)  # numbers and gates of the experts, and the gates' gradients, besides

    def both(self, name: str) -> int:
        """Over how many devices that have different tokens the logical axis is split."""
        tokens = {axis for other in ("batch", "sequence", "residual") for axis in getattr(self.layout, other)}
        return math.prod(self.mesh.shape[axis] for axis in getattr(self.layout, name) if axis in tokens)


def _parameters(shapes: Params, axes: Params) -> Iterator[tuple[tuple[str, ...], int]]:
    for name, value in axes.items():
        if isinstance(value, dict):
            yield from _parameters(shapes[name], value)
        else:
            yield value, math.prod(shapes[name].shape)
