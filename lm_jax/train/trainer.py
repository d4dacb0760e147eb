"""The training loop: one straight line from batch to checkpoint."""

import contextlib
import dataclasses
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import Params
from lm_jax.core.types import Array, Batch
from lm_jax.evals.base import Shown
from lm_jax.train.checkpoint import Checkpoints
from lm_jax.train.logging import MetricsLog
from lm_jax.train.preemption import Preemption
from lm_jax.train.step import TrainState

PREEMPTED = 75  # EX_TEMPFAIL: checkpointed; start me again


@dataclasses.dataclass(kw_only=True)
class EarlyStopConfig(Config):
    """Stops when `metric` ("eval name/value name") has not improved for `patience` evaluations in a row.

    The last evaluations are of the last parameters. The log names the best step: a checkpoint of it, for `lm-jax eval --step`, is
    there if steps of evaluations are saved (`checkpoint.every`), and kept by `checkpoint.keep_best=1` with `best_metric` and
    `best_mode` as here.
    """

    metric: str = "validation/loss"
    mode: str = "min"
    patience: int = 5

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown mode or a metric without its eval."""
        check_choice("mode", self.mode, ("min", "max"))
        check_positive(self, "patience")
        if self.metric.count("/") != 1:
            raise ConfigError(f"metric={self.metric!r} must be written 'eval name/value name', as 'validation/loss'")

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far (None: there is none). One that is not finite never is."""
        if best is None or not math.isfinite(value):
            return math.isfinite(value)
        return value < best if self.mode == "min" else value > best


@dataclasses.dataclass(kw_only=True)
class TrainConfig(Config):
    """How long to train and what to watch.

    `seed` draws the parameters and drives dropout (the data has a seed of its own). More than `max_skips` updates in a row
    that are not finite stop the run.
    """

    num_steps: int = 1000
    seed: int = 0
    log_every: int = 10
    max_skips: int = 10
    early_stop: EarlyStopConfig | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range."""
        check_positive(self, "num_steps", "log_every")
        if self.max_skips < 0:
            raise ConfigError(f"max_skips={self.max_skips} must not be negative")


class Scheduled:
    """Something that runs on the parameters every so many steps, and at the end."""

    def __init__(self, name: str, every: int, run: Callable[[int, Params], Iterator[tuple[str, float] | Shown]]):
        self.name, self.every, self.run = name, every, run

    def due(self, step: int, last: bool) -> bool:
        """Whether to run after `step` steps."""
        return last or (self.every > 0 and step % self.every == 0)


class NotFiniteError(RuntimeError):
    """Too many updates in a row were not finite."""


@dataclasses.dataclass
class Trainer:
    """Runs the loop. Built once per process by `lm_jax.run`.

    Attributes:
      step_fn: jitted `train_step` (state, batch, key); it may donate the state.
      batches: from a step on, a context manager whose `next()` gives (step, (device batch, checksum), seconds waited).
      documents: step -> lines that name the documents of its batch.
      evals, sampler: what runs on the parameters during training.
      record: JSON that goes into every checkpoint.
      remarks: what the objective says of the numbers of the first step.
      flops_per_token: counting full attention, and causal attention only.
      peak_flops: of all devices together; None where unknown.
    """

    config: TrainConfig
    step_fn: Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array], Params]]
    batches: Callable[[int], Any]
    documents: Callable[[int], list[str]]
    evals: list[Scheduled]
    sampler: Scheduled | None
    checkpoints: Checkpoints
    log: MetricsLog
    record: dict[str, Any]
    num_outputs: int | None
    remarks: Callable[[dict[str, float]], Iterable[str]]
    tokens_per_batch: int
    flops_per_token: tuple[float, float]
    peak_flops: float | None

    def run(self, state: TrainState, key: Array, progress: dict[str, Any]) -> int:
        """Trains from `state` to the last step; returns the exit code: 0, or 75 when asked to stop.

        `progress` is what the record of the checkpoint of `state` holds under that name; {} at the start.
        Raises `NotFiniteError` after too many updates in a row that were not finite.
        """
        start, total = int(state.step), self.config.num_steps
        self._meter = Meter(start, progress.get("wall", 0.0))
        self._skips = progress.get("skips", 0)
        self._best, self._bad = progress.get("best"), progress.get("bad", 0)
        self._best_step = progress.get("best_step")
        self._digest = progress.get("batches_digest", 0)
        self._key = jax.random.key_data(key).tolist()
        rule = self.config.early_stop
        if progress.get("owed"):
            with self._meter.pause():
                if self._visit(start, state, leaving=False):
                    total = start
        if rule is not None and self._bad >= rule.patience:
            total = start  # stopped early, in an earlier attempt
        pending: tuple[int, dict[str, Array], Params] | None = None
        with Preemption() as preemption, self.batches(start) as batches:
            for step in range(start + 1, total + 1):
                at, (batch, checksum), waited = batches.next()
                assert at == step - 1, (at, step)
                self._digest = zlib.crc32(checksum.to_bytes(4, "little"), self._digest)
                self._meter.waited += waited
                state, metrics, norms = self.step_fn(state, batch, key)
                self._report(pending)  # of the step before: the device already has the next one
                pending = (step, metrics, norms)
                self.checkpoints.poll()
                stop = preemption.requested(step)
                if not (stop or step == total or self._due(step)):
                    continue
                self._report(pending)
                pending = None
                with self._meter.pause():
                    early = self._visit(step, state, stop and step < total)
                if early:
                    break
                if stop and step < total:
                    self.checkpoints.wait()
                    self.log.event(step, "preempted", f"asked to stop; step {step} is saved; start again to continue")
                    return PREEMPTED
        self.checkpoints.wait()
        self.log.event(int(state.step), "done", f"trained {int(state.step)} steps in {self._meter.wall():.0f} s")
        return 0

    def _due(self, step: int) -> bool:
        runs = [*self.evals, *([self.sampler] if self.sampler else [])]
        return self.checkpoints.due(step) or any(run.due(step, last=False) for run in runs)

    def _visit(self, step: int, state: TrainState, leaving: bool) -> bool:
        """Evaluates, samples and saves what is due after `step`; whether training should stop early.

        A run that is `leaving` has no time for more than the save. Where an evaluation fails the step is saved all the same. Both
        leave what was due to the next attempt: its progress has "owed".
        """
        last = step == self.config.num_steps
        params = state.params if state.ema is None else state.ema
        scores: dict[str, float] = {}
        early = False
        try:
            if not leaving:
                scores = self._evaluate(step, params, [e for e in self.evals if e.due(step, last)])
                _check_named("checkpoint.best_metric", self.checkpoints.best_metric, scores)
                early = self._early_stop(step, scores)
                if early:
                    rest = [e for e in self.evals if not e.due(step, last)]
                    scores |= self._evaluate(step, params, rest)
        except Exception:
            self._save(step, state, {}, owed=True)
            self.checkpoints.wait()
            raise
        if leaving or last or early or self.checkpoints.due(step):
            self._save(step, state, scores, owed=leaving)
        if self.sampler is not None and not leaving and self.sampler.due(step, last or early):
            self._scores(step, params, self.sampler)
        return early

    def _save(self, step: int, state: TrainState, scores: dict[str, float], *, owed: bool) -> None:
        self.checkpoints.save(step, state, self.record | {"progress": self._progress() | {"owed": owed}}, scores)
        self.log.event(step, "checkpoint", f"saving step {step}")
        self.log.flush(durable=True)

    def _progress(self) -> dict[str, Any]:
        """What the host knows of the run so far; `dropout_key` and `batches_digest` let two runs be compared."""
        return {
            "wall": self._meter.wall(),
            "skips": self._skips,
            "best": self._best,
            "best_step": self._best_step,
            "bad": self._bad,
            "batches_digest": self._digest,
            "dropout_key": self._key,
        }

    def _evaluate(self, step: int, params: Params, evals: list[Scheduled]) -> dict[str, float]:
        scores = {}
        for evaluation in evals:
            row = self._scores(step, params, evaluation)
            self.log.eval(step, evaluation.name, row)
            scores |= {f"{evaluation.name}/{name}": value for name, value in row.items()}
        return scores

    def _scores(self, step: int, params: Params, evaluation: Scheduled) -> dict[str, float]:
        """What it yields by name; what it shows is logged."""
        scores = {}
        for item in evaluation.run(step, params):
            if isinstance(item, Shown):
                self.log.sample(step, item.prompt, item.text, **item.fields)
            else:
                scores[item[0]] = item[1]
        return scores

    def _early_stop(self, step: int, scores: dict[str, float]) -> bool:
        rule = self.config.early_stop
        if rule is None:
            return False
        _check_named("train.early_stop.metric", rule.metric, scores)
        if rule.metric not in scores:
            return False
        value = scores[rule.metric]
        if rule.better(value, self._best):
            self._best, self._best_step, self._bad = value, step, 0
        else:
            self._bad += 1
        if self._bad < rule.patience:
            return False
        best = "been finite" if self._best is None else f"improved on {self._best} of step {self._best_step}"
        message = f"{rule.metric} has not {best} for {self._bad} evaluations"
        self.log.event(step, "stop", message, best_step=self._best_step)
        return True

    def _report(self, done: tuple[int, dict[str, Array], Params] | None) -> None:
        """Logs a step whose results are there, and counts the ones that were not finite."""
        if done is None:
            return
        step, metrics, norms = done
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if row.pop("finite"):
            self._skips = 0
        else:
            self._skips += 1
            self._report_skip(step, row, norms)
        if step == 1:
            for remark in self.remarks(row):
                self.log.event(1, "remark", remark)
            self._check_first_loss(row["cross_entropy" if "cross_entropy" in row else "loss"])
        if step % self.config.log_every == 0 or step == self.config.num_steps or step == 1:
            self.log.train(step, row | self._speed(step))

    def _speed(self, step: int) -> dict[str, float]:
        steps, seconds, input_wait = self._meter.lap(step)
        speed = steps * self.tokens_per_batch / seconds
        row = {"wall": self._meter.wall(), "tokens": step * self.tokens_per_batch, "tokens_per_second": speed}
        row |= {"step_time": seconds / steps, "input_wait": input_wait}
        if self.peak_flops is not None:
            full, causal = self.flops_per_token
            row |= {"mfu": speed * full / self.peak_flops, "mfu_causal": speed * causal / self.peak_flops}
        return row

    def _report_skip(self, step: int, row: dict[str, float], norms: Params) -> None:
        by_layer = {"/".join(map(str, path)): np.asarray(value).tolist() for path, value in _paths(jax.device_get(norms))}
        self.log.event(
            step,
            "skip",
            f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}; the update was skipped ({self._skips} in a row)",
            documents=self.documents(step - 1),
            gradient_norms=by_layer,
        )
        if self._skips > self.config.max_skips:
            message = (
                f"{self._skips} updates in a row were not finite (train.max_skips={self.config.max_skips}); "
                f"the last good checkpoint is step {self.checkpoints.latest()}"
            )
            self.log.event(step, "stop", message)
            raise NotFiniteError(message)

    def _check_first_loss(self, loss: float) -> None:
        if self.num_outputs is None:
            return
        expected = math.log(self.num_outputs)
        far = abs(loss - expected) > 0.1 * expected + 0.2
        note = "; far from it: look at the initialisation or the data" if far else ""
        message = f"loss before training {loss:.3f}, a uniform guess gives {expected:.3f}{note}"
        self.log.event(1, "first_loss", message, loss=loss, expected=expected, far=far)


class Meter:
    """Measures training time: `wall` includes everything, a `lap` leaves out what ran under `pause`."""

    def __init__(self, step: int, wall: float):
        self.waited = 0.0
        self._start = time.perf_counter() - wall
        self._lap_step, self._lap_start = step, time.perf_counter()

    def wall(self) -> float:
        """Seconds since the run began, earlier attempts included."""
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What runs inside does not count in the lap."""
        start = time.perf_counter()
        yield
        self._lap_start += time.perf_counter() - start

    def lap(self, step: int) -> tuple[int, float, float]:
        """(steps, seconds, share of them spent waiting for input) since the last lap."""
        now = time.perf_counter()
        steps, seconds, waited = step - self._lap_step, max(now - self._lap_start, 1e-9), self.waited
        self._lap_step, self._lap_start, self.waited = step, now, 0.0
        return steps, seconds, min(waited / seconds, 1.0)


def _paths(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from (((name, *path), leaf) for path, leaf in _paths(value))
        else:
            yield (name,), value


def _check_named(field: str, metric: str | None, scores: dict[str, float]) -> None:
    """Raises `ConfigError` where the eval of a metric ran and has no such score."""
    found = [] if metric is None else [name for name in scores if name.split("/")[0] == metric.split("/")[0]]
    if found and metric not in found:
        raise ConfigError(f"{field}={metric!r} is no score of that eval, which has {', '.join(found)}")
