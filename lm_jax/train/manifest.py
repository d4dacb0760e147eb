"""The manifest of a checkpoint: what it consists of, with the size and SHA-256 of every file.

A checkpoint without a whole manifest does not count. Orbax itself restores a flipped bit silently, so every file is hashed
before it is read (../shared/design/RELIABILITY.md, fact 1).
"""

import concurrent.futures
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from lm_jax.core.files import fsync_dir, sha256, write_atomic

NAME = "MANIFEST.json"
FORMAT = 1


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Hashes every file below `folder`, makes all of it durable, and writes the manifest (last) with `facts` in it."""
    paths = _files(folder)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = threads.map(_durable, paths)
        files = {str(path.relative_to(folder)): facts for path, facts in zip(paths, found, strict=True)}
    for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        fsync_dir(directory)
    manifest = {"format": FORMAT, **facts, "files": files}
    write_atomic(folder / NAME, json.dumps({**manifest, "digest": _digest(manifest)}, indent=1))


def _durable(path: Path) -> dict[str, Any]:
    """Size and hash of a file, once it is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises `ValueError`, saying what is wrong, when it is missing, altered or of another format."""
    path = folder / NAME
    if folder.is_symlink() or not path.is_file() or path.is_symlink():
        raise ValueError(f"{NAME} is missing")
    try:
        manifest = json.loads(path.read_bytes())
        digest = manifest.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{NAME} is not readable") from error
    if digest != _digest(manifest):
        raise ValueError(f"{NAME} does not match its own digest")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{NAME} has format {manifest['format']}, this version of lm_jax reads {FORMAT}")
    return manifest


def check(folder: Path, step: int, *, hashes: bool, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the checkpoint of `step` in `folder`, file by file; empty when nothing is.

    Without `hashes` only names and sizes are compared. `share` (i, n): only the i-th of n parts of the files is hashed.
    """
    try:
        manifest = read(folder)
    except ValueError as error:
        return [str(error)]
    if manifest["step"] != step:
        return [f"{NAME} is that of step {manifest['step']}"]
    expected = manifest["files"]
    there = {str(path.relative_to(folder)): path for path in _files(folder)}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - there.keys())]
    problems += [f"{name} does not belong there" for name in sorted(there.keys() - expected.keys() - {NAME})]
    largest_first = sorted(expected.keys() & there.keys(), key=lambda name: (-expected[name]["size"], name))
    mine = largest_first[share[0] :: share[1]] if hashes else []
    mine = [name for name in mine if not there[name].is_symlink() and there[name].lstat().st_size == expected[name]["size"]]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        hashed = dict(zip(mine, threads.map(lambda name: sha256(there[name]), mine), strict=True))
    for name in sorted(largest_first):
        size = there[name].lstat().st_size
        if there[name].is_symlink():
            problems.append(f"{name} is a link")
        elif size != expected[name]["size"]:
            problems.append(f"{name} has {size} bytes, not {expected[name]['size']}")
        elif hashed.get(name, expected[name]["sha256"]) != expected[name]["sha256"]:
            problems.append(f"{name} does not match its SHA-256")
    return problems


def check_file(folder: Path, name: str) -> str | None:
    """What is wrong with one file of a checkpoint, or with its manifest; None when nothing is."""
    try:
        expected = read(folder)["files"][name]
    except (ValueError, KeyError) as error:
        return str(error)
    path = folder / name
    if path.is_symlink() or not path.is_file():
        return f"{name} is missing"
    return None if sha256(path) == expected["sha256"] else f"{name} does not match its SHA-256"


def _files(folder: Path) -> list[Path]:
    """Regular files below `folder`, in order. A link or device is listed too, so that it fails the check, not followed."""
    found = []
    for root, directories, names in os.walk(folder, followlinks=False):
        paths = [Path(root) / name for name in names + [d for d in directories if (Path(root) / d).is_symlink()]]
        found += [path for path in paths if not stat.S_ISDIR(path.lstat().st_mode)]
    return sorted(found)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
