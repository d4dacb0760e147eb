"""SIGTERM means: save and go, to be started again."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Says when to stop. While entered, SIGTERM and SIGINT ask the run to stop after the step it is at.

    With one process the signals set a flag. With several, `jax.distributed` watches SIGTERM itself (no Python handler may be
    put over it) and all processes are told the same step, whichever of them got the signal. A second SIGINT interrupts at
    once.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked.set()

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer on all processes. Called once for every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
