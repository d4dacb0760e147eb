"""Starting a run from the parameters of another one: what fits is loaded, and the rest is drawn."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm_jax.config import Experiment
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.param import Params
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.parts import Parts, abstract_state, initial_state, replaced
from lm_jax.train.checkpoint import Checkpoints, room
from lm_jax.train.step import TrainState
from lm_jax.word_rows import WordRows, overlaid


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Which parameters were loaded from another run.

    Attributes:
      source: the run and its step.
      fate: for each parameter of either model, by its path: "loaded", "new" (drawn) or "left" (in the other run only); its
        shape; and the shape that it has in the other run where that kept it from being loaded.
    """

    source: str
    fate: dict[str, tuple[str, tuple[int, ...], tuple[int, ...] | None]]

    def paths(self, fate: str) -> list[str]:
        """The parameters that were "loaded", are "new" or were "left"."""
        return [path for path, row in self.fate.items() if row[0] == fate]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.paths(fate))} {fate}" for fate in ("loaded", "new", "left"))
        width = max(map(len, self.fate))
        lines = [f"parameters of {self.source}: {counts}"]
        for path, (fate, shape, other) in self.fate.items():
            note = "" if other is None else f" ({list(other)} there)"
            lines.append(f"  {path:{width}}  {fate:6}  {list(shape)}{note}")
        return "\n".join(lines)


def check_source(experiment: Experiment, parts: Parts, tokenizer: Tokenizer) -> None:
    """Raises `StorageError` where `start_from` holds no checkpoint, `ConfigError` where its tokenizer is not that of the data or
    none of its parameters fits."""
    assert experiment.start_from is not None
    with _checkpoints(experiment) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise StorageError(f"start_from={experiment.start_from} holds no checkpoint; train that run first, or name another")
        if checkpoints.record(step)["tokenizer"] != tokenizer.to_json():
            raise ConfigError(
                f"start_from={experiment.start_from} is a run with another tokenizer, whose tokens its embedding is for; "
                f"use it here too, with data.tokenizer=RunTokenizer(path={experiment.start_from!r})"
            )
        transfer = _transfer(experiment, checkpoints, step, _flat(parts.shapes))[1]
        if not transfer.paths("loaded"):
            raise ConfigError(f"start_from: no parameter of {experiment.start_from} has the path and shape of one here\n{transfer}")
        frozen = {} if parts.optimizer.frozen is None else _flat(parts.optimizer.frozen)
        random = [path for path in transfer.paths("new") if frozen.get(tuple(path.split("/")))]
        if random and experiment.words_from is None:
            raise ConfigError(f"start_from: {', '.join(random)} would be frozen as drawn: the source has no such thing\n{transfer}")


def first_state(
    experiment: Experiment, parts: Parts, mesh: Mesh, key: jax.Array, rows: WordRows | None = None
) -> tuple[TrainState, Transfer | None]:
    """The state before the first step, on the mesh, and what of it is from `start_from` (None where that is None). The `rows` of
    words take the place of what was drawn or loaded.

    Averaged parameters are loaded where the other run has any. Raises `StorageError` where it has no good checkpoint.
    """
    like = abstract_state(experiment, parts, mesh).params
    given, transfer = ({}, None) if experiment.start_from is None else _loaded(experiment, like)
    placed = {} if rows is None else rows.placed(like)

    @jax.jit
    def draw(key: jax.Array, given: Params, placed: Params) -> TrainState:
        return initial_state(experiment, parts, key, lambda params: overlaid(replaced(params, given), placed))

    return draw(key, given, placed), transfer


def _loaded(experiment: Experiment, like: Params) -> tuple[Params, Transfer]:
    mine = _flat(like)
    with _checkpoints(experiment, room(mine)) as checkpoints:
        step = checkpoints.good()
        name, transfer = _transfer(experiment, checkpoints, step, mine)
        fit = set(transfer.paths("loaded"))
        loaded = {path: x for path, x in mine.items() if "/".join(path) in fit}
        return checkpoints.read(step, {name: _nested(loaded)}, partial=True)[name], transfer


def _transfer(
    experiment: Experiment, checkpoints: Checkpoints, step: int, mine: dict[tuple[Any, ...], Any]
) -> tuple[str, Transfer]:
    """Which parameters of the checkpoint are taken, "ema" or "params", and what becomes of them."""
    contents = checkpoints.contents(step)
    name = "ema" if any(path.startswith("ema/") for path in contents) else "params"
    theirs = {path.removeprefix(f"{name}/"): tuple(x.shape) for path, x in contents.items() if path.startswith(f"{name}/")}
    fates = _fates({"/".join(path): x.shape for path, x in mine.items()}, theirs)
    return name, Transfer(f"{experiment.start_from}, step {step}", fates)


def _checkpoints(experiment: Experiment, memory_gb: int | None = None) -> Checkpoints:
    folder = Path(experiment.start_from or "") / "checkpoints"
    return Checkpoints(folder, experiment.checkpoint, read_only=True, memory_gb=memory_gb)


def _fates(mine: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    fates: dict[str, Any] = {}
    for path, shape in mine.items():
        same = theirs.get(path) == shape
        fates[path] = ("loaded" if same else "new", shape, None if same else theirs.get(path))
    return fates | {path: ("left", shape, None) for path, shape in theirs.items() if path not in mine}


def _flat(tree: Params, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, (*path, name)) if isinstance(value, dict) else {(*path, name): value}
    return flat


def _nested(flat: dict[tuple[Any, ...], Any]) -> Params:
    tree: Params = {}
    for (*branch, leaf), value in flat.items():
        functools.reduce(lambda node, name: node.setdefault(name, {}), branch, tree)[leaf] = value
    return tree
