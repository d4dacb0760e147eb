"""Which tensor of a file holds which parameter: one table for both directions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import einops
import numpy as np

from lm_jax.core.errors import DataError
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.moe import MoEConfig

_STRIP = 32  # elements: two lines of a processor's cache


@dataclasses.dataclass(frozen=True)
class Name:
    """Where a parameter stands.

    Attributes:
      tensor: its name in the file, with {i} for the layer and {e} for the expert.
      axes: how the file's axes become the parameter's, as `einops.rearrange` has it: "(N H) D -> D N H".
      part, along: where several parameters are one tensor, which one this is, in order along that axis of the file.
    """

    tensor: str
    axes: str
    part: int | None = None
    along: int = 0

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size of each named axis for a parameter (of one layer and expert) of this shape."""
        return dict(zip(self.axes.split("->")[1].split(), shape, strict=True))

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter (of one layer and expert) of this shape."""
        sizes = self.sizes(shape)
        groups = einops.parsing.ParsedExpression(self.axes.split("->")[0].strip()).composition
        return tuple(math.prod(sizes[name] for name in group) for group in groups)

    def load(self, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter: a view of what is stored."""
        return einops.rearrange(stored, self.axes, **self.sizes(shape))

    def store(self, value: np.ndarray) -> np.ndarray:
        """What is stored of a parameter."""
        left, right = self.axes.split("->")
        return einops.rearrange(value, f"{right}->{left}", **self.sizes(value.shape))


class Piece(NamedTuple):
    """A parameter of one layer and expert, and its place in the files."""

    path: tuple[str, ...]  # of the parameter in the model
    index: tuple[int, ...]  # of this piece along its leading axes: layer, expert
    tensor: str
    name: Name
    shape: tuple[int, ...]  # of the piece
    start: int = 0  # where it begins in the tensor along `name.along`


Names = Mapping[str, Name]


def pieces(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], outer: Names, block: Names) -> Iterator[list[Piece]]:
    """Yields, for every tensor of the files, the pieces that it holds, in order.

    Args:
      shapes: of the model's parameters by path, such as "stack/block0/mixer/query".
      outer: names of the parameters outside the blocks, by path.
      block: of those in a block, by path within it, such as "mixer/query"; of a mixture "mixture/up".

    Raises `DataError` for a parameter that has no name.
    """
    found: dict[str, list[Piece]] = {}
    for path, shape in shapes.items():
        for piece in _pieces_of(config, path, shape, outer, block):
            found.setdefault(piece.tensor, []).append(piece)
    for group in found.values():
        group.sort(key=lambda piece: piece.name.part or 0)
        start, placed = 0, []
        for piece in group:
            placed.append(piece._replace(start=start))
            start += piece.name.stored_shape(piece.shape)[piece.name.along]
        yield placed


def _pieces_of(config: DecoderConfig, path: str, shape: tuple[int, ...], outer: Names, block: Names) -> Iterator[Piece]:
    parts = tuple(path.split("/"))
    inside = parts[0] == "stack" and parts[1].startswith("block")
    if not inside:
        name = _find(outer, path, path)
        yield Piece(parts, (), name.tensor, name, shape)
        return
    stack, number = config.stack, int(parts[1].removeprefix("block"))
    mixture = parts[2] == "feed_forward" and isinstance(stack.pattern[number].feed_forward, MoEConfig)
    name = _find(block, "/".join((("mixture", *parts[3:])) if mixture else parts[2:]), path)
    leading = 1 if stack.rounds == 1 else 2
    for repeat in range(stack.repeats):
        layer = repeat * len(stack.pattern) + number
        at = (repeat,) if leading == 1 else divmod(repeat, stack.repeats // stack.rounds)
        experts = range(shape[leading]) if "{e}" in name.tensor else (None,)
        for expert in experts:
            index = at if expert is None else (*at, expert)
            yield Piece(parts, index, name.tensor.format(i=layer, e=expert), name, shape[len(index) :])


def _find(names: Names, key: str, path: str) -> Name:
    if key not in names:
        raise DataError(f"this architecture has no tensor for the parameter {path}")
    return names[key]


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, in strips where the source lies transposed: five times as fast for large matrices."""
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        target[...] = source
        return
    for start in range(0, source.shape[-1], _STRIP):
        target[..., start : start + _STRIP] = source[..., start : start + _STRIP]


def stored_shape(group: list[Piece]) -> tuple[int, ...]:
    """The shape of the tensor that holds these pieces."""
    shapes = [list(piece.name.stored_shape(piece.shape)) for piece in group]
    along = group[0].name.along
    shapes[0][along] = sum(shape[along] for shape in shapes)
    return tuple(shapes[0])
