"""Accuracy and F1 of a classifier over a whole split, every scored token exactly once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, all_sum, local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.sharding import batch_specs
from lm_jax.core.types import Array, Batch
from lm_jax.evals.base import EvalConfig, Shown


@dataclasses.dataclass(kw_only=True)
class ClassificationConfig(EvalConfig):
    """Yields "accuracy", "macro_f1" (the mean over classes that occur), "f1/CLASS" of each, "loss" (nats) and "num_examples".

    Up to 40 classes are shown as a confusion matrix.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classes"})
    reads_batches: ClassVar[bool] = True

    batch_size: int = 16

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`."""
        counts = np.zeros((data.num_outputs, nnx.merge(graph, params).config.num_outputs))
        total = 0.0
        for batch in data.eval_batches(self.split, batch_size=self.batch_size, length=self.length, rows=rows):
            found, loss = jax.device_get(_confusion(params, put(batch), graph=graph))
            counts += found[: len(counts)]
            total += float(loss)
        if not counts.sum():
            raise ConfigError(f"the split {self.split!r} holds no example to evaluate")
        yield from from_confusion(counts, data.classes)
        yield "loss", total / counts.sum()
        if len(data.classes) <= 40:
            table = confusion_matrix(counts, data.classes)
            yield Shown("most often confused: ", most_confused(table), {"eval": self.name, "table": table})


def from_confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yields the scores of `counts` [true class, predicted class]."""
    right, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)[: len(counts)]
    f1 = 2 * right / np.maximum(true + predicted, 1)
    there = true + predicted > 0
    yield "accuracy", float(right.sum() / counts.sum())
    yield "macro_f1", float(f1[there].mean())
    for name, value in zip(classes, f1, strict=True):
        yield f"f1/{name}", float(value)
    yield "num_examples", float(counts.sum())


def confusion_matrix(counts: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """The share of each true class (a row) that was taken for each class (a column), as a table for `Shown`; `counts` are [true
    class, predicted class], of which there may be more than classes: they are those that a padded head has, in one last column."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, other = shares[:, : len(classes)], shares[:, len(classes) :].sum(axis=1, keepdims=True)
    columns = [f"taken for {name}" for name in classes]
    if other.any():
        rows, columns = np.concatenate([rows, other], axis=1), [*columns, "none of them"]
    return {"rows": list(classes), "columns": columns, "values": rows.round(4).tolist()}


def most_confused(table: dict[str, Any], number: int = 3) -> str:
    """The worst entries of a confusion matrix beside its diagonal, in words."""
    shares = np.array(table["values"])
    np.fill_diagonal(shares, 0.0)
    worst = [np.unravel_index(place, shares.shape) for place in np.argsort(-shares, axis=None, kind="stable")[:number]]
    found = [f"{table['rows'][i]} {table['columns'][j]} ({shares[i, j]:.1%})" for i, j in worst if shares[i, j] > 0]
    return ", ".join(found) or "nothing"


@functools.partial(jax.jit, static_argnames="graph")
def _confusion(params: Params, batch: Batch, *, graph: nnx.GraphDef) -> tuple[Array, Array]:
    """float32 [C, C] weights by target and greatest logit, and the weighted sum of cross-entropies."""

    def local(params: Params, batch: Batch) -> tuple[Array, Array]:
        model = nnx.merge(graph, params)
        logits_BTC = all_gather(model.logits(model(batch).hidden), "vocab", 2)
        C, weights = logits_BTC.shape[-1], batch["weights"]
        true, found = (jax.nn.one_hot(x, C) for x in (batch["targets"], jnp.argmax(logits_BTC, -1)))
        counts = jnp.einsum("BT,BTC,BTE->CE", weights, true, found)
        loss = -jnp.sum(weights * jnp.sum(true * jax.nn.log_softmax(logits_BTC), -1))
        return all_sum((counts, loss), "batch", "sequence")

    # Gathered logits are the same on every device of the vocabulary, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)
