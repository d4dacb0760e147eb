"""What a model reads while it writes: the words of a source that each word of a text attends to."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.local import local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs, current_layout, same_everywhere, use_layout
from lm_jax.core.types import Array, Batch
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.nn.watch import CROSS, watching

_MOST = 60  # rows and columns that a table has room for


def alignment(graph: nnx.GraphDef, params: Params, example: Batch) -> np.ndarray:
    """float32 [T, S]: how much of its attention an encoder-decoder gives to each token of the source, "memory_tokens" [S], when it
    writes each of "targets" [T] after "tokens" [T]; the mean over layers and heads."""
    batch = {name: np.asarray(value)[None, :] for name, value in example.items()}
    with same_everywhere():
        if (layout := current_layout()) is None:
            return jax.device_get(_weights(params, batch, graph=graph))[0]
        with use_layout(dataclasses.replace(layout, layers=())):  # one row is no work for a pipeline
            return jax.device_get(_weights(params, batch, graph=graph))[0]


@functools.partial(jax.jit, static_argnames="graph")
def _weights(params: Params, batch: Batch, *, graph: nnx.GraphDef) -> Array:
    def local(params: Params, batch: Batch) -> Array:
        with watching():
            seen = nnx.merge(graph, params)(batch).metrics[CROSS]
        return seen.sum / jnp.maximum(seen.count, 1)

    # Summed over heads it is the same on every device, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)


def table(weights_TS: np.ndarray, example: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
    """The weights as a table for `Shown`: a row for each token that was written, a column for each of the source. Long texts are
    cut."""
    rows, columns = (pieces(example[name][:_MOST], tokenizer) for name in ("targets", "memory_tokens"))
    return {"rows": rows, "columns": columns, "values": weights_TS[:_MOST, :_MOST].round(4).tolist()}


def pieces(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of each token; "(end)" for the end of a document."""
    return ["(end)" if token == tokenizer.eos else tokenizer.decode([token]) for token in ids.tolist()]
