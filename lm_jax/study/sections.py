"""The parts of a run's page that are plain HTML: figures, tables and the config."""

import itertools
import json
import math
from html import escape
from typing import Any

from lm_jax.study.curves import evenly
from lm_jax.train.console import duration, printable, si
from lm_jax.train.rows import Row

_MAX_EVENTS = 400
_MAX_EVALS, _MAX_COLUMNS = 200, 12
_MAX_TEXT = 4_000


def shown(text: str) -> str:
    """`text` cut to a readable length, with control characters made visible."""
    text = printable(text[: _MAX_TEXT + 1])
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " … (cut)"


def safe(value: object) -> str:
    """`value` as HTML text: nothing in it is markup, and its writing direction stays inside."""
    return escape(shown(str(value)))


def summary(rows: list[Row], history: list[Row], config: Any) -> str:
    """The strip of figures below the title."""
    train = [row for row in rows if row["kind"] == "train"]
    cards = _quality_cards(rows)
    if train:
        last, total = train[-1], _planned_steps(config)
        cards.append(("train loss", number(last.get("loss")), "last step logged"))
        cards.append(("steps", f"{last['step']:,}", f"of {total:,}" if total else ""))
        cards.append(("tokens", si(last["tokens"]), ""))
        cards.append(("time", duration(max(row["wall"] for row in rows)), "training, with evals and saves"))
        cards += _speed_cards(train)
    params = next((row["num_params"] for row in history if isinstance(row.get("num_params"), int)), None)
    cards += [("parameters", si(params), f"{params:,}")] if params else []
    skips = sum(row["kind"] == "event" and row["event"] == "skip" for row in rows)
    cards += [("skipped updates", str(skips), "not finite")] if skips else []
    html = "".join(
        f"<div><dt>{safe(label)}</dt><dd>{safe(value)}<small>{safe(note)}</small></dd></div>" for label, value, note in cards
    )
    return f'<dl class="cards">{html}</dl>\n' if cards else ""


def _quality_cards(rows: list[Row]) -> list[tuple[str, str, str]]:
    names = list(dict.fromkeys(row["eval"] for row in rows if row["kind"] == "eval"))
    if not names:
        return []
    name = "validation" if "validation" in names else names[0]
    scores = [row for row in rows if row["kind"] == "eval" and row["eval"] == name]
    cards = []
    of_tokens = any("perplexity" in row for row in scores)  # else a loss is of images, utterances, texts
    for column, unit in (("loss", "nats/token" if of_tokens else ""), ("bits_per_byte", ""), ("perplexity", "")):
        known = [row for row in scores if is_number(row.get(column))]
        if known:
            best, last = min(known, key=lambda row: row[column]), known[-1]
            note = "the best" if best is last else f"best {number(best[column])} at step {best['step']:,}"
            label = f"{name} {column.replace('_', ' ')}" if column == "loss" else column.replace("_", " ")
            cards.append((label, number(last[column]), f"{unit}{', ' if unit else ''}{note}"))
    return cards


def _speed_cards(train: list[Row]) -> list[tuple[str, str, str]]:
    """Medians over all rows but each attempt's first, which holds the compilation."""
    steady = [row for before, row in itertools.pairwise(train) if before["attempt"] == row["attempt"]]
    cards = []
    for column, label, show in (
        ("tokens_per_second", "tokens/s", si),
        ("mfu", "MFU, full attention", "{:.1%}".format),
        ("mfu_causal", "MFU, causal attention", "{:.1%}".format),
        ("input_wait", "waiting for input", "{:.2%}".format),
    ):
        values = sorted(row[column] for row in steady or train if is_number(row.get(column)))
        cards += [(label, show(values[len(values) // 2]), "median")] if values else []
    return cards


def evals(rows: list[Row]) -> str:
    """A table of every evaluation; the best loss of each eval is marked."""
    scores = [row for row in rows if row["kind"] == "eval"]
    if not scores:
        return ""
    common = {"kind", "eval", "step", "attempt", "wall", "tokens"}
    columns = list(dict.fromkeys(key for row in scores for key in row if key not in common))
    columns, unseen = columns[:_MAX_COLUMNS], columns[_MAX_COLUMNS:]
    best: dict[str, Row] = {}
    for row in scores:
        if is_number(row.get("loss")) and row["loss"] < best.get(row["eval"], {"loss": math.inf})["loss"]:
            best[row["eval"]] = row
    body, kept = [], {id(row) for row in [*evenly(scores, _MAX_EVALS), *best.values()]}
    for row in (row for row in scores if id(row) in kept):
        marked = ' class="best"' if best.get(row["eval"]) is row else ""
        cells = [f"<th>{safe(row['eval'])}</th>", f"<td>{row['step']:,}</td>", f"<td>{si(row['tokens'])}</td>"]
        cells += [f"<td>{duration(row['wall'])}</td>", *(f"<td>{safe(number(row.get(c)))}</td>" for c in columns)]
        body.append(f"<tr{marked}>{''.join(cells)}</tr>")
    head = "".join(f"<th>{safe(name)}</th>" for name in ["eval", "step", "tokens", "time", *map(words, columns)])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    notes = [f"{len(scores) - len(kept):,} more evaluations"] if len(kept) < len(scores) else []
    notes += [f"more scores ({', '.join(map(words, unseen))})"] if unseen else []
    note = f"<p>In metrics.jsonl: {safe('; '.join(notes))}.</p>" if notes else ""
    return details(f"Evaluations ({len(scores):,})", f'<div class="scroll">{table}</div>{note}', opened=len(scores) <= 30)


def events(history: list[Row], standing: set[int]) -> str:
    """A table of the events in the order they happened; `standing` holds the ids of the rows not superseded."""
    rows = [row for row in history if row["kind"] == "event"]
    if not rows:
        return ""
    left_out = max(len(rows) - _MAX_EVENTS, 0)
    body = [_event_row(row, id(row) in standing) for row in rows]
    if left_out:
        note = f'<tr><td colspan="5">{left_out:,} events in between are in metrics.jsonl only</td></tr>'
        first = _MAX_EVENTS // 4
        body[first : first + left_out] = [note]
    head = "".join(f"<th>{name}</th>" for name in ("step", "attempt", "time (UTC)", "event", ""))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return details(f"Events ({len(rows):,})", f'<div class="scroll">{table}</div>', opened=True)


def _event_row(row: Row, standing: bool) -> str:
    old = "" if standing else ' class="old" title="a later attempt redid this part of the training"'
    known = ("kind", "step", "attempt", "wall", "tokens", "event", "message", "time")
    rest = {key: value for key, value in row.items() if key not in known}
    more = safe(json.dumps(rest, indent=1, ensure_ascii=False))
    folded = f"<details><summary>more</summary><pre>{more}</pre></details>" if rest else ""
    return (
        f"<tr{old}><td>{row['step']:,}</td><td>{row['attempt']}</td><td>{safe(when(row.get('time')))}</td>"
        f'<th>{safe(row["event"])}</th><td class="text"><bdi>{safe(row["message"])}</bdi>{folded}</td></tr>'
    )


def tree(title: str, value: Any, file: str, *, searchable: bool = False) -> str:
    """Nested JSON as collapsible lists, with a search box if `searchable`; a note where there is none."""
    if value is None:
        return details(title, f"<p>{file} is not there, or is no valid JSON.</p>", opened=False)
    box = '<input type="search" id="search" placeholder="search names and values" aria-label="search">'
    body = f'{box if searchable else ""}<div class="tree">{_node("", "", value, depth=0)}</div>'
    return details(title, body, opened=searchable)


def _node(path: str, name: str, value: Any, depth: int) -> str:
    if depth > 30:
        value = "… (nested too deeply to show)"
    items = {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value
    if not isinstance(items, dict) or (isinstance(value, list) and not any(isinstance(x, dict | list) for x in value)):
        return (
            f'<div class="leaf" data-path="{safe(path)}"><span>{safe(name)}</span>'
            f"<bdi>{safe(json.dumps(value, ensure_ascii=False))}</bdi></div>"
        )
    kind = items.get("class")
    inner = "".join(
        _node(_join(path, key, isinstance(value, list)), key, item, depth + 1)
        for key, item in items.items()
        if key != "class" or not isinstance(item, str)
    )
    if depth == 0:
        return inner
    label = f"[{name}]" if name.isdigit() else name
    shown_kind = f" <small>{safe(kind.rpartition('.')[2])}</small>" if isinstance(kind, str) else ""
    return f"<details open><summary>{safe(label)}{shown_kind}</summary>{inner}</details>"


def _join(path: str, key: str, is_index: bool) -> str:
    return f"{path}[{key}]" if is_index else f"{path}.{key}" if path else key


def details(title: str, body: str, *, opened: bool) -> str:
    """A section that can be folded."""
    return f"<section><details{' open' if opened else ''}><summary><h2>{title}</h2></summary>{body}</details></section>\n"


def when(time: Any) -> str:
    """An ISO time of UTC without what every one repeats."""
    return str(time).replace("T", " ").replace("+00:00", "") if time else ""


def words(column: str) -> str:
    """A column's name as words."""
    return column.replace("_", " ")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any) -> str:
    """Counts in full, others to about five significant digits; a dash for what is no finite number."""
    if not is_number(value):
        return "–" if value is None else str(value)
    if value == int(value) and (isinstance(value, int) or abs(value) >= 1e5):
        return f"{int(value):,}"
    return f"{value:#.5g}" if 0.001 <= abs(value) < 1e5 else f"{value:.4g}"


def _planned_steps(config: Any) -> int | None:
    train = config.get("train") if isinstance(config, dict) else None
    total = train.get("num_steps") if isinstance(train, dict) else None
    return total if isinstance(total, int) else None
