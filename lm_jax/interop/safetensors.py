"""Weights in files of the safetensors format, in one file or several with an index; read by memory map, written as a stream.

The format holds data only. Every file is checked as a whole (by the library `safetensors`) before a tensor is read.
"""

import concurrent.futures
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lm_jax.core.errors import DataError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


class _Place(NamedTuple):
    path: Path
    dtype: Any
    shape: tuple[int, ...]
    offset: int


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a directory by name; each is a read-only view of its file, of which only what is used is read.

    Raises `DataError` for a directory without safetensors, a file that is cut off or not of the format, an index that names
    a file outside the directory or a tensor that is not there, a tensor that stands twice.
    """

    def __init__(self, folder: Path):
        self._places: dict[str, _Place] = {}
        for path in _files(folder):
            for name, place in _read_header(path):
                if name in self._places:
                    raise DataError(f"tensor {name!r} stands in {self._places[name].path.name} and in {path.name}")
                self._places[name] = place
        if (folder / INDEX).is_file():
            missing = sorted(_weight_map(folder / INDEX).keys() - self._places.keys())
            if missing:
                raise DataError(f"{folder / INDEX} names {missing[0]!r}, which is in none of its files")

    def __getitem__(self, name: str) -> np.ndarray:
        """A view of the tensor."""
        path, dtype, shape, offset = self._places[name]
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fadvise"):  # to be read in one piece, whatever the order in which it is used
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), offset, count, os.POSIX_FADV_WILLNEED)
        return np.memmap(path, np.uint8, "r", offset, (count,)).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return self._places[name].shape


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no directory {folder}")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_inside(folder, name) for name in dict.fromkeys(_weight_map(folder / INDEX).values())]
    pickles = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.ckpt")]]
    if pickles:
        raise DataError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code and is not read; convert it where you trust it: "
            "transformers' model.save_pretrained(DIR, safe_serialization=True)"
        )
    raise DataError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def _weight_map(path: Path) -> dict[str, str]:
    try:
        names = json.loads(path.read_text())["weight_map"]
        assert all(isinstance(value, str) for value in names.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(f"{path} is no index of safetensors: {error!r}") from error
    return names


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise DataError(f"{folder / INDEX} names {name!r}: only files of the directory itself are read")
    if not path.is_file():
        raise DataError(f"{folder / INDEX} names {name!r}, which is not there")
    return path


def _read_header(path: Path) -> Iterator[tuple[str, _Place]]:
    import safetensors

    try:
        with safetensors.safe_open(path, "np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise DataError(f"{path.name}: {name!r} is of {entry['dtype']}; weights of {', '.join(DTYPES)} can be read")
        yield name, _Place(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])


class Tensor(NamedTuple):
    """One to be written; `read()` gives its values when their turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write(folder: Path, tensors: Iterable[Tensor], shard_bytes: int) -> list[Path]:
    """Writes the tensors to files of at most `shard_bytes` (or of one tensor), with an index where these are several.

    Two tensors at a time are in memory. Returns the files.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.num_bytes for t in shards[-1]) + tensor.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard)
    if count > 1:
        weight_map = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(t.num_bytes for shard in shards for t in shard)
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    return [folder / name for name in names]


def _write_file(path: Path, tensors: list[Tensor]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _CODES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, values in _read_ahead(tensors):
            assert values.shape == tensor.shape, (tensor.name, values.shape, tensor.shape)
            file.write(values.reshape(-1).view(np.uint8).data)


def _read_ahead(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The tensors with their values; the next one is read while one is written."""
    read = lambda tensor: (tensor, np.asarray(tensor.read(), dtype=tensor.dtype, order="C"))  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        pending = None
        for tensor in tensors:
            done, pending = pending, ahead.submit(read, tensor)
            if done is not None:
                yield done.result()
        if pending is not None:
            yield pending.result()
