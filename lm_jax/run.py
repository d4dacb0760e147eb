"""A whole run, put together: from an experiment to training, with evaluations and samples, in a run directory."""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm_jax.config import Experiment
from lm_jax.core.config import flatten, to_json
from lm_jax.core.distributed import check_same
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.files import write_json
from lm_jax.core.hardware import peak_flops
from lm_jax.core.param import Params
from lm_jax.core.sharding import Layout, local_rows, shard_batch, use_mesh
from lm_jax.core.types import Batch
from lm_jax.data.base import Loader, Prepared
from lm_jax.data.loader import Prefetcher
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.parts import (
    Parts,
    abstract_state,
    attention_backends,
    build,
    check_batch,
    check_mesh,
    jit_step,
    keys,
    pipeline_schedule,
)
from lm_jax.prepared import check_samples, prepare
from lm_jax.study.report import write_report
from lm_jax.train.checkpoint import Checkpoints
from lm_jax.train.lock import RunLock
from lm_jax.train.logging import MetricsLog, read_metrics
from lm_jax.train.rundir import claim_config, versions
from lm_jax.train.step import TrainState, init_state
from lm_jax.train.trainer import Scheduled, Trainer
from lm_jax.trained import continuations, evaluate_split
from lm_jax.transfer import check_source, first_state
from lm_jax.word_rows import WordRows, word_rows


def checksum(batch: Batch) -> int:
    """CRC-32 of this process's rows of a batch."""
    value = 0
    for name in sorted(batch):
        value = zlib.crc32(np.ascontiguousarray(batch[name]), value)
    return value


def train(experiment: Experiment, workdir: Path) -> int:
    """Trains in `workdir` until done, from its latest good checkpoint when it has one. Returns the exit code."""
    check_same(flatten(experiment))
    mesh = experiment.mesh.build()
    check_mesh(experiment, mesh)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    with RunLock(workdir, enabled=jax.process_index() == 0), use_mesh(mesh, experiment.layout):
        parts = build(experiment)
        data = prepare(experiment)
        loader = data.train_loader(local_rows(experiment.data.batch_size, mesh, experiment.layout))
        check_samples(experiment, data.tokenizer)
        rows = None
        if not any((workdir / "checkpoints").glob("[0-9]*")):
            if experiment.start_from is not None:
                check_source(experiment, parts, data.tokenizer)
            if experiment.words_from is not None:
                rows = word_rows(experiment.words_from, parts.shapes, data.tokenizer)
                check_same({f"vectors of words_from={experiment.words_from}": rows.checksum})
        check_batch(experiment, parts, mesh)
        claim_config(workdir, experiment)
        try:
            code = _train(experiment, workdir, mesh, parts, data, loader, rows)
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one to hear of
                _report(workdir)
            raise
        _report(workdir)
        return code


def _report(workdir: Path) -> None:
    if jax.process_index() == 0:
        write_report(workdir)


def _train(
    experiment: Experiment, workdir: Path, mesh: Mesh, parts: Parts, data: Prepared, loader: Loader, rows: WordRows | None
) -> int:
    past = read_metrics(workdir)
    attempt = 1 + max((row["attempt"] for row in past), default=-1)
    software = versions()
    write_json(workdir / "versions.json", software)
    init_key, dropout_key = keys(experiment)
    with (
        MetricsLog(workdir, attempt, experiment.train.num_steps, enabled=jax.process_index() == 0) as log,
        Checkpoints(
            workdir / "checkpoints",
            experiment.checkpoint,
            on_corrupt=lambda step, why: log.event(step, "corrupt_checkpoint", why),
        ) as checkpoints,
        _compilations(log),
    ):
        record = {
            "config": to_json(experiment),
            "tokenizer": data.tokenizer.to_json(),
            "data": loader.fingerprint,
            "versions": software,
            "mesh": dict(mesh.shape),
        }
        if not checkpoints.steps():
            state, progress = _begin(experiment, parts, mesh, init_key, rows, log), {}
        else:
            step, state = _restore(experiment, parts, mesh, checkpoints)
            saved = checkpoints.record(step)
            _check_same_data(saved, record, workdir)
            progress = saved["progress"]
            log.event(step, "resume", f"continues from step {step}")
        length = experiment.data.row_length()
        place = functools.partial(shard_batch, mesh=mesh, layout=experiment.layout, num_rows=experiment.data.batch_size)
        trainer = Trainer(
            config=experiment.train,
            step_fn=jit_step(experiment, parts),
            batches=lambda start: Prefetcher(loader, start, transfer=lambda batch: (place(batch), checksum(batch))),
            documents=lambda step: ["; ".join(map(str, row)) for row in loader.documents(step)],
            evals=[_scheduled(e, parts, data, mesh, experiment.layout) for e in experiment.evals],
            sampler=_sampler(experiment, parts, data.tokenizer, mesh),
            checkpoints=checkpoints,
            log=log,
            record=record,
            num_outputs=experiment.model.num_outputs,
            remarks=experiment.objective.remarks,
            tokens_per_batch=round(experiment.data.batch_size * data.tokens_per_row),
            flops_per_token=tuple(experiment.model.flops_per_token(length, causal=causal) for causal in (False, True)),
            peak_flops=_total_peak(mesh),
        )
        return trainer.run(state, dropout_key, progress)


def _begin(experiment: Experiment, parts: Parts, mesh: Mesh, key: jax.Array, rows: WordRows | None, log: MetricsLog) -> TrainState:
    """The state before the first step; logs where it is from and how it will be trained."""
    state, transfer = first_state(experiment, parts, mesh, key, rows)
    message = f"{parts.num_params:,} parameters on {mesh.size} x {jax.devices()[0].device_kind}"
    log.event(0, "start", message, num_params=parts.num_params)
    if transfer is not None:
        log.event(0, "transfer", str(transfer), **{fate: transfer.paths(fate) for fate in ("loaded", "new", "left")})
    if rows is not None:
        log.event(0, "words", str(rows), given=len(rows.ids), tokens=rows.num_tokens)
    for line in attention_backends(experiment, mesh):
        log.event(0, "attention", line)
    schedule = pipeline_schedule(experiment, mesh)
    if schedule is not None:
        log.event(0, "pipeline", str(schedule), bubble_share=schedule.bubble_share)
    return state


def _restore(experiment: Experiment, parts: Parts, mesh: Mesh, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    """The newest good checkpoint; where it holds parameters only (an import), with the optimizer's state before its first step."""
    whole = abstract_state(experiment, parts, mesh)
    step, state = checkpoints.restore(like=lambda record: {"params": whole.params} if "holds" in record else whole)
    if isinstance(state, TrainState):
        return step, state
    begin = functools.partial(init_state, optimizer=parts.optimizer, config=experiment.step)
    return step, jax.jit(begin)(state["params"])


def _check_same_data(saved: dict[str, Any], record: dict[str, Any], workdir: Path) -> None:
    for name, what in (("tokenizer", "tokenizer"), ("data", "training data")):
        if saved[name] is not None and saved[name] != record[name]:  # an import knows no data yet
            raise ConfigError(
                f"the {what} differs from that of the checkpoint in {workdir}: its source has changed since the run began; "
                "restore the source or start a new run in another --workdir"
            )


def _total_peak(mesh: Mesh) -> float | None:
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.size


@dataclasses.dataclass
class _compilations:
    """Logs how long the train step compiled, and every time it compiles again."""

    log: MetricsLog
    count: int = 0

    def __enter__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, seconds: float, **metadata: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and metadata.get("fun_name") == "jit(train_step)":
            self.count += 1
            name = "compile" if self.count == 1 else "recompile"
            self.log.event(None, name, f"compiled the train step in {seconds:.1f} s", seconds=seconds)


def _scheduled(config: EvalConfig, parts: Parts, data: Prepared, mesh: Mesh | None, layout: Layout) -> Scheduled:
    def run(step: int, params: Params) -> Iterator[tuple[str, float] | Shown]:
        return evaluate_split(config, parts.graph, params, data, mesh, layout)

    return Scheduled(config.name, config.every, run)


def _sampler(experiment: Experiment, parts: Parts, tokenizer: Tokenizer, mesh: Mesh) -> Scheduled | None:
    config = experiment.samples
    if config is None:
        return None
    # A few prompts, the same on every device.
    layout = dataclasses.replace(experiment.layout, batch=(), sequence=(), residual=())

    def run(step: int, params: Params) -> Iterator[Shown]:
        with use_mesh(mesh, layout):
            texts = continuations(
                experiment,
                parts.graph,
                params,
                tokenizer,
                config.prompts,
                max_tokens=config.max_tokens,
                sampling=config.sampling,
                num_samples=config.num_samples,
                seed=experiment.train.seed,
            )
        for prompt, samples in zip(config.prompts, texts, strict=True):
            for text in samples:
                yield Shown(experiment.data.shown_prompt(prompt), text, {"temperature": config.sampling.temperature})

    return Scheduled("samples", config.every, run)
