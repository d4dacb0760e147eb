"""Which tensor of a file holds which parameter: one table for both directions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import einops
import numpy as np

from lm_jax.core.errors import DataError
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.stack import StackConfig

_STRIP = 32  # elements: two lines of a processor's cache


@dataclasses.dataclass(frozen=True)
class Name:
    """Where a parameter stands.

    Attributes:
      tensor: its name in the file, with {i} for the layer and {e} for the expert.
      axes: how the file's axes become the parameter's, as `einops.rearrange` has it: "(N H) D -> D N H".
        The axis V is the vocabulary: the rows that pad a table of the model are not in the file.
      part, along: where several parameters are one tensor, which one this is, in order along that axis of the file.
      interleaved: they take turns along it, and do not follow one another.
    """

    tensor: str
    axes: str
    part: int | None = None
    along: int = 0
    interleaved: bool = False

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size of each named axis for a parameter (of one layer and expert) of this shape."""
        names = self.axes.split("->")[1].split()
        if len(names) != len(shape):
            raise DataError(f"tensor {self.tensor} is stored as {self.axes!r}, but config.json makes a parameter of shape {shape}")
        return dict(zip(names, shape, strict=True))

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
    cut: slice = slice(None)  # where it stands in the tensor along `name.along`

    def of(self, tensor: np.ndarray) -> np.ndarray:
        """A view of what of the tensor is this piece."""
        return tensor if self.name.part is None else tensor[(slice(None),) * self.name.along + (self.cut,)]


Names = Mapping[str, Name]


class ModelConfig(Protocol):
    """A model that can be read from files and written to them."""

    vocab_size: int

    def stacks(self) -> dict[str, StackConfig]:
        """Its stacks, by the path of their parameters."""


def pieces(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], outer: Names, blocks: Mapping[str, Names]
) -> Iterator[list[Piece]]:
    """Yields, for every tensor of the files, the pieces that it holds, in order.

    Args:
      shapes: of the model's parameters by path, such as "stack/block0/mixer/query".
      outer: names of the parameters outside the blocks, by path.
      blocks: of those in a block of a stack, by the stack's path and by path within it, such as "mixer/query"; of a mixture
        "mixture/up".

    Raises `DataError` for a parameter that has no name.
    """
    found: dict[str, list[Piece]] = {}
    for path, shape in shapes.items():
        for piece in _pieces_of(config, path, shape, outer, blocks):
            found.setdefault(piece.tensor, []).append(piece)
    for group in found.values():
        if group[0].name.part is None:
            yield group
            continue
        group.sort(key=lambda piece: piece.name.part)
        start, placed = 0, []
        for number, piece in enumerate(group):
            size = piece.name.stored_shape(piece.shape)[piece.name.along]
            cut = slice(number, None, len(group)) if piece.name.interleaved else slice(start, start + size)
            placed.append(piece._replace(cut=cut))
            start += size
        yield placed


def _pieces_of(
    config: ModelConfig, path: str, shape: tuple[int, ...], outer: Names, blocks: Mapping[str, Names]
) -> Iterator[Piece]:
    parts = tuple(path.split("/"))
    for where, (_, stack) in config.stacks().items():
        inside = path.removeprefix(f"{where}/").split("/") if path.startswith(f"{where}/") else [""]
        if inside[0].startswith(("block", "prelude")):
            yield from _pieces_of_block(stack, parts, inside, shape, blocks[where])
            return
    name = _find(outer, path, path)
    shape = tuple(config.vocab_size if axis == "V" else size for axis, size in name.sizes(shape).items())
    yield Piece(parts, (), name.tensor, name, shape)


def _pieces_of_block(
    stack: StackConfig, path: tuple[str, ...], inside: list[str], shape: tuple[int, ...], names: Names
) -> Iterator[Piece]:
    first, before = inside[0].startswith("prelude"), len(stack.prelude)
    number = int(inside[0].removeprefix("prelude" if first else "block"))
    block = (stack.prelude if first else stack.pattern)[number]
    mixture = inside[1] == "feed_forward" and isinstance(block.feed_forward, MoEConfig)
    name = _find(names, "/".join(["mixture", *inside[2:]] if mixture else inside[1:]), "/".join(path))
    leading = 0 if first else 1 if stack.rounds == 1 else 2
    for repeat in range(1 if first else stack.repeats):
        layer = number if first else before + repeat * len(stack.pattern) + number
        at = ((), (repeat,), divmod(repeat, stack.repeats // stack.rounds))[leading]
        experts = range(shape[leading]) if "{e}" in name.tensor else (None,)
        for expert in experts:
            index = at if expert is None else (*at, expert)
            yield Piece(path, index, name.tensor.format(i=layer, e=expert), name, shape[len(index) :])


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
    if group[0].name.part is None:
        return group[0].name.stored_shape(group[0].shape)
    shapes = [list(piece.name.stored_shape(piece.shape)) for piece in group]
    along = group[0].name.along
    shapes[0][along] = sum(shape[along] for shape in shapes)
    return tuple(shapes[0])
