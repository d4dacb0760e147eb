"""What a model reads while it writes: the words of a source that each word of a text attends to."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.local import local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs, current_layout, same_everywhere
from lm_jax.core.types import Array, Batch
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.nn.watch import CROSS, watching

_MOST = 60  # rows and columns that a table has room for


def can_align(graph: nnx.GraphDef, params: Params) -> bool:
    """Whether the model reads texts that it attends to while it writes, with all its layers on each device."""
    layout, mesh = current_layout(), jax.sharding.get_abstract_mesh()
    split = layout is not None and any(mesh.shape.get(axis, 1) > 1 for axis in layout.layers)
    return "memory_tokens" in nnx.merge(graph, params).config.inputs and not split


def alignment(graph: nnx.GraphDef, params: Params, batch: Batch) -> np.ndarray:
    """float32 [B, T, S]: how much of its attention an encoder-decoder gives to each token of the source, "memory_tokens" [B, S]
    with "memory_segments", when it writes what comes after each of "tokens" [B, T]; the mean over layers and heads.

    Every device computes all rows.
    """
    with same_everywhere():
        return jax.device_get(_weights(params, batch, graph=graph))


@functools.partial(jax.jit, static_argnames="graph")
def _weights(params: Params, batch: Batch, *, graph: nnx.GraphDef) -> Array:
    def local(params: Params, batch: Batch) -> Array:
        with watching():
            seen = nnx.merge(graph, params)(batch).metrics[CROSS]
        return seen.sum / jnp.maximum(seen.count, 1)

    # Summed over heads it is the same on every device, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)


def tables(
    graph: nnx.GraphDef, params: Params, sources: Batch, written: Sequence[Sequence[int]], tokenizer: Tokenizer, max_tokens: int
) -> list[dict[str, Any]]:
    """For each text that was `written` to a row of `sources` (see `alignment`), in at most `max_tokens` tokens, its table for
    `Shown`: a row for each token, its end included where it was written, a column for each token of the source. Long ones are cut.
    """
    eos, rows = tokenizer.eos, [[*ids, tokenizer.eos][:max_tokens] for ids in written]
    tokens = np.full((len(rows), max_tokens), eos, np.int32)
    for number, ids in enumerate(rows):
        tokens[number, 1 : len(ids)] = ids[:-1]
    found = []
    weights_BTS = alignment(graph, params, {"tokens": tokens, **sources})
    for ids, source, segments, weights_TS in zip(
        rows, sources["memory_tokens"], sources["memory_segments"], weights_BTS, strict=True
    ):
        names, columns = _names(ids, tokenizer), _names(source[segments > 0].tolist(), tokenizer)
        values = weights_TS[: len(names), : len(columns)].round(4).tolist()
        found.append({"rows": names, "columns": columns, "values": values})
    return found


def _names(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    return ["(end)" if token == tokenizer.eos else tokenizer.decode([token]) for token in ids[:_MOST]]
