"""The record of a run: metrics.jsonl (the source of truth), samples.jsonl, TensorBoard events and the console.

Every row of metrics.jsonl is a JSON object with "kind" ("train", "eval" or "event"), "step", "attempt" (0, 1, ...: one
more with each start of the run), "wall" (seconds since the run's start, summed over attempts) and "tokens" (seen so
far). Numbers that are not finite, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity"; `read_metrics`
turns those of train and eval rows back into floats.
"""

import contextlib
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TextIO

from lm_jax.core.errors import StorageError
from lm_jax.core.files import fsync_dir
from lm_jax.train.console import Console
from lm_jax.train.rows import AppendFile, Row, read_metrics
from lm_jax.train.tensorboard import EventFile

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Writes the record of one attempt at a run of `total_steps` steps into `workdir`. A context manager.

    A row is in the file (not yet on the disk: see `flush`) when its method returns. Not `enabled` (every process but
    the first) it does nothing. `stream` is where the console goes, by default standard output. Thread-safe. Leaving the
    context with an exception records the event "failed".

    Raises (every method): StorageError when a file cannot be written. Trouble with the console is an event, no error.
    """

    def __init__(self, workdir: Path, attempt: int, total_steps: int, *, enabled: bool = True, stream: TextIO | None = None):
        self._enabled, self._attempt = enabled, attempt
        self._lock = threading.RLock()
        if not enabled:
            return
        self._past = read_metrics(workdir)
        self._set_clock(0, 0, 0.0)
        with contextlib.ExitStack() as opened:
            self._metrics = opened.enter_context(contextlib.closing(AppendFile(workdir / "metrics.jsonl")))
            self._samples = opened.enter_context(contextlib.closing(AppendFile(workdir / "samples.jsonl")))
            for file in (self._metrics, self._samples):
                file.end_line()
            self._tensorboard = opened.enter_context(contextlib.closing(EventFile(workdir / "tensorboard", attempt)))
            fsync_dir(workdir)
            self._files = opened.pop_all()
        self._console = Console(total_steps, stream or sys.stdout)
        self._console_lost = False
        self._sample_index = (0, 0)  # step, samples written at it

    def train(self, step: int, row: dict[str, float]) -> None:
        """Records a training step: `row` has loss, grad_norm, ..., and "wall" and "tokens" if the caller knows them."""
        if not self._enabled:
            return
        with self._lock:
            full = self._row("train", step, row)
            self._set_clock(step, full["tokens"], full["wall"])
            self._metrics.write_row(full)
            self._tensorboard.scalars("train", step, row)
            self._console.progress(step, full)
            self._report_console()

    def eval(self, step: int, name: str, row: dict[str, float]) -> None:
        """Records the scores of the eval `name` on the parameters after `step` steps."""
        if not self._enabled:
            return
        with self._lock:
            self._metrics.write_row(self._row("eval", step, {"eval": name} | row))
            self._tensorboard.scalars(name, step, row)
            scores = "  ".join(f"{key} {value:.6g}" for key, value in row.items())
            self._say(f"{name} at step {step:,}: {scores}", "bold")

    def event(self, step: int | None, event: str, message: str, **fields: Any) -> None:
        """Records that something happened at `step` (None: the last one known). `fields` are JSON values.

        The events "start" (from nothing) and "resume" (from the checkpoint of `step`) say where an attempt begins:
        what earlier attempts recorded beyond that step is superseded.
        """
        if not self._enabled:
            return
        with self._lock:
            step = self._step if step is None else step
            if event in ("start", "resume"):
                self._rewind(step)
            self._metrics.write_row(self._row("event", step, {"event": event, "message": message, "time": _now(), **fields}))
            if event in ("start", "resume"):
                self._tensorboard.forget_after(step)
            self._say(f"{event}: {message}", "dim")

    def sample(self, step: int, prompt: str, text: str, **fields: Any) -> None:
        """Records `text`, the model's continuation of `prompt` (sampling settings in `fields`)."""
        if not self._enabled:
            return
        with self._lock:
            last_step, index = self._sample_index
            self._sample_index = (step, index + 1 if step == last_step else 1)
            self._samples.write_row({"step": step, "attempt": self._attempt, "prompt": prompt, "text": text, **fields})
            self._tensorboard.text(f"samples/{self._sample_index[1]}", step, prompt + text)
            self._say(f"sample at step {step:,}:\n{prompt}{text}\n", "cyan")

    def flush(self, durable: bool = True) -> None:
        """With `durable`, forces everything so far onto the disk; every row is with the operating system already."""
        if self._enabled and durable:
            with self._lock:
                for file in (self._metrics, self._samples, self._tensorboard):
                    file.sync()

    def close(self) -> None:
        """Forces everything onto the disk and closes the files."""
        if not self._enabled:
            return
        with self._lock, self._files:
            self._console.close()
            self._report_console()
            self.flush()
            self._enabled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            with contextlib.closing(self):
                self.event(None, "failed", f"{type(error).__name__}: {error}")
        except StorageError as second:
            error.add_note(str(second))

    def _set_clock(self, step: int, tokens: int, wall: float) -> None:
        """The last known moment of training; rows that lack "tokens" and "wall" count on from here."""
        self._step, self._tokens, self._wall, self._clock = step, tokens, wall, time.monotonic()

    def _rewind(self, step: int) -> None:
        """Sets the clock to what earlier attempts recorded at `step`."""
        past = [row for row in self._past if row["step"] <= step]
        trained = [row for row in past if row["kind"] == "train"]
        tokens = round(trained[-1]["tokens"] * step / trained[-1]["step"]) if trained else 0
        self._set_clock(step, tokens, max((row["wall"] for row in past), default=0.0))
        self._past = []

    def _row(self, kind: str, step: int, row: Row) -> Row:
        """Adds what every row has. Tokens follow from the step, as a batch has a fixed size."""
        tokens = round(self._tokens * step / self._step) if self._step else 0
        wall = round(self._wall + time.monotonic() - self._clock, 3)
        return {"kind": kind, "step": step, "attempt": self._attempt, "wall": wall, "tokens": tokens, **row}

    def _say(self, text: str, style: str) -> None:
        self._console.say(text, style)
        self._report_console()

    def _report_console(self) -> None:
        if self._console.failure is not None and not self._console_lost:
            self._console_lost = True
            message = f"the console cannot be written ({self._console.failure}); training goes on without it"
            self.event(None, "console", message)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
