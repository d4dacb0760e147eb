"""Checkpoints that can be trusted: Orbax writes the arrays, our own protocol commits them.

    Orbax writes .tmp-N -> record.json -> every file hashed and made durable -> MANIFEST.json -> rename to N -> prune

What is not renamed does not exist; what does not match its manifest is named and passed over.
"""

import concurrent.futures
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.distributed import gather
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.files import fsync_dir, write_json
from lm_jax.train import manifest
from lm_jax.train.faults import fault

# Arrays are stored in pieces of at most so many bytes: who restores a part of one reads little more than that part.
CHUNK = 2**24
# And pieces in files of about so many bytes, each of which is in memory until it is whole.
FILE = 2**26


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig(Config):
    """When to save, and which checkpoints to keep.

    A checkpoint is written every `every` steps (0: only at the end) and always at the end. Kept are the newest
    `keep_latest`, the best `keep_best` by `best_metric` ("eval name/value name"), and every multiple of `keep_every` steps.
    """

    every: int = 1000
    keep_latest: int = 2
    keep_best: int = 0
    best_metric: str = "validation/loss"
    best_mode: str = "min"
    keep_every: int = 0

    def validate(self) -> None:
        """Raises `ConfigError` for numbers out of range or an unknown mode."""
        check_choice("best_mode", self.best_mode, ("min", "max"))
        check_positive(self, "keep_latest")
        for name in ("every", "keep_best", "keep_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")


class Checkpoints:
    """The checkpoints of one run, in `folder`/STEP. A context manager; whoever writes holds the run's lock.

    `on_corrupt(step, problem)` is told of every checkpoint that is passed over. With `memory_gb` at most so many are in flight
    between devices and disk (see `room`), and a save takes as long as the disk; without, all of the state is copied at once.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        *,
        on_corrupt: Callable[[int, str], None] = lambda step, problem: None,
        read_only: bool = False,
        memory_gb: int | None = None,
    ):
        import orbax.checkpoint as ocp  # takes seconds

        self._ocp, self._folder, self._config, self._on_corrupt = ocp, folder.resolve(), config, on_corrupt
        limits = dict.fromkeys(("save_concurrent_gb", "save_device_host_concurrent_gb", "restore_concurrent_gb"), memory_gb)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(**limits))
        self._committer = concurrent.futures.ThreadPoolExecutor(1, "commit")
        self._saving: tuple[int, concurrent.futures.Future] | None = None
        self._first = jax.process_index() == 0
        if not read_only and self._first:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for path in [*self._folder.glob(".tmp-*"), *self._folder.glob(".trash-*")]:
                    shutil.rmtree(path)  # left by a run that died
            except OSError as error:
                raise StorageError(f"{folder} cannot be written ({error.strerror}); take another --workdir") from error

    @property
    def best_metric(self) -> str | None:
        """What the best checkpoints are kept by; None where none are."""
        return self._config.best_metric if self._config.keep_best else None

    def due(self, step: int) -> bool:
        """Whether the config asks for a checkpoint after `step` steps."""
        return self._config.every > 0 and step % self._config.every == 0

    def save(self, step: int, state: Any, record: dict[str, Any], metrics: dict[str, float]) -> None:
        """Starts to save `state` (a pytree of arrays) and the JSON `record`; waits for the save before this one.

        The arrays are copied before this returns, so they may be donated. Raises `StorageError` when the state holds a
        number that is not finite (nothing is written), or when this save or the one before failed.
        """
        self.wait()
        bad = _not_finite(state)
        if bad:
            raise StorageError(f"step {step} was not saved: {bad[0]} is not finite; {self._last_good()}")
        temporary = self._folder / f".tmp-{step:010d}"
        facts = {"step": step, "parent": self.latest(), "metrics": metrics}
        try:
            if self._first:
                if temporary.exists():
                    shutil.rmtree(temporary)
                temporary.mkdir()
            _barrier(f"save-{step}")
            chunked = jax.tree.map(lambda _: self._ocp.SaveArgs(chunk_byte_size=CHUNK), state)
            self._checkpointer.save(
                temporary / "state", args=self._ocp.args.PyTreeSave(state, save_args=chunked, ocdbt_target_data_file_size=FILE)
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = (step, self._committer.submit(self._commit, temporary, record, facts))

    def poll(self) -> None:
        """Raises `StorageError` when the save in flight has failed; costs nothing. Call it at every step."""
        if self._saving is not None and self._saving[1].done():
            self._result()

    def wait(self) -> None:
        """Returns when the save in flight is committed; raises `StorageError` when it failed."""
        if self._saving is None:
            return
        step = self._saving[0]
        try:
            self._result()
        finally:
            self._saving = None
            _barrier(f"commit-{step}")
        if not self._first and not (self._folder / f"{step:010d}").is_dir():
            raise StorageError(f"step {step} could not be saved: process 0 did not commit it; {self._last_good()}")

    def close(self) -> None:
        """Waits for the save in flight and ends the threads."""
        try:
            self.wait()
        finally:
            self._committer.shutdown()
            self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:  # the first error is the one to hear of
            self._committer.shutdown()
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """The steps that have a folder, oldest first, good or not."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit() and path.is_dir())

    def latest(self) -> int | None:
        """The newest step whose manifest is whole and whose files are there with the right sizes; None: there is none."""
        return next((step for step in reversed(self.steps()) if not self.verify(step, hashes=False)), None)

    def verify(self, step: int, *, hashes: bool = True) -> list[str]:
        """What is wrong with the checkpoint of `step`; empty when nothing is.

        With `hashes` every byte is read, once by all processes together, and all must call it.
        """
        if not hashes:
            return manifest.check(self._path(step), step, hashes=False)
        share = jax.process_index(), jax.process_count()
        found = gather(manifest.check(self._path(step), step, hashes=True, share=share))
        return sorted({problem for problems in found for problem in problems})

    def record(self, step: int) -> dict[str, Any]:
        """The record that was saved with `step`, whose file must match its manifest."""
        problem = manifest.check_file(self._path(step), "record.json")
        if problem:
            raise StorageError(f"checkpoint of step {step}: {problem}")
        return json.loads((self._path(step) / "record.json").read_text())

    def restore(self, step: int | None = None, like: Any = None, *, partial: bool = False) -> tuple[int, Any]:
        """(step, state) of the checkpoint of `step`, or of the newest one that is good in every bit.

        `like` is a pytree of ShapeDtypeStructs: arrays come back in its structure, on the shardings that it names (any
        mesh), or as NumPy arrays where it names none; or a function that gives it for the record of the checkpoint that is
        good. None: all of it, as nested dicts and lists of NumPy arrays. With
        `partial` it may name a part of the state only. Raises `StorageError` when there is no good checkpoint, or its arrays
        are not those of `like`.
        """
        step = self.good(step)
        return step, self.read(step, like(self.record(step)) if callable(like) else like, partial=partial)

    def good(self, step: int | None = None) -> int:
        """`step`, or the newest one, whose checkpoint is good in every bit. Raises `StorageError` where there is none."""
        candidates = self.steps()[::-1] if step is None else [step]
        for candidate in candidates:
            problems = self.verify(candidate)
            if not problems:
                return candidate
            self._on_corrupt(candidate, f"checkpoint of step {candidate} is corrupt: {problems[0]}")
            if step is not None:
                there = f"; there are {self.steps()}" if "missing" in problems[0] else ""
                raise StorageError(f"checkpoint of step {step} cannot be used: {problems[0]}{there}")
        raise StorageError(f"{self._folder} holds no good checkpoint (steps seen: {candidates or 'none'})")

    def _path(self, step: int) -> Path:
        names = [path for path in self._folder.glob("*") if path.name.isdigit() and int(path.name) == step]
        return names[0] if names else self._folder / f"{step:010d}"

    def contents(self, step: int) -> dict[str, Any]:
        """What has the shape and dtype of each array of a checkpoint, by its path, such as "params/head/matrix"."""
        return _named(self._checkpointer.metadata(self._path(step) / "state").item_metadata.tree)

    def read(self, step: int, like: Any, *, partial: bool = False) -> Any:
        """The state of a checkpoint that is known to be good; see `restore`."""
        ocp, path = self._ocp, self._path(step) / "state"
        saved = self._checkpointer.metadata(path).item_metadata.tree
        if like is None:
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            return self._checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=arguments))
        _check_same(step, _named(saved), _named(like), partial)
        arguments = jax.tree.map(self._restore_args, like)
        return self._checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=partial)
        )

    def _restore_args(self, x: jax.ShapeDtypeStruct) -> Any:
        if x.sharding is None:
            return self._ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype)
        return self._ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

    def _commit(self, temporary: Path, record: dict[str, Any], facts: dict[str, Any]) -> None:
        self._checkpointer.wait_until_finished()
        if not self._first:
            return
        fault("checkpoint.written")
        write_json(temporary / "record.json", record)
        fault("checkpoint.recorded")
        manifest.write(temporary, facts)
        fault("checkpoint.manifest")
        final = self._folder / temporary.name.removeprefix(".tmp-")
        if final.exists():  # one that did not verify, or the same step again
            final.rename(self._folder / f".trash-{final.name}")
        temporary.rename(final)
        fault("checkpoint.renamed")
        fsync_dir(self._folder)
        self._prune()

    def _prune(self) -> None:
        good = [step for step in self.steps() if not self.verify(step, hashes=False)]
        config = self._config
        keep = set(good[-config.keep_latest :])
        if config.keep_every:
            keep |= {step for step in good if step % config.keep_every == 0}
        if config.keep_best:
            metrics = {step: manifest.read(self._path(step))["metrics"].get(config.best_metric) for step in good}
            scored = [step for step in good if metrics[step] is not None and math.isfinite(metrics[step])]
            best = sorted(scored, key=lambda step: metrics[step], reverse=config.best_mode == "max")
            keep |= set(best[: config.keep_best])
        for step in set(self.steps()) - keep:
            trash = self._folder / f".trash-{self._path(step).name}"
            self._path(step).rename(trash)
            fault("checkpoint.pruned")
            shutil.rmtree(trash)

    def _result(self) -> None:
        assert self._saving is not None
        step, future = self._saving
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def _failed(self, step: int, error: Exception) -> StorageError:
        return StorageError(f"step {step} could not be saved in {self._folder}: {_reason(error)}; {self._last_good()}")

    def _last_good(self) -> str:
        step = self.latest()
        return "there is no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"


def room(state: Any) -> int:
    """The least `memory_gb` with which a pytree of arrays (or of their shapes, with shardings) can be moved a shard at a time."""
    shards = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return 1 + max(shards) // 10**9


def _reason(error: Exception) -> str:
    """What the operating system said, where TensorStore wraps it in the path of every layer; else the first line."""
    match = re.search(r"([^:]+) \[os_error_code", str(error))
    return match[1].strip() if match else str(error).splitlines()[0]


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))


def _not_finite(state: Any) -> list[str]:
    floats = {name: x for name, x in _named(state).items() if jnp.issubdtype(x.dtype, jnp.floating)}
    # One after another: each takes memory, and fake devices of the CPU wait for each other for ever in many small programs at once.
    return [name for name, x in floats.items() if not bool(_all_finite(x))]


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, such as "params/head": the same for a tuple, a named tuple and how Orbax stores them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in p): x for p, x in leaves}


def _check_same(step: int, saved: dict[str, Any], wanted: dict[str, Any], partial: bool) -> None:
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    if not partial:
        problems += [f"{name} is in the checkpoint only" for name in saved if name not in wanted]
    for name in wanted.keys() & saved.keys():
        a, b = saved[name], wanted[name]
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
            problems.append(f"{name} is {a.dtype}{list(a.shape)} in the checkpoint, {b.dtype}{list(b.shape)} here")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise StorageError(f"checkpoint of step {step} is of another model: {'; '.join(sorted(problems)[:3])}{more}")
