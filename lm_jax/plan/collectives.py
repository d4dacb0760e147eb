"""What a compiled program communicates, read off its text, and the least that its layout needs."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from lm_jax.core.param import Params
from lm_jax.core.sharding import Layout
from lm_jax.models.decoder import DecoderConfig

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_KINDS = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute"
_OP = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_CALL = re.compile(r"(?:body|calls|to_apply|branch_computations)=\{?(%?[\w.\-]+(?:, %?[\w.\-]+)*)\}?")


class Collective(NamedTuple):
    """One kind of communication among groups of so many devices."""

    kind: str
    devices: int


def bytes_sent(text: str) -> Counter:
    """Bytes that each device sends in one run of a compiled program (`compiled.as_text()`), by `Collective`.

    By the ring algorithms: of an array of s bytes over n devices, an all-gather (s gathered), reduce-scatter or all-to-all
    sends s (n - 1) / n, an all-reduce twice that, a permutation s. Loops are counted by their trip counts.
    """
    bodies = _computations(text)
    entry = next(name for name in bodies if name.startswith("ENTRY "))
    return _count(bodies, entry, {})


def _computations(text: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and " -> " in line:
            words = line.split()
            name = f"ENTRY {words[1]}" if words[0] == "ENTRY" else words[0]
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    return bodies


def _count(bodies: dict[str, list[str]], name: str, seen: dict[str, Counter]) -> Counter:
    if name in seen:
        return seen[name]
    total: Counter = Counter()
    for line in bodies[name]:
        found = _OP.search(line)
        if found:
            collective, size = _cost(line, *found.groups())
            total[collective] += size
            continue
        called = [part for match in _CALL.findall(line) for part in match.split(", ")]
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line) if " while(" in line else None
        if " while(" in line and trips is None:
            raise ValueError(f"a loop without a known trip count: {line.strip()[:100]}")
        for other in called:
            if other in bodies:
                for collective, size in _count(bodies, other, seen).items():
                    total[collective] += size * (int(trips[1]) if trips else 1)
    seen[name] = total
    return total


def _cost(line: str, result: str, kind: str, started: str | None) -> tuple[Collective, float]:
    sizes = [
        _BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
    size = max(sizes) if started else sum(sizes)
    if kind == "collective-permute":
        return Collective(kind, 2), size
    devices = _group_size(line)
    if kind == "reduce-scatter":
        size *= devices  # the result is one part
    return Collective(kind, devices), size * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def _group_size(line: str) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return listed[1].count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if counted is None:
        raise ValueError(f"no replica groups that can be read: {line.strip()[:200]}")
    return int(counted[1])


def least_bytes(config: DecoderConfig, shapes: Params, axes: Params, layout: Layout, mesh: Any, rows: int, length: int) -> Counter:
    """Bytes that each device must send in one forward and backward pass of `rows` x `length` tokens in this layout, by purpose.

    Without rematerialisation. "parameters": gathering the shards of a layer's matrices twice (for the backward pass again) and of
    all else once; "gradients": scattering their float32 sums, and adding them over replicas; "residual": gathering the
    residual stream before and scattering it after every mixer and feed-forward layer, the embedding and the head, in both
    directions; "ring": keys and values around the devices of the sequence, and their float32 gradients back.
    """
    ways = lambda name: layout.ways(name, mesh)  # noqa: E731
    size = {"float32": 4, "bfloat16": 2}[config.dtype]
    total: Counter = Counter()
    for names, numel in _parameters(shapes, axes):
        sharded = [axis for name in names for axis in getattr(layout, name)]
        gathered = math.prod(mesh.shape[axis] for axis in sharded if axis in layout.gather)
        local = numel / math.prod(mesh.shape[axis] for axis in sharded if axis not in layout.gather)
        matrix = len([name for name in names if name != "layers"]) > 1
        gathers = 2 if matrix and "layers" in names else 1
        share = (gathered - 1) / gathered
        total["parameters"] += gathers * local * (size if matrix else 4) * share
        total["gradients"] += local * 4 * share
        users = {axis for name in ("batch", "sequence", "residual") for axis in getattr(layout, name)}
        replicas = math.prod(mesh.shape[axis] for axis in users if axis not in sharded)
        total["gradients"] += 2 * (local / gathered) * 4 * (replicas - 1) / replicas
    tokens = rows * length / ways("batch") / ways("sequence")
    r = ways("residual")
    # Mixer and feed-forward: gather and scatter, forward and backward; embedding and head: one of them each way.
    total["residual"] += (4 * 2 * config.stack.num_layers + 4) * tokens * config.width * size * (r - 1) / r
    n = ways("sequence")
    if n > 1:
        for block in config.stack.pattern:
            heads = block.mixer.num_kv_heads or block.mixer.num_heads
            both = 2 * tokens * heads / ways("kv_heads") * block.mixer.size(config.width)
            total["ring"] += config.stack.repeats * both * (2 * (n - 1) * size + n * 4)
    return total


def _parameters(shapes: Params, axes: Params) -> Iterator[tuple[tuple[str, ...], int]]:
    for name, value in axes.items():
        if isinstance(value, dict):
            yield from _parameters(shapes[name], value)
        else:
            yield value, math.prod(shapes[name].shape)
