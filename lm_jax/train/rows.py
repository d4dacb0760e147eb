"""JSON lines on disk: appending rows, and reading the ones of a run that stand after crashes and restarts."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lm_jax.core.errors import StorageError

Row = dict[str, Any]

_NAMES = ("kind", "eval", "event", "message")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class AppendFile:
    """A file to which whole records are appended, unbuffered. Every method raises StorageError when the disk fails."""

    def __init__(self, path: Path):
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "a+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, data: bytes) -> None:
        """Appends `data`; it is with the operating system on return."""
        try:
            written = self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error
        if written != len(data):
            raise StorageError(f"{self._path}: the disk is full; free space, then start again to continue")

    def write_row(self, row: Row) -> None:
        """Appends `row` as a line of JSON; floats that are not finite become "NaN", "Infinity", "-Infinity"."""
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
        # A lone surrogate, which UTF-8 lacks, is written as its JSON escape.
        self.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def end_line(self) -> None:
        """Ends a last line that a crash tore, so that the next row stands on a line of its own."""
        try:
            size = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(size - 1, 0))
            torn = self._file.read(1) not in (b"", b"\n")
        except OSError as error:
            raise self._failed(error) from error
        if torn:
            self.write(b"\n")

    def sync(self) -> None:
        """Forces everything written onto the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path} cannot be written ({error.strerror}); make room or give access, then start again to continue"
        )


def read_rows(path: Path, is_row: Callable[[Row], bool]) -> tuple[list[Row], int]:
    """(rows in file order, number of lines that are none: torn by a crash, or refused by `is_row`).

    No file means no rows. Raises StorageError when the file is there and cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); give access to it") from error
    rows, torn = [], 0
    for line in lines:
        if not line.strip(b"\r\x00 "):
            continue
        row = _parse(line)
        if isinstance(row, dict) and is_row(row):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def read_history(workdir: Path) -> tuple[list[Row], int]:
    """(every row of metrics.jsonl in the order written, number of unreadable lines)."""
    rows, torn = read_rows(workdir / "metrics.jsonl", _is_metric)
    for row in rows:
        if row["kind"] != "event":
            for key, value in row.items():
                if isinstance(value, str) and key not in _NAMES:
                    row[key] = _NOT_FINITE.get(value, value)
    return rows, torn


def read_metrics(workdir: Path) -> list[Row]:
    """The rows of metrics.jsonl that stand, ordered by step; [] where there is none.

    Where an attempt went on from step s, rows that earlier attempts wrote beyond s are dropped: that training was
    redone. Of what still occurs twice the last attempt's stands, per kind, name (of an eval or event) and step. Lines
    that are no whole row (torn by a crash) are left out.
    """
    return supersede(read_history(workdir)[0])


def supersede(history: list[Row]) -> list[Row]:
    """What `read_metrics` keeps of `read_history`."""
    limits = attempt_limits(history)
    kept: dict[tuple[str, Any, int], list[Row]] = {}
    for row in history:
        if row["step"] > limits[row["attempt"]]:
            continue
        key = (row["kind"], row["kind"] == "train" or row[row["kind"]], row["step"])
        twins = kept.setdefault(key, [])
        if row["kind"] != "event" or (twins and twins[0]["attempt"] < row["attempt"]):
            twins.clear()  # an attempt may have several events of one name at a step
        twins.append(row)
    return sorted((row for twins in kept.values() for row in twins), key=lambda row: row["step"])


def attempt_limits(history: list[Row]) -> dict[int, float]:
    """Attempt -> the last step whose rows no later attempt redid; infinity for the newest."""
    begins: dict[int, int] = {}
    for row in history:
        if row["kind"] == "event" and row["event"] in ("start", "resume"):
            begins.setdefault(row["attempt"], row["step"])
    limits, limit = {}, math.inf
    for attempt in sorted({row["attempt"] for row in history}, reverse=True):
        limits[attempt] = limit
        limit = min(limit, begins.get(attempt, math.inf))
    return limits


def read_samples(workdir: Path, history: list[Row]) -> list[Row]:
    """The rows of samples.jsonl that stand, by the rule of `read_metrics`, ordered by step."""
    limits = attempt_limits(history)
    rows, _ = read_rows(workdir / "samples.jsonl", _is_sample)
    rows = [row for row in rows if row["step"] <= limits.get(row["attempt"], math.inf)]
    newest: dict[int, int] = {}
    for row in rows:
        newest[row["step"]] = max(row["attempt"], newest.get(row["step"], 0))
    return sorted((row for row in rows if row["attempt"] == newest[row["step"]]), key=lambda row: row["step"])


def _is_metric(row: Row) -> bool:
    numbers = all(_is_number(row.get(key)) for key in ("step", "attempt", "wall", "tokens"))
    names = {"train": (), "eval": ("eval",), "event": ("event", "message")}.get(str(row.get("kind")))
    return numbers and names is not None and all(isinstance(row.get(name), str) for name in names)


def _is_sample(row: Row) -> bool:
    numbers = all(_is_number(row.get(key)) for key in ("step", "attempt"))
    return numbers and all(isinstance(row.get(name), str) for name in ("prompt", "text"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line, parse_int=_parse_int)
    except (ValueError, RecursionError):  # torn JSON, bytes that are no UTF-8, nonsense
        return None


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)  # a float cannot overflow what computes with it


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
