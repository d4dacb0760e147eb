"""The record of a run: metrics.jsonl, samples.jsonl, TensorBoard events and the console."""

import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.errors import StorageError
from lm_jax.train.console import Console, duration, printable, si
from lm_jax.train.logging import MetricsLog, read_metrics
from lm_jax.train.rows import read_history, read_rows, read_samples

ALWAYS = {"kind", "step", "attempt", "wall", "tokens"}


def write_rows(workdir, rows):
    lines = [json.dumps({"attempt": 0, "wall": 0.0, "tokens": 0} | row) for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def train_row(step, **values):
    return {"loss": 2.0, "wall": 0.5 * step, "tokens": 100 * step} | values


def test_rows_carry_what_every_row_has(tmp_path):
    with MetricsLog(tmp_path, 3, 20, stream=io.StringIO()) as log:
        log.event(0, "start", "10 parameters", num_params=10)
        log.train(10, train_row(10, grad_norm=0.3))
        log.eval(10, "validation", {"loss": 1.5, "num_tokens": 7})
        log.event(None, "compile", "compiled", seconds=1.5)
        log.eval(12, "validation", {"loss": 1.4})
        log.flush(durable=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["event", "train", "eval", "event", "eval"]
    assert all(row.keys() >= ALWAYS and row["attempt"] == 3 for row in rows)
    assert rows[1] | {"grad_norm": 0.3, "wall": 5.0, "tokens": 1000} == rows[1]
    assert (rows[2]["eval"], rows[2]["loss"], rows[2]["tokens"]) == ("validation", 1.5, 1000)
    assert 5.0 <= rows[2]["wall"] < 35.0  # the clock went on from the train row's
    assert (rows[3]["event"], rows[3]["step"], rows[3]["seconds"]) == ("compile", 10, 1.5)
    assert rows[4]["tokens"] == 1200


def test_numbers_that_are_not_finite_stay_valid_json_and_come_back(tmp_path):
    with MetricsLog(tmp_path, 0, 5, stream=io.StringIO()) as log:
        log.train(1, train_row(1, loss=math.nan, grad_norm=math.inf, z_loss=-math.inf))
        log.event(1, "skip", "NaN", gradient_norms={"a": [1.0, math.nan]})

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    train, event = (json.loads(line, parse_constant=refuse) for line in lines)
    assert (train["loss"], train["grad_norm"], train["z_loss"]) == ("NaN", "Infinity", "-Infinity")
    assert event["gradient_norms"] == {"a": [1.0, "NaN"]}
    train, event = read_metrics(tmp_path)
    assert math.isnan(train["loss"]) and train["grad_norm"] == math.inf and train["z_loss"] == -math.inf
    assert event["message"] == "NaN"


def test_nothing_is_written_by_other_processes(tmp_path):
    with MetricsLog(tmp_path / "run", 0, 5, enabled=False) as log:
        log.event(0, "start", "")
        log.train(1, {"loss": 1.0})
        log.eval(1, "validation", {"loss": 1.0})
        log.sample(1, "a", "b")
        log.flush(durable=True)
    assert not (tmp_path / "run").exists()


def test_reader_keeps_the_training_that_stands(tmp_path):
    def event(attempt, step, name):
        return {"kind": "event", "event": name, "message": "", "step": step, "attempt": attempt}

    def train(attempt, step):
        return {"kind": "train", "step": step, "attempt": attempt}

    def evaluation(attempt, step, name):
        return {"kind": "eval", "eval": name, "step": step, "attempt": attempt}

    write_rows(
        tmp_path,
        [
            event(0, 0, "start"), train(0, 10), train(0, 20), evaluation(0, 20, "validation"),
            event(0, 20, "checkpoint"), train(0, 30), event(0, 30, "skip"), train(0, 40),
            evaluation(0, 40, "validation"), event(1, 20, "resume"), evaluation(1, 20, "test"), train(1, 30),
            event(2, 20, "resume"), evaluation(2, 20, "validation"), event(2, 20, "skip"), event(2, 20, "skip"),
        ],
    )  # fmt: skip
    kept = [(r["kind"], r.get("eval") or r.get("event"), r["step"], r["attempt"]) for r in read_metrics(tmp_path)]
    assert kept == [
        ("event", "start", 0, 0),
        ("train", None, 10, 0),
        ("train", None, 20, 0),
        ("eval", "validation", 20, 2),
        ("event", "checkpoint", 20, 0),
        ("event", "resume", 20, 2),
        ("eval", "test", 20, 1),
        ("event", "skip", 20, 2),
        ("event", "skip", 20, 2),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=6))
def test_reader_agrees_with_a_run_that_forgets_what_it_redoes(attempts):
    """The rows of a run that crashes at will are those of a notebook whose pages beyond the checkpoint are torn out."""
    rows, notebook, reached = [], {}, 0
    for attempt, (resume, length, torn) in enumerate(attempts):
        begin = min(resume, reached) if attempt else 0
        rows.append({"kind": "event", "event": "resume", "message": "", "step": begin, "attempt": attempt})
        notebook = {step: value for step, value in notebook.items() if step <= begin}
        for step in range(begin + 1, begin + length + 1):
            rows.append({"kind": "train", "step": step, "attempt": attempt, "loss": attempt + step / 100})
            notebook[step] = attempt + step / 100
        if torn:
            rows.append(None)
        reached = begin + length
    with tempfile.TemporaryDirectory() as folder:
        text = ""
        for row in rows:
            text += json.dumps({"wall": 0, "tokens": 0} | row) + "\n" if row else '{"kind": "train", "st\n'
        Path(folder, "metrics.jsonl").write_text(text)
        read = [row for row in read_metrics(Path(folder)) if row["kind"] == "train"]
    assert [(row["step"], row["loss"]) for row in read] == sorted(notebook.items())


def test_torn_last_line_is_left_out_and_the_next_attempt_starts_a_line(tmp_path):
    with MetricsLog(tmp_path, 0, 5, stream=io.StringIO()) as log:
        log.train(1, train_row(1))
        log.train(2, train_row(2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-25])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    with MetricsLog(tmp_path, 1, 5, stream=io.StringIO()) as log:
        log.event(1, "resume", "")
        log.train(2, train_row(2, loss=1.0))
    history, torn = read_history(tmp_path)
    assert torn == 1 and len(history) == 3
    assert [(row["kind"], row["step"]) for row in read_metrics(tmp_path)] == [("train", 1), ("event", 1), ("train", 2)]


@pytest.mark.parametrize("line", [b"\x00" * 40, b"5", b"[1]", b"\xff\xfe", b'{"kind": "train"}', b"[" * 100_000])
def test_what_is_no_row_is_left_out(tmp_path, line):
    write_rows(tmp_path, [{"kind": "train", "step": 1, "loss": 1.0}])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n" + b'{"kind":"train","step":' + b"9" * 400 + b',"attempt":0,"wall":0,"tokens":0}\n')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_no_file_means_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
    assert read_samples(tmp_path, []) == []


def test_resume_goes_on_with_the_clock_and_the_tokens_of_the_checkpoint(tmp_path):
    with MetricsLog(tmp_path, 0, 40, stream=io.StringIO()) as log:
        log.event(0, "start", "")
        for step in (10, 20, 30):
            log.train(step, train_row(step, wall=1000.0 * step))
    with MetricsLog(tmp_path, 1, 40, stream=io.StringIO()) as log:
        log.event(20, "resume", "")
        log.eval(24, "validation", {"loss": 1.0})
    resume, evaluation = read_metrics(tmp_path)[-2:]
    assert resume["tokens"] == 2000 and 20_000 <= resume["wall"] < 20_100
    assert evaluation["tokens"] == 2400 and 20_000 <= evaluation["wall"] < 20_100


def test_samples_follow_the_training_that_stands(tmp_path):
    for attempt, begin, steps in ((0, 0, (10, 20, 30)), (1, 20, (30,))):
        with MetricsLog(tmp_path, attempt, 40, stream=io.StringIO()) as log:
            log.event(begin, "resume" if begin else "start", "")
            for step in steps:
                log.sample(step, "中文 ", f"text {attempt} \ud800\n", temperature=0.8, top_k=None)
    samples = read_samples(tmp_path, read_history(tmp_path)[0])
    assert [(s["step"], s["text"]) for s in samples] == [
        (10, "text 0 \ud800\n"),
        (20, "text 0 \ud800\n"),
        (30, "text 1 \ud800\n"),
    ]
    assert samples[0] | {"prompt": "中文 ", "temperature": 0.8, "top_k": None} == samples[0]
    assert "中文" in (tmp_path / "samples.jsonl").read_text("utf-8")


def read_events(folder):
    """(file order) events of all files, by the framing of TFRecord files."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        crc = crc32c(data) & 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name.rpartition(".")[2]):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
            events.append(Event.FromString(body))
            data = data[16 + length :]
    return events


def test_tensorboard_events_can_be_read(tmp_path):
    with MetricsLog(tmp_path, 0, 40, stream=io.StringIO()) as log:
        log.train(10, {"loss": 1.25, "grad_norm": math.nan})
        log.eval(10, "validation", {"loss": 1.5})
        log.sample(10, "# <b>", "x\n  y")
    with MetricsLog(tmp_path, 1, 40, stream=io.StringIO()) as log:
        log.event(10, "resume", "")
    first, train, evaluation, sample, second, resume = read_events(tmp_path / "tensorboard")
    assert first.file_version == second.file_version == "brain.Event:2"
    assert train.step == 10 and {v.tag: v.simple_value for v in train.summary.value}["train/loss"] == 1.25
    assert [(v.tag, v.simple_value) for v in evaluation.summary.value] == [("validation/loss", 1.5)]
    assert sample.summary.value[0].tensor.string_val[0] == b"    # <b>x\n      y"  # code block: markup is shown
    assert (resume.step, resume.session_log.status) == (11, resume.session_log.START)


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path):
    log = MetricsLog(tmp_path, 0, 5, stream=io.StringIO())
    log._metrics._file.close()
    log._metrics._file = open("/dev/full", "ab", buffering=0)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
        log.train(1, train_row(1))
    with pytest.raises(RuntimeError, match="the real reason") as caught, log:
        raise RuntimeError("the real reason")
    assert "metrics.jsonl cannot be written" in caught.value.__notes__[0]


def test_a_workdir_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be read"):
        MetricsLog(tmp_path / "file" / "run", 0, 5, stream=io.StringIO())


def test_a_failure_is_recorded(tmp_path):
    with pytest.raises(ZeroDivisionError), MetricsLog(tmp_path, 0, 5, stream=io.StringIO()) as log:
        log.train(3, train_row(3))
        _ = 1 / 0
    row = read_metrics(tmp_path)[-1]
    assert (row["event"], row["step"], row["message"]) == ("failed", 3, "ZeroDivisionError: division by zero")


PROGRAM = """
import sys
from pathlib import Path
from lm_jax.train.logging import MetricsLog
with MetricsLog(Path(sys.argv[1]), 0, 500) as log:
    log.event(0, "start", "begin")
    for step in range(1, 501):
        row = {"loss": 1.0, "wall": step * 1.0, "tokens": step * 10, "tokens_per_second": 12345.0, "mfu": 0.381}
        log.train(step, row)
    log.eval(500, "validation", {"loss": 1.5})
    log.sample(500, "ROMEO:", " \\x1b]0;title\\x07 [bold]:smile:\\u202e \\udc80 end")
    log.event(500, "done", "end")
print("after")
"""


def run_program(workdir, stdout, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(workdir)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("kind", ["closed pipe", "full disk"])
def test_a_lost_console_neither_ends_nor_fails_training(tmp_path, kind):
    if kind == "full disk":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    result = run_program(tmp_path, stdout)
    os.close(stdout)
    assert (result.returncode, result.stderr) == (0, b"")
    rows = read_metrics(tmp_path)
    assert len([row for row in rows if row["kind"] == "train"]) == 500
    assert [row["event"] for row in rows if row["kind"] == "event"] == ["start", "console", "done"]


def test_plain_lines_in_a_file(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        result = run_program(tmp_path / "run", file, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    text = (tmp_path / "log").read_text("ascii")
    lines = text.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ start: begin", lines[0])
    assert lines[1].endswith("step 1/500  loss 1.0000  12.3k tokens/s  MFU 38.1%")
    assert len([line for line in lines if "step 1" in line]) == 1  # then every ten seconds, and the last
    assert any("step 500/500" in line and "8 min 20 s in all" in line for line in lines)
    assert any("validation at step 500: loss 1.5" in line for line in lines)
    assert "\x1b" not in text and lines[-1] == "after"


def read_terminal(reader):
    """Yields what is written to a terminal until its other side is closed."""
    while True:
        try:
            yield os.read(reader, 1 << 16)
        except OSError:  # EIO: closed
            return


def test_one_live_line_on_a_terminal(tmp_path):
    reader, terminal = pty.openpty()
    chunks = []
    thread = threading.Thread(target=lambda: chunks.extend(read_terminal(reader)))
    thread.start()
    result = run_program(tmp_path, terminal, TERM="xterm-256color", COLUMNS="120")
    os.close(terminal)
    thread.join()
    os.close(reader)
    output = b"".join(chunks).decode("utf-8")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "\x1b]0;" not in output and "\x07" not in output and "\u202e" not in output
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert "ROMEO: \ufffd]0;title\ufffd [bold]:smile:\ufffd \ufffd end" in plain
    assert "step 1/500  loss 1.0000  12.3k tokens/s  MFU 38.1%" in plain
    assert "step 500/500  loss 1.0000  12.3k tokens/s  MFU 38.1%  8 min 20 s in all" in plain
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1  # the cursor is hidden, and comes back


class LostTerminal(io.StringIO):
    """A terminal that goes away."""

    gone = False

    def isatty(self):
        return True

    def fileno(self):
        return self.null.fileno()

    def write(self, text):
        if self.gone:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_lost_terminal_does_not_end_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, before = LostTerminal(), sys.stdout
    with open(os.devnull, "wb") as stream.null, MetricsLog(tmp_path, 0, 3, stream=stream) as log:
        log.train(1, train_row(1))
        stream.gone = True
        log.train(2, train_row(2))
        log.train(3, train_row(3))
    assert sys.stdout is before
    assert [row["step"] for row in read_metrics(tmp_path) if row["kind"] == "train"] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(tmp_path) if row.get("event") == "console"] == [3]


def test_time_left_leaves_the_compilation_out():
    stream = io.StringIO()
    console = Console(100, stream, line_every=0.0)
    for step, wall in ((1, 60.0), (11, 70.0), (51, 110.0), (100, 200.0)):
        console.progress(step, {"wall": wall})
    ends = [line.split("  ")[-1] for line in stream.getvalue().splitlines()]
    assert ends[1:] == ["1 min 29 s left", "49 s left", "3 min 20 s in all"]


def test_figures_for_people():
    assert [si(x) for x in (0.5, 999, 999.6, 12345, 1.5e6, 2e9, 5.24e11, 3e12)] == [
        "0.5", "999", "1k", "12.3k", "1.5M", "2G", "524G", "3T",
    ]  # fmt: skip
    assert [duration(x) for x in (0.04, 9.94, 9.96, 59.4)] == ["0.0 s", "9.9 s", "10 s", "59 s"]
    assert [duration(x) for x in (59.6, 61, 3600)] == ["1 min 00 s", "1 min 01 s", "1 h 00 min"]
    assert [duration(x) for x in (7380, 90000, 1e6)] == ["2 h 03 min", "1 d 01 h", "11 d 13 h"]


@given(st.text())
def test_printable_text_cannot_command_a_terminal(text):
    shown = printable(text)
    assert all(c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in shown)


@pytest.mark.slow
def test_a_row_costs_little(tmp_path):
    with MetricsLog(tmp_path, 0, 2000, stream=io.StringIO()) as log:
        start = time.perf_counter()
        for step in range(2000):
            log.train(step, train_row(step, **{f"value_{i}": i / 7 for i in range(15)}))
        seconds = (time.perf_counter() - start) / 2000
    assert seconds < 2e-3
    assert len(read_rows(tmp_path / "metrics.jsonl", lambda row: True)[0]) == 2000
