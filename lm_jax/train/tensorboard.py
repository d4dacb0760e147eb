"""TensorBoard event files without TensorFlow."""

import socket
import struct
import time
from pathlib import Path
from typing import Any

from lm_jax.train.rows import AppendFile


class EventFile:
    """One event file in `directory`, written at once: no queue, and no thread in which an error could get lost.

    Raises StorageError (every method) when the disk fails.
    """

    def __init__(self, directory: Path, attempt: int):
        from tensorboardX import summary  # a third of a second
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._summary, self._proto, self._crc = summary, event_pb2, masked_crc32c
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{attempt}"
        self._file = AppendFile(directory / name)
        self._write(file_version="brain.Event:2")

    def scalars(self, prefix: str, step: int, row: dict[str, float]) -> None:
        """Writes the values of `row` as scalars `prefix/name`."""
        summary = self._summary.Summary
        values = [summary.Value(tag=f"{prefix}/{name}", simple_value=value) for name, value in row.items()]
        self._write(step=step, summary=summary(value=values))

    def text(self, tag: str, step: int, text: str) -> None:
        """Writes `text`, shown as it is: TensorBoard renders Markdown, in which this is a code block."""
        block = "\n".join("    " + line for line in text.encode("utf-8", "replace").decode().split("\n"))
        self._write(step=step, summary=self._summary.text(tag, block))

    def forget_after(self, step: int) -> None:
        """Tells TensorBoard to drop what earlier files hold for later steps."""
        session = self._proto.SessionLog
        self._write(step=step + 1, session_log=session(status=session.START))

    def sync(self) -> None:
        """Forces everything written onto the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        data = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", self._crc(part)) for part in (length, data)]
        self._file.write(length + checks[0] + data + checks[1])
