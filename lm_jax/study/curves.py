"""The curves of a run's page: which panels it has, thinned to what a screen can show."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_jax.train.console import printable
from lm_jax.train.rows import Row

MAX_POINTS = 2000
_MAX_PANELS = 24
_MAX_MARKS = 500

# Train columns with a panel of their own: (columns, title, unit, format, logarithmic y, smoothed).
_TRAIN_PANELS = (
    (("grad_norm",), "Gradient norm", "", "number", True, True),
    (("learning_rate",), "Learning rate", "", "number", False, False),
    (("tokens_per_second",), "Throughput", "tokens/s", "si", False, True),
    (("mfu", "mfu_causal"), "Model FLOP/s utilisation", "", "percent", False, True),
    (("input_wait",), "Waiting for input", "share of the time", "percent", False, True),
)
_COLUMN_NAMES = {"mfu": "full attention", "mfu_causal": "causal attention"}
_NOT_PLOTTED = ("step", "attempt", "wall", "tokens", "step_time", "loss")
# Eval columns that say the same as the loss, or nothing about quality.
_EVAL_NOT_PLOTTED = ("loss", "perplexity", "bits_per_token", "num_tokens", "step", "attempt", "wall", "tokens")


def chart_data(rows: list[Row]) -> dict[str, Any]:
    """What the page's script draws, as JSON values: {"axis": {step, tokens, wall}, "panels", "marks", "not_drawn"}.

    `rows` are those of `read_metrics`. Every curve is {"name", "kind", "step", "value"}: at most 2,000 points, null
    where a value is not finite. The script finds tokens and seconds of a step by linear interpolation in "axis".
    "not_drawn" names the panels beyond the 24 that a page has room for.
    """
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    panels = [*_loss_panel(train, evals), *_eval_panels(evals), *_train_panels(train)]
    not_drawn = [panel["title"] for panel in panels[_MAX_PANELS:]]
    return {
        "axis": _axis(train or rows),
        "panels": panels[:_MAX_PANELS],
        "marks": _marks(rows),
        "not_drawn": not_drawn,
    }


def _axis(rows: list[Row]) -> dict[str, list[float]]:
    keep = evenly(rows, MAX_POINTS // 2)
    if not keep or keep[0]["step"] > 0:
        keep = [{"step": 0, "tokens": 0, "wall": 0.0}, *keep]
    columns = {"step": np.array([row["step"] for row in keep])}
    for name in ("tokens", "wall"):
        columns[name] = np.maximum.accumulate(np.array([float(row[name]) for row in keep]))
    return {name: [round(float(x), 3) for x in column] for name, column in columns.items()}


def _loss_panel(train: list[Row], evals: list[Row]) -> list[dict[str, Any]]:
    curves = _curve("train", "train", train, "loss")
    for name in _in_order(row["eval"] for row in evals):
        curves += _curve(name, "eval", [row for row in evals if row["eval"] == name], "loss")
    of_tokens = any("perplexity" in row for row in evals)  # else it is of images, utterances, texts, or nobody said
    return _panel("Loss", "nats/token" if of_tokens else "", "number", curves, smooth=True)


def _eval_panels(evals: list[Row]) -> list[dict[str, Any]]:
    panels = []
    for column in _in_order(key for row in evals for key in row):
        curves = []
        for name in _in_order(row["eval"] for row in evals):
            curves += _curve(name, "eval", [row for row in evals if row["eval"] == name], column)
        if column not in _EVAL_NOT_PLOTTED:
            panels += _panel(_title(column), "", "number", curves)
    return panels


def _train_panels(train: list[Row]) -> list[dict[str, Any]]:
    panels, known = [], set(_NOT_PLOTTED)
    for columns, title, unit, style, log, smooth in _TRAIN_PANELS:
        curves = [c for column in columns for c in _curve(_COLUMN_NAMES.get(column, "train"), "train", train, column)]
        panels += _panel(title, unit, style, curves, log=log, smooth=smooth)
        known |= set(columns)
    for column in _in_order(key for row in train[:100] + train[-100:] for key in row):
        if column not in known:
            panels += _panel(_title(column), "", "number", _curve("train", "train", train, column), smooth=True)
    return panels


def _panel(
    title: str, unit: str, style: str, curves: list[dict[str, Any]], *, log: bool = False, smooth: bool = False
) -> list[dict[str, Any]]:
    """[the panel], or [] when there is nothing to draw."""
    panel = {"title": title, "unit": unit, "format": style, "log": log, "smooth": smooth, "curves": curves}
    return [panel] if curves else []


def _curve(name: str, kind: str, rows: list[Row], column: str) -> list[dict[str, Any]]:
    """[the curve of a column], or [] when no row has a number there."""
    points = [(row["step"], row[column]) for row in rows if isinstance(row.get(column), int | float)]
    if not points:
        return []
    step, value = (np.array(x, dtype=np.float64) for x in zip(*points, strict=True))
    curve = {"name": _label(name), "kind": kind} | _json_points(*thin(step, value))
    if kind == "train" and len(step) > MAX_POINTS:
        curve["mean"] = _json_points(*bucket_means(step, value))
    return [curve]


def _buckets(size: int) -> np.ndarray:
    """Bounds of MAX_POINTS / 2 - 1 nearly equal runs of indices."""
    return np.linspace(0, size, MAX_POINTS // 2).astype(int)


def thin(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 2,000 of the points [n]: first, last, smallest and largest value of each of 999 runs of points."""
    if len(step) <= MAX_POINTS:
        return step, value
    bounds = _buckets(len(step))
    keep = {0, len(step) - 1}
    low, high = np.where(np.isfinite(value), value, np.inf), np.where(np.isfinite(value), value, -np.inf)
    for start, stop in itertools.pairwise(bounds):
        keep |= {start + int(np.argmin(low[start:stop])), start + int(np.argmax(high[start:stop]))}
    index = np.array(sorted(keep))
    return step[index], value[index]


def bucket_means(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean step and mean finite value (NaN where there is none) of each of 999 runs of the points [n]."""
    starts = _buckets(len(step))[:-1]
    finite = np.isfinite(value)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(finite, value, 0.0), starts)
    steps = np.add.reduceat(step, starts) / np.diff(np.append(starts, len(step)))
    return steps, np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _json_points(step: np.ndarray, value: np.ndarray) -> dict[str, list[float | None]]:
    values = [float(f"{x:.6g}") if math.isfinite(x) else None for x in value.tolist()]
    return {"step": [int(x) if x.is_integer() else round(x, 1) for x in step.tolist()], "value": values}


def _marks(rows: list[Row]) -> dict[str, list[int]]:
    """Steps at which updates were skipped, training was resumed and checkpoints were saved."""
    steps = {
        name: [row["step"] for row in rows if row["kind"] == "event" and row["event"] == name]
        for name in ("skip", "resume", "checkpoint")
    }
    return {name: evenly(values, _MAX_MARKS) for name, values in steps.items()}


def evenly(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _title(column: str) -> str:
    return _label(column).replace("_", " ").capitalize()


def _label(name: str) -> str:
    return printable(name[:80])
