"""A trained model, out of the checkpoint of a run: its scores and the texts that it writes."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.sharding import Layout, local_rows, shard_batch
from lm_jax.core.types import Array
from lm_jax.data.base import Prepared
from lm_jax.data.text_pairs import TextPairs
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.sentence_encoder import SentenceEncoder
from lm_jax.parts import build
from lm_jax.prepared import prepare
from lm_jax.train.checkpoint import Checkpoints, room
from lm_jax.train.rundir import read_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to be used on one device."""

    experiment: Experiment
    step: int
    graph: nnx.GraphDef
    params: Params
    tokenizer: Tokenizer


def load(workdir: Path, step: int | None = None) -> Trained:
    """The averaged parameters (or, without an average, the parameters) of a run's checkpoint, by default the newest good one."""
    experiment = read_config(workdir)
    assert isinstance(experiment, Experiment)
    parts = build(experiment)
    device = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), parts.shapes)
    folder, limit = workdir / "checkpoints", room(shapes)
    with Checkpoints(folder, experiment.checkpoint, read_only=True, memory_gb=limit) as checkpoints:
        name = "params" if experiment.step.ema_decay is None else "ema"
        like = lambda record: {"params" if "holds" in record else name: shapes}  # noqa: E731
        step, state = checkpoints.restore(step, like=like, partial=True)
        tokenizer = Tokenizer.from_json(checkpoints.record(step)["tokenizer"])
    (params,) = state.values()
    return Trained(experiment, step, parts.graph, params, tokenizer)


def evaluate(
    workdir: Path, step: int | None = None, split: str | None = None, stride: int | None = None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields (name, scores) of every eval of the run's config on one of its checkpoints; `split` reads that split instead,
    `stride` by a sliding window.

    Raises `ConfigError` when there is nothing to evaluate, or when the data's tokenizer is no longer the checkpoint's.
    """
    trained = load(workdir, step)
    evals = _chosen_evals(trained.experiment, split, stride)
    data = prepare(dataclasses.replace(trained.experiment, evals=evals))
    if data.tokenizer.hash != trained.tokenizer.hash:
        raise ConfigError(
            f"the tokenizer of the data ({data.tokenizer.hash[:12]}) is not the checkpoint's "
            f"({trained.tokenizer.hash[:12]}): the source has changed since the run began"
        )
    for config in evals:
        scores = evaluate_split(config, trained.graph, trained.params, data, None, trained.experiment.layout)
        yield config.name, dict(score for score in scores if not isinstance(score, Shown))


def _chosen_evals(experiment: Experiment, split: str | None, stride: int | None) -> tuple[EvalConfig, ...]:
    evals = experiment.evals
    if split is not None:
        like = evals[0] if evals else PerplexityConfig(batch_size=experiment.data.batch_size)
        evals = (dataclasses.replace(like, name=split, split=split),)
    if not evals:
        raise ConfigError("the run's config has no evals; name a split, as in --split=validation")
    if stride is not None:
        if not all(isinstance(config, PerplexityConfig) for config in evals):
            raise ConfigError(f"--stride={stride} is for perplexity: a classifier reads every text once")
        evals = tuple(dataclasses.replace(config, stride=stride) for config in evals)
    return evals


def evaluate_split(
    config: EvalConfig, graph: nnx.GraphDef, params: Params, data: Prepared, mesh: Mesh | None, layout: Layout
) -> Iterator[tuple[str, float] | Shown]:
    """Yields the (name, value) pairs and the outputs to look at of one evaluation; on one device where `mesh` is None."""
    rows = slice(None) if mesh is None else local_rows(config.batch_size, mesh, layout)
    put = (lambda batch: batch) if mesh is None else (lambda batch: shard_batch(batch, mesh, layout, config.batch_size))
    return config.scores(graph, params, data, put, rows)


def embed(trained: Trained, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """float32 [texts, width]: the unit vectors of texts by a `SentenceEncoder`, of which near ones mean about the same.

    Texts are cut as those of the data that it was trained on. Raises `ConfigError` for another model.
    """
    data, model = trained.experiment.data, nnx.merge(trained.graph, trained.params)
    if not isinstance(model, SentenceEncoder) or not isinstance(data, TextPairs):
        raise ConfigError(f"a {type(model).__name__} embeds no texts; embed is for a SentenceEncoder trained on TextPairs")
    rows = [data.row(ids, trained.tokenizer) for ids in trained.tokenizer.encode_batch(texts)]
    found = np.zeros((len(rows), model.config.width), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        width = next(size for size in data.sizes if size >= len(rows[part[-1]]))
        tokens, segments = np.zeros((2, batch_size, width), np.int32)
        segments[:, 0] = 1  # of rows without a text too, so that all are numbers
        for at, number in enumerate(part):
            tokens[at, : len(rows[number])], segments[at, : len(rows[number])] = rows[number], 1
        found[part] = _vectors(trained.params, tokens, segments, graph=trained.graph)[: len(part)]
    return found


@functools.partial(jax.jit, static_argnames="graph")
def _vectors(params: Params, tokens_BT: Array, segments_BT: Array, *, graph: nnx.GraphDef) -> Array:
    return nnx.merge(graph, params).vectors(tokens_BT, segments_BT)[0]


def continuations(
    experiment: Experiment,
    graph: nnx.GraphDef,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    sampling: SamplingConfig,
    num_samples: int,
    seed: int,
) -> list[list[str]]:
    """For each prompt, `num_samples` texts that continue it, each until the end of the document or `max_tokens`.

    Raises `ConfigError` for a model that writes no text.
    """
    if not experiment.model.generates:
        raise ConfigError(f"a {type(experiment.model).__name__} writes no text; generate is for models of the next word")
    ids, inputs = experiment.data.prompts(tokenizer, prompts)
    new = generate(
        graph,
        params,
        ids,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        stop_tokens=(tokenizer.eos,),
        context=experiment.data.length,
        num_samples=num_samples,
        num_tokens=tokenizer.vocab_size,
        inputs=inputs,
        bidirectional="prefix" in experiment.data.inputs,
    )
    return [[tokenizer.decode(np.array(tokens)) for tokens in samples] for samples in new]
