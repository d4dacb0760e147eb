"""A run's page: one HTML file that shows everything worth knowing about a run, opens from disk and needs no network."""

import importlib.resources
import json
import time
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from lm_jax.core.errors import StorageError
from lm_jax.core.files import write_atomic
from lm_jax.study.curves import chart_data, evenly
from lm_jax.study.sections import evals, events, safe, shown, summary, tree, when
from lm_jax.train.console import duration
from lm_jax.train.rows import Row, read_history, read_samples, supersede

_MAX_SAMPLE_CHARACTERS = 400_000
_CSP = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_report(workdir: Path) -> Path:
    """Writes `workdir`/report.html from config.json, versions.json, metrics.jsonl and samples.jsonl; returns its path.

    Works at any time: during a run, after a failed one, on an empty directory. Raises StorageError where `workdir` is
    no directory or cannot be read or written.
    """
    if not workdir.is_dir():
        raise StorageError(f"{workdir} is no directory; give the --workdir of a run")
    path = workdir / "report.html"
    try:
        write_atomic(path, _page(workdir).encode("utf-8", "replace"))
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); make room or give access") from error
    return path


def _page(workdir: Path) -> str:
    history, torn = read_history(workdir)
    rows = supersede(history)
    config, versions = (_read_json(workdir / name) for name in ("config.json", "versions.json"))
    samples = _samples(read_samples(workdir, history))
    title = shown(workdir.resolve().name)
    data = chart_data(rows) | {"samples": samples}
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC from"
    note = f"Unreadable lines of metrics.jsonl, left out: {torn}. " if torn else ""
    note += f"Not drawn: {safe(', '.join(data['not_drawn']))}. " if data["not_drawn"] else ""
    sections = [
        _header(title, workdir, history, versions),
        summary(rows, history, config),
        _CURVES if data["panels"] else "",
        _SAMPLES if samples else "",
        evals(rows),
        events(history, {id(row) for row in rows}),
        tree("Config", config, "config.json", searchable=True),
        tree("Software and devices", versions, "versions.json"),
        f"<footer>{note}{made} <bdi>{safe(workdir)}</bdi></footer>",
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CSP}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_asset("uPlot.min.css")}{_asset("report.css")}</style>
</head>
<body>
{"".join(sections)}
<script type="application/json" id="data">{embed_json(data)}</script>
<script>/*{_asset("uPlot.LICENSE")}*/
{_asset("uPlot.min.js")}</script>
<script>{_asset("report.js")}</script>
</body>
</html>
"""


_CURVES = """<section id="curves"><div class="toolbar">
<h2>Curves</h2>
<span class="choice" role="group" aria-label="horizontal axis">
<button data-axis="step" aria-pressed="true">steps</button><button data-axis="tokens">tokens</button
><button data-axis="wall">time</button></span>
<button data-toggle="logX">log x</button>
<button data-toggle="logY">log loss</button>
<label>smoothing <input type="range" id="smooth" min="0" max="10" step="0.5" value="2"></label>
<button id="reset">reset zoom</button>
<span class="hint">drag to zoom, double-click to reset</span>
</div><div id="marks"></div><div id="panels"><noscript>The curves need JavaScript.</noscript></div></section>
"""

_SAMPLES = """<section id="samples"><div class="toolbar"><h2>Samples</h2>
<button id="earlier" aria-label="earlier samples">&#8592;</button>
<input type="range" id="when" min="0" step="1" aria-label="step">
<button id="later" aria-label="later samples">&#8594;</button>
<output id="at"></output></div><div id="texts"><noscript>The samples need JavaScript.</noscript></div></section>
"""


def embed_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or start another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "&<>\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _header(title: str, workdir: Path, history: list[Row], versions: Any) -> str:
    state, sentence = _status(workdir, history)
    started = next((row.get("time") for row in history if row["kind"] == "event"), None)
    facts = [f"started {when(started)}"] if isinstance(started, str) else []
    attempts = len({row["attempt"] for row in history})
    facts += [f"{attempts} attempts"] if attempts > 1 else []
    command = versions.get("command") if isinstance(versions, dict) else None
    if isinstance(versions, dict):
        facts += [f"{versions['num_devices']} × {versions['device_kind']}"] if "device_kind" in versions else []
        facts += [f"commit {str(versions['git_commit'])[:12]}"] if versions.get("git_commit") else []
    parts = [f'<header><h1><bdi>{escape(title)}</bdi> <span class="status {state}">{state}</span></h1>']
    parts.append(f"<p>{safe(sentence)}</p>" if sentence else "")
    parts.append(f'<p class="facts">{safe(" · ".join(facts))}</p>' if facts else "")
    if command:
        parts.append(f'<p class="command"><button id="copy">copy</button><code>{safe(str(command))}</code></p>')
    return "".join(parts) + "</header>\n"


def _status(workdir: Path, history: list[Row]) -> tuple[str, str]:
    """(a word, a sentence): how the run is doing, from the last event that begins or ends an attempt."""
    events = [row for row in history if row["kind"] == "event"]
    turns = [row for row in events if row["event"] in ("start", "resume", "stop", "preempted", "done", "failed")]
    if not turns:
        return ("running" if history else "empty"), ("" if history else "No metrics have been recorded yet.")
    last = turns[-1]
    if last["event"] == "done":
        stopped = [r["message"] for r in turns if r["event"] == "stop" and r["attempt"] == last["attempt"]]
        return "done", f"{last['message']}{'; stopped early: ' + stopped[-1] if stopped else ''}"
    if last["event"] in ("stop", "preempted", "failed"):
        return {"stop": "stopped"}.get(last["event"], last["event"]), last["message"]
    silent = time.time() - (workdir / "metrics.jsonl").stat().st_mtime
    walls = [row["wall"] for row in history if row["kind"] == "train"][-2:]
    patience = max(120.0, 20 * (walls[-1] - walls[0])) if len(walls) == 2 else 1800.0
    if silent < patience:
        return "running", f"The last row was written {duration(max(silent, 0.0))} before this page."
    return "interrupted", f"No end was recorded; the last row was written {duration(silent)} before this page."


def _samples(rows: list[Row]) -> list[dict[str, Any]]:
    """[{"step", "items": [{"prompt", "text", "note", ...}]}] of evenly spaced steps, within a budget of characters."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        known = ("step", "attempt", "prompt", "text", "reference", "image", "table")
        note = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key not in known and value is not None)
        item = {"prompt": shown(row["prompt"]), "text": shown(row["text"]), "note": shown(note)} | _beside(row)
        by_step.setdefault(row["step"], []).append(item)
    groups = [{"step": step, "items": items} for step, items in by_step.items()]
    size = sum(len(str(value)) for items in by_step.values() for item in items for value in item.values())
    return evenly(groups, max(len(groups) * _MAX_SAMPLE_CHARACTERS // max(size, 1), 2))


def _beside(row: Row) -> dict[str, Any]:
    """What stands beside a text (see `evals.base.Shown`), as far as it can be shown."""
    found: dict[str, Any] = {}
    if isinstance(row.get("reference"), str):
        found["reference"] = shown(row["reference"])
    image, table = row.get("image"), row.get("table")
    if isinstance(image, str) and image.startswith("data:image/png;base64,"):
        found["image"] = image
    if isinstance(table, dict) and all(isinstance(table.get(key), list) for key in ("rows", "columns", "values")):
        names = {key: [shown(str(name)) for name in table[key]] for key in ("rows", "columns")}
        found["table"] = names | {"values": table["values"]}
    return found


def _read_json(path: Path) -> Any:
    """The file's JSON; None where it is not there or is no JSON, which the page then says."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); give access to it") from error


def _asset(name: str) -> str:
    return importlib.resources.files("lm_jax.study").joinpath("assets", name).read_text("utf-8")
