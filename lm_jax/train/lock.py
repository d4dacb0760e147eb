"""One run, one process: the lock on a run directory."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from lm_jax.core.errors import StorageError


class RunLock:
    """Holds `workdir`/lock while entered. The kernel frees it when the process ends, however it ends.

    Raises `StorageError` on entering when another process holds it, and says who.
    """

    def __init__(self, workdir: Path, enabled: bool = True):
        self._path, self._enabled = workdir / "lock", enabled
        self._file = None

    def __enter__(self) -> "RunLock":
        if not self._enabled:
            return self
        try:
            file = open(self._path, "a+")
        except OSError as error:
            raise StorageError(f"{self._path.parent} cannot be written ({error.strerror}); take another --workdir") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StorageError(
                f"{self._path.parent} is in use by another run ({holder}); wait for it, stop it, or take another --workdir"
            ) from error
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        self._file = file
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            with contextlib.closing(self._file):
                self._file.truncate(0)
            self._file = None


def _me() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:500],
    }
