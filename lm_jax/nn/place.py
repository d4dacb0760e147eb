"""What a layer is told about the tokens that it gets, beside their vectors. Shared by all layers of a stack."""

from typing import Any, NamedTuple

from lm_jax.core.types import Array


class Memory(NamedTuple):
    """The output of an encoder, which a decoder attends to. Every device holds that of its rows, whole."""

    x_BSD: Array
    segments_BS: Array  # int32: which segment of the decoder's row may see it, 0 is padding


class Place(NamedTuple):
    """Where the tokens of a call stand."""

    positions_BT: Array  # int32 [B, T] or [1, T]: the position within the document, for position embeddings
    segments_BT: Array | None  # int32 [B, T]: the document within the row, 0 is padding; None: one document per row
    rows_B: Array | None = None  # int32 [B]: which rows of the batch these are, -1 for none; None: those of this device, in order
    prefix_BT: Array | None = None  # int32 [B, T]: 1 where all tokens of the document may look, even those before; None: nowhere
    memory: Memory | None = None  # None in a decoding step, whose caches hold it
    bias_NTS: Array | None = None  # float32: added to the scores of a row's tokens, by this device's heads; None: nothing

    def has(self) -> dict[str, bool]:
        """What an attention must heed."""
        names = {"segments": self.segments_BT, "prefix": self.prefix_BT, "bias": self.bias_NTS}
        return {name: value is not None for name, value in names.items()}


class CacheInfo(NamedTuple):
    """What all layers' caches share."""

    index: Array  # int32 []: how many slots are filled
    segments_BS: Array  # int32 [B, S]: as in `Place`, for the slots, those of this call included
    limit: Array  # int32 []: a query sees at most this many slots back, itself included
    prefix_BS: Array | None = None  # int32 [B, S]: as in `Place`, for the slots
    memory_BS: Array | None = None  # int32 [B, M]: the segments of the memory


Cache = Any  # what a mixer keeps of the past: a NamedTuple of arrays [B, ...], all 0 at the start
