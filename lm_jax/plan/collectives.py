"""What a compiled program communicates, read off its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

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
