"""A run's page: what is in it, that it cannot be attacked by what a run contains, and that it stays small."""

import json
import math
import random
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.errors import StorageError
from lm_jax.study.curves import MAX_POINTS, bucket_means, chart_data, thin
from lm_jax.study.report import embed_json, write_report

PAYLOADS = [
    "</script><img src=x onerror=alert(1)>",
    "<script>document.title='pwned'</script>",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    '"><iframe src="https://example.com">',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</title><base href=https://example.com>",
    "<a href=javascript:alert(1)>x</a>",
    "\x1b]0;pwned\x07\x1b[2J",
    "\u202egnp.exe\u2066 \u200fאבג",
    "\u2028\u2029 </SCRIPT ><math><mi xlink:href=data:x>",
    "&lt;b&gt; &#60;script&#62; \x00 \ud800",
    "${alert(1)} {{7*7}} `alert(1)`",
]


class Page(HTMLParser):
    """The elements, attributes and script texts of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.text, self._open = [], [], [], "", None
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open is None:
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def write_run(workdir, rows, samples=(), config=None, versions=None):
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"attempt": 0, "wall": 0.0, "tokens": 0} | row) for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    (workdir / "samples.jsonl").write_text("".join(json.dumps({"attempt": 0} | s) + "\n" for s in samples))
    for name, value in (("config.json", config), ("versions.json", versions)):
        if value is not None:
            (workdir / name).write_text(json.dumps(value))
    return workdir


def train_row(step, **values):
    return {"kind": "train", "step": step, "wall": 0.1 * step, "tokens": 64 * step, "loss": 4 / step} | values


def eval_row(step, loss, **values):
    return {"kind": "eval", "eval": "validation", "step": step, "loss": loss} | values


def event_row(step, event, message="", **values):
    return {"kind": "event", "step": step, "event": event, "message": message} | values


def cards(page):
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", page.source))


def test_a_finished_run(tmp_path):
    rows = [event_row(0, "start", num_params=1234567, time="2026-01-02T03:04:05+00:00")]
    rows += [train_row(s, tokens_per_second=1000.0 + s, mfu=0.4, grad_norm=1.0) for s in range(1, 11)]
    rows += [eval_row(s, loss, bits_per_byte=loss / 2, perplexity=9.0) for s, loss in ((4, 2.5), (8, 1.5), (10, 1.75))]
    rows += [event_row(10, "done", "trained 10 steps in 1 s")]
    versions = {"command": "lm-jax train --config=a.py", "device_kind": "cpu", "num_devices": 8}
    run = write_run(tmp_path / "my run", rows, config={"train": {"num_steps": 10}}, versions=versions)
    assert write_report(run) == run / "report.html"
    page = Page(run / "report.html")
    shown = cards(page)
    assert shown["validation loss"] == "1.7500" and "best 1.5000 at step 8" in page.text
    assert shown["bits per byte"] == "0.87500" and shown["steps"] == "10" and shown["tokens"] == "640"
    assert shown["tokens/s"] == "1.01k" and shown["MFU, full attention"] == "40.0%" and shown["parameters"] == "1.23M"
    for text in ("my run", "trained 10 steps in 1 s", "lm-jax train --config=a.py", "8 × cpu", "num_steps"):
        assert text in page.text
    titles = [panel["title"] for panel in page.data["panels"]]
    assert titles == ["Loss", "Bits per byte", "Gradient norm", "Throughput", "Model FLOP/s utilisation"]
    assert [curve["name"] for curve in page.data["panels"][0]["curves"]] == ["train", "validation"]
    assert page.data["axis"]["tokens"] == [0.0, *(64.0 * s for s in range(1, 11))]


def test_a_loss_is_of_tokens_only_where_they_are_scored(tmp_path):
    for name, more, unit in (("a", {"perplexity": 9.0}, "nats/token"), ("b", {"accuracy": 0.5}, "")):
        page = Page(write_report(write_run(tmp_path / name, [train_row(1), eval_row(1, 2.0, **more)])))
        assert page.data["panels"][0]["unit"] == unit and ("nats/token" in page.text) == bool(unit)


def test_what_a_table_of_evaluations_leaves_out_is_said(tmp_path):
    many = {f"score{i}": float(i) for i in range(14)}
    rows = [train_row(1), *(eval_row(s, 1.0 if s == 501 else 2.0, **many) for s in range(1, 601))]
    page = Page(write_report(write_run(tmp_path / "run", rows)))
    assert re.search(r"In metrics.jsonl: \d+ more evaluations; more scores \(score11, score12, score13\)", page.text)
    assert "<th>validation</th><td>501</td>" in page.source  # the best is there


def hostile_run(workdir):
    """Every text of a run, hostile in every way: names, messages, samples, configs, commands."""
    rows, samples, config = [event_row(0, "start", PAYLOADS[0], time=PAYLOADS[1])], [], {}
    for step, payload in enumerate(PAYLOADS, start=1):
        rows.append(train_row(step, **{payload: 1.0}))
        rows.append(eval_row(step, 1.0, **{"eval": payload, payload: 2.0}))
        rows.append(event_row(step, payload, payload, fields=[payload], **{payload: payload}))
        samples.append({"step": step, "prompt": payload, "text": payload * 2, payload: payload})
        config[payload] = {"class": payload, "x": payload, payload: [payload, {payload: payload}]}
    versions = {
        "command": PAYLOADS[0],
        "device_kind": PAYLOADS[1],
        "num_devices": PAYLOADS[2],
        "git_commit": PAYLOADS[3],
    }
    return write_run(workdir, rows, samples, config, versions)


PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def run_with_things_beside_texts(workdir):
    """A sample with all that can stand beside a text, and one whose image is none of those that are shown."""
    table = {"rows": ["der", "<b>Hund</b>"], "columns": ["the", "dog"], "values": [[0.9, 0.1], [0.25, 0.75]]}
    full = {"prompt": "the dog", "text": "der Hund", "reference": "ein Hund", "image": PIXEL, "table": table}
    samples = [{"step": 1} | full, {"step": 1, "prompt": "x", "text": "y", "image": "https://a.example/x.png"}]
    return write_run(workdir, [train_row(1)], samples)


def test_what_stands_beside_a_text_is_shown(tmp_path):
    page = Page(write_report(run_with_things_beside_texts(tmp_path / "run")))
    full, strange = page.data["samples"][0]["items"]
    assert (full["image"], full["reference"]) == (PIXEL, "ein Hund") and "image" not in strange
    assert full["table"] == {"rows": ["der", "<b>Hund</b>"], "columns": ["the", "dog"], "values": [[0.9, 0.1], [0.25, 0.75]]}
    assert "a.example" not in page.scripts[0]


def test_nothing_in_a_run_becomes_markup(tmp_path):
    harmless = Page(write_report(write_run(tmp_path / "plain", [train_row(1)], config={"a": {"b": 1}})))
    page = Page(write_report(hostile_run(tmp_path / "<img src=x onerror=alert(1)>")))
    assert page.tags.count("script") == harmless.tags.count("script") == 3
    assert page.tags.count("style") == page.tags.count("title") == 1
    known = {"html", "head", "meta", "link", "title", "style", "body", "header", "section", "footer", "script"}
    known |= {"h1", "h2", "p", "span", "bdi", "code", "div", "dl", "dt", "dd", "small", "button", "label", "input"}
    known |= {"output", "noscript", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "pre"}
    assert set(page.tags) <= known
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "style", "action", "srcdoc")]
    assert [a for a in page.attributes if a[1] == "href"] == [("link", "href", "data:,")]
    policy = [value for _, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"]
    assert not re.search("[\x00\x07\x1b\u202a-\u202e\u2066-\u2069]", page.source)


def test_hostile_samples_arrive_as_text(tmp_path):
    page = Page(write_report(hostile_run(tmp_path / "run")))
    assert not re.search("[<>&\u2028\u2029]", page.scripts[0])
    texts = [item["text"] for group in page.data["samples"] for item in group["items"]]
    assert texts[:2] == [payload * 2 for payload in PAYLOADS[:2]]
    assert "\u200fאבג" in texts[10] and PAYLOADS[0] in page.text and PAYLOADS[4] in page.text


@given(
    st.recursive(
        st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_embedded_json_is_json_without_markup(value):
    text = embed_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_an_empty_directory_has_a_page(tmp_path):
    page = Page(write_report(tmp_path))
    assert "No metrics have been recorded yet" in page.text and page.data["panels"] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"train": 5}', b"\xff", b"[" * 100_000])
def test_a_damaged_config_or_version_file_does_not_matter(tmp_path, content):
    write_run(tmp_path, [train_row(1)])
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "versions.json").write_bytes(content)
    assert Page(write_report(tmp_path)).data["panels"][0]["title"] == "Loss"


def test_torn_lines_are_counted(tmp_path):
    write_run(tmp_path, [train_row(1), train_row(2)])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "st')
    page = Page(write_report(tmp_path))
    assert page.data["panels"][0]["curves"][0]["step"] == [1, 2]
    assert "Unreadable lines of metrics.jsonl, left out: 1." in page.text


def test_values_that_are_not_finite_are_gaps(tmp_path):
    values = ["NaN", 2.0, "Infinity", 1.0, math.nan]
    write_run(tmp_path, [train_row(s, loss=value) for s, value in enumerate(values, start=1)])
    page = Page(write_report(tmp_path))
    assert page.data["panels"][0]["curves"][0]["value"] == [None, 2.0, None, 1.0, None]


def test_what_a_later_attempt_redid_is_not_drawn(tmp_path):
    rows = [event_row(0, "start"), *(train_row(s, loss=9.0) for s in range(1, 9)), event_row(7, "skip", "old skip")]
    rows += [event_row(4, "resume", attempt=1), *(train_row(s, loss=1.0, attempt=1) for s in range(5, 7))]
    rows += [event_row(5, "skip", "new skip", attempt=1)]
    page = Page(write_report(write_run(tmp_path, rows)))
    assert page.data["panels"][0]["curves"][0]["value"] == [9.0] * 4 + [1.0] * 2
    assert page.data["marks"] == {"skip": [5], "resume": [4], "checkpoint": []}
    assert page.source.count('class="old"') == 1 and "old skip" in page.text and "2 attempts" in page.text


@pytest.mark.parametrize(
    ("events", "state", "sentence"),
    [
        ([event_row(0, "start")], "running", "last row was written"),
        ([event_row(0, "start"), event_row(9, "done", "all")], "done", "all"),
        ([event_row(5, "stop", "no better"), event_row(5, "done", "all")], "done", "all; stopped early: no better"),
        ([event_row(0, "start"), event_row(9, "preempted", "asked")], "preempted", "asked"),
        (
            [event_row(0, "start"), event_row(9, "stop", "bad"), event_row(9, "failed", "Err: bad")],
            "failed",
            "Err: bad",
        ),
        ([event_row(9, "preempted", "asked"), event_row(9, "resume", attempt=1)], "running", "last row"),
        ([event_row(9, "stop", "not finite")], "stopped", "not finite"),
    ],
)
def test_status(tmp_path, events, state, sentence):
    page = Page(write_report(write_run(tmp_path, events)))
    assert f'<span class="status {state}">{state}</span>' in page.source and sentence in page.text


def test_a_silent_run_is_called_interrupted(tmp_path, monkeypatch):
    write_run(tmp_path, [event_row(0, "start"), train_row(1), train_row(2)])
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert "interrupted" in Page(write_report(tmp_path)).source


def test_errors_name_the_directory(tmp_path):
    with pytest.raises(StorageError, match="nothing is no directory"):
        write_report(tmp_path / "nothing")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html cannot be written"):
        write_report(tmp_path)


def test_a_long_run_makes_a_small_page(tmp_path):
    rng = random.Random(0)
    names = [f"term_{i}" for i in range(30)]
    rows = [train_row(s, **{name: rng.random() for name in names}) for s in range(1, 12_001)]
    rows += [eval_row(s, 1 / s) for s in range(1, 3000)] + [event_row(s, "checkpoint", "x" * 300) for s in range(1, 3000)]
    samples = [{"step": s, "prompt": "", "text": "text\n" * 300} for s in range(1, 2000)]
    path = write_report(write_run(tmp_path, rows, samples))
    assert path.stat().st_size < 2_000_000
    page = Page(path)
    assert all(len(c["step"]) <= MAX_POINTS for panel in page.data["panels"] for c in panel["curves"])
    steps = [group["step"] for group in page.data["samples"]]
    assert steps[0] == 1 and steps[-1] == 1999 and len(steps) > 100
    assert all(len(marks) <= 500 for marks in page.data["marks"].values())
    assert len(page.data["panels"]) == 24 and "Not drawn: Term 23, Term 24" in page.text
    assert "Events (2,999)" in page.text and "2,599 events in between" in page.text


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 2**32 - 1))
def test_thinning_keeps_the_ends_and_the_extremes(size, seed):
    rng = np.random.default_rng(seed)
    step, value = np.arange(size) * 3.0, rng.normal(size=size)
    value[rng.random(size) < 0.1] = np.nan
    x, y = thin(step, value)
    assert len(x) <= MAX_POINTS and (np.diff(x) > 0).all() and x[0] == step[0] and x[-1] == step[-1]
    assert np.array_equal(y, value[(x / 3).astype(int)], equal_nan=True)
    if np.isfinite(value).any():
        assert np.nanmin(y) == np.nanmin(value) and np.nanmax(y) == np.nanmax(value)


def test_bucket_means_have_the_mean_of_the_whole():
    rng = np.random.default_rng(0)
    step, value = np.arange(5000.0), rng.normal(size=5000)
    value[700] = np.nan
    x, y = bucket_means(step, value)
    assert len(x) == len(y) == MAX_POINTS // 2 - 1
    np.testing.assert_allclose(y[0], value[:5].mean())
    np.testing.assert_allclose(x[0], 2.0)
    np.testing.assert_allclose(y.mean(), np.nanmean(value), atol=2e-3)


def test_chart_data_names_each_curve_once():
    rows = [train_row(1, z_loss=0.1), eval_row(1, 2.0), eval_row(1, 3.0, eval="test", accuracy=0.5)]
    panels = {panel["title"]: [c["name"] for c in panel["curves"]] for panel in chart_data(rows)["panels"]}
    assert panels == {"Loss": ["train", "validation", "test"], "Accuracy": ["test"], "Z loss": ["train"]}


CHROMIUM = shutil.which("chromium")


def browse(path, profile):
    """(the page's final HTML, the console's lines) after its script ran in a headless browser."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom", path.resolve().as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", ["hostile", "short", "empty"])
def test_the_page_runs_in_a_browser(tmp_path, kind):
    if kind == "hostile":
        run = hostile_run(tmp_path / "run")
    else:
        run = write_run(tmp_path / "run", [train_row(s) for s in range(1, 4)] if kind == "short" else [])
    html, console = browse(write_report(run), tmp_path / "profile")
    assert console == []
    assert html.count("<canvas") == len(Page(run / "report.html").data["panels"])
    assert "<title>run</title>" in html and "<img" not in html and "<iframe" not in html
    if kind == "hostile":
        assert html.count("<figure>") == 1 and "alert(1)} {{7*7}}" in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_what_stands_beside_a_text(tmp_path):
    html, console = browse(write_report(run_with_things_beside_texts(tmp_path / "run")), tmp_path / "profile")
    assert console == [] and html.count("<figure>") == 2
    assert html.count("<img") == 1 and f'src="{PIXEL}"' in html
    assert '<pre class="reference">ein Hund</pre>' in html and '<span class="prompt">the dog</span>\nder Hund' in html
    shades = re.search(r'<table class="shades">.*?</table>', html, re.DOTALL).group()
    assert re.findall(r"<th[^>]*>(.*?)</th>", shades) == ["", "the", "dog", "der", "&lt;b&gt;Hund&lt;/b&gt;"]
    cells = [("0.900", "90"), ("0.100", "10"), ("0.250", "25"), ("0.750", "75")]
    assert re.findall(r'title="([\d.]+)" style="--shade: (\d+)%;"', shades) == cells


def test_assets_can_stand_in_a_page():
    folder = Path(write_report.__code__.co_filename).parent / "assets"
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        assert "</script" not in text and "<!--" not in text and "</style" not in text, path.name
    assert "innerHTML" not in (folder / "report.js").read_text("utf-8")
