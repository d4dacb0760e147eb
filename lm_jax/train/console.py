"""What a person sees while a run trains: one live line on a terminal, plain lines anywhere else.

Console output is a convenience: when it cannot be written (a closed pipe, a full log disk) training goes on without it.
"""

import io
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

# Control characters, and those that reorder a span of text: both can make a terminal show something else than the
# text. And lone surrogates, which cannot be encoded.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with U+FFFD for control characters (terminal escapes, reordering marks); keeps newlines and tabs."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def si(value: float) -> str:
    """Three significant digits with an SI prefix: 12345 -> "12.3k"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{prefix}" if abs(value) < 999.5 * factor else f"{value / factor:.0f}{prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "2 min 31 s", "3 h 05 min" or "2 d 04 h"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    units = ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s"))
    large, small, large_name, small_name = next(unit for unit in units if whole >= unit[0])
    return f"{whole // large} {large_name} {whole % large // small:02d} {small_name}"


class Console:
    """Progress of one attempt at a run of `total_steps` steps, on `stream`.

    On a terminal the progress is one live line and everything else stands above it. Otherwise progress is a line at
    most every `line_every` seconds. `failure` says why writing stopped; None while it works.
    """

    def __init__(self, total_steps: int, stream: TextIO, line_every: float = 10.0):
        self.failure: str | None = None
        self._total, self._stream, self._line_every = total_steps, stream, line_every
        self._first: tuple[int, float] | None = None
        self._printed = -float("inf")
        self._live: Any = None
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            self._guard(self._start_live)

    def progress(self, step: int, row: dict[str, Any]) -> None:
        """Shows a train row (of MetricsLog.train) as the state of the run."""
        line = self._describe(step, row)
        pause = self._line_every if self._live is None else 0.1
        if step < self._total and time.monotonic() - self._printed < pause:
            return
        self._printed = time.monotonic()
        if self._live is None:
            self.say(line)
        else:
            self._guard(lambda: self._live.update(_bar(step, self._total, line), refresh=True))

    def say(self, text: str, style: str = "") -> None:
        """Prints lines that stay. `style` is one of rich, used on a terminal only."""
        encoding = self._stream.encoding or "utf-8"
        text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        if self._live is not None:
            self._guard(lambda: self._print_above(text, style))
        else:
            self._guard(lambda: self._print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n"))

    def close(self) -> None:
        """Leaves the last progress line standing."""
        if self._live is not None:
            self._guard(self._live.stop)

    def _describe(self, step: int, row: dict[str, Any]) -> str:
        parts = [f"step {step:,}/{self._total:,}"]
        if "loss" in row:
            parts.append(f"loss {row['loss']:.4f}")
        if "tokens_per_second" in row:
            parts.append(f"{si(row['tokens_per_second'])} tokens/s")
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.1%}")
        self._first = self._first or (step, row["wall"])
        first_step, first_wall = self._first
        if step > first_step:  # the first row's time is mostly compilation; what follows includes evals and saves
            left = (self._total - step) * (row["wall"] - first_wall) / (step - first_step)
            parts.append(f"{duration(left)} left" if step < self._total else f"{duration(row['wall'])} in all")
        return "  ".join(parts)

    def _start_live(self) -> None:
        from rich.console import Console as RichConsole  # a quarter of a second, for terminals only
        from rich.live import Live

        class Terminal(RichConsole):
            def on_broken_pipe(self) -> None:
                raise  # the BrokenPipeError it was called for; rich itself would end the process

        live = Live(console=Terminal(file=self._stream), auto_refresh=False)
        live.start()
        self._live = live

    def _print_above(self, text: str, style: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text, style), soft_wrap=True)  # Text: no markup, emoji codes or highlighting

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _guard(self, write: Callable[[], None]) -> None:
        """Runs `write`; on the first failure gives the console up for good."""
        if self.failure is not None:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: "I/O operation on closed file"
            self.failure = str(error)
            self._give_up()

    def _give_up(self) -> None:
        """Sends what is still buffered nowhere; left there, it would end Python with exit code 120."""
        if not self._stream.closed:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if self._live is not None:
            self._live.console.file = io.StringIO()
            self._live.stop()  # gives sys.stdout and sys.stderr back
            self._live = None


def _bar(step: int, total: int, line: str) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=24)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row(ProgressBar(total=max(total, 1), completed=step, width=24), Text(line))
    return grid
