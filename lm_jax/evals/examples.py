"""What a model scores at the tokens of every example of a split, read back from the rows that the examples were packed in."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.local import all_gather, local_view, whole_row
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs
from lm_jax.core.types import Array, Batch
from lm_jax.data.examples import ExampleBatches


def logits_of_examples(
    graph: nnx.GraphDef, params: Params, batches: ExampleBatches, put: Callable[[Batch], Batch]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the example, float32 [tokens, C]) for all of `batches`, row by row; on every process the same."""
    for number, batch in enumerate(batches):
        logits_BTC = jax.device_get(_logits(params, put(batch), graph=graph))
        for at, logits_TC in enumerate(logits_BTC):
            for example, spans in batches.rows.spans(number * batches.batch_size + at):
                yield example, logits_TC[spans[""]]


@functools.partial(jax.jit, static_argnames="graph")
def _logits(params: Params, batch: Batch, *, graph: nnx.GraphDef) -> Array:
    """float32 [B, T, C] of the whole batch."""

    def local(params: Params, batch: Batch) -> Array:
        model = nnx.merge(graph, params)
        logits_BTC = all_gather(model.logits(model(batch).hidden), "vocab", 2)
        return all_gather(whole_row(logits_BTC), "batch", 0)

    # What was gathered is the same on every device, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)
