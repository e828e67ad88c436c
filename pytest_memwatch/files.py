"""Reports for others: JSON, a summary for a pull request, a page with pictures, annotations of a GitHub workflow.

Law: plain data in, text out; nothing is fetched when a page is opened.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import NamedTuple

from memwatch import units
from pytest_memwatch import words
from pytest_memwatch.options import Settings
from pytest_memwatch.results import BYTES, CLEAN, INSIDE, LEAK, SUSPECT, WARMUP, Results, Row, measure, size_of

MOST_BARS = 25
STATES = {LEAK: "leaking", "peak": "peak", SUSPECT: "growing", WARMUP: "warming-up", CLEAN: "clean"}
"""The state of a process whose colour each verdict of a test has."""
WIDEST = 65
"""Percent of its column that the longest bar takes: its size stands beside it."""


def write(results: Results, settings: Settings) -> list[str]:
    """Write the files that were asked for; returns a line for each that could not be written."""
    formats = ((settings.json, as_json), (settings.md, as_markdown), (settings.html, as_html))
    failed = [write_text(name, text(results)) for name, text in formats if name is not None]
    return [line for line in failed if line is not None]


def write_text(name: str, text: str) -> str | None:
    """Write one file; returns why it could not be written.  What is no text in a name is written as escapes."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        return f"not written: {name}: {error}"
    return None


def as_json(results: Results) -> str:
    """Everything, schema 1."""
    return json.dumps(results.to_dict(), indent=1) + "\n"


def annotates(settings: Settings) -> bool:
    """Whether a GitHub workflow is to be annotated."""
    return settings.github == "on" or (settings.github == "auto" and os.environ.get("GITHUB_ACTIONS") == "true")


def workflow_commands(results: Results) -> list[str]:
    """Workflow commands: an error for each leak, a warning for each suspect."""
    told = []
    for level, verdict in (("error", LEAK), ("warning", SUSPECT)):
        for row in results.of(verdict):
            file, line = (row.location[0], row.location[1]) if len(row.location) == 2 else ("", 1)
            text = _command(f"{row.nodeid}: {row.message or row.note or ''}")
            told.append(f"::{level} file={_property(str(file))},line={line},title=memwatch: {row.label}::{text}")
    return told


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")


def as_markdown(results: Results) -> str:
    """A summary for a pull request."""
    leaks, warm, suspects = results.of(LEAK), results.of(WARMUP), results.of(SUSPECT)
    lines = [
        f"### memwatch: {words.counts(results)}, {results.checked} tests checked",
        "",
    ]
    if leaks:
        lines += ["| test | what | where | held by |", "| --- | --- | --- | --- |"]
        for rows in results.groups().values():
            row = rows[0]
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            head = (row.message or "").splitlines()[0] if row.message else ""
            site = str(row.sites[0]["label"]) if row.sites else _first_trail(row)
            held = str(row.holders[0]["label"]) if row.holders else ""
            lines.append(f"| {_cell(row.nodeid)}{more} | {_cell(head)} | {_cell(site)} | {_cell(held)} |")
        lines.append("")
    if suspects:
        lines += ["Suspect:", "", *(f"- {_cell(row.nodeid)}: {_cell(row.note or '')}" for row in suspects[:10]), ""]
    if warm:
        lines.append("<details><summary>warm-ups (what the first run alone kept; not leaks)</summary>")
        lines += ["", *(f"- {_cell(row.nodeid)}: {words.warm_up(row)}" for row in warm[:20]), "", "</details>", ""]
    fixtures = sorted(results.fixtures.values(), key=lambda one: -one.growth)[:5]
    if fixtures:
        told = ", ".join(f"{_cell(one.name)} {units.format_size(one.growth)}" for one in fixtures)
        lines += [f"Fixtures by growth: {told}", ""]
    lines.append(f"Suite growth {units.format_size(results.growth, sign=True)}, peak RSS {units.format_size(results.peak_rss)}.")
    return "\n".join(lines) + "\n"


def _first_trail(row: Row) -> str:
    trail = row.resources[0]["trail"] if row.resources else []
    if not trail and row.kind == INSIDE:
        return ":".join(map(str, row.location))
    return str(trail[0]) if trail else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def as_html(results: Results) -> str:
    """A page by itself: bars of the largest tests and fixtures, and each finding with the course of its repetitions."""
    from memwatch.report.html import document  # for a page only: what is imported is in the process that is measured

    rows = [row for row in sorted(results.rows.values(), key=size_of, reverse=True) if size_of(row) > 0]
    tests = bars([_bar(row) for row in rows if measure(row)[0] in BYTES][:MOST_BARS])
    left = bars([_bar(row) for row in rows if measure(row)[0] not in BYTES][:MOST_BARS])  # no scale has both bytes and counts
    wide = sorted(results.fixtures.values(), key=lambda one: -one.growth)[:MOST_BARS]
    fixtures = bars(
        [Bar(f"{one.name} [{one.scope}]", one.growth, units.format_size(one.growth), "fixture") for one in wide if one.growth > 0]
    )
    findings = "".join(_finding(row) for verdict in (LEAK, SUSPECT, WARMUP) for row in results.of(verdict))
    counts = f"{results.checked} tests checked: {words.counts(results)}"
    total = f"suite growth {units.format_size(results.growth, sign=True)}, peak RSS {units.format_size(results.peak_rss)}"
    sections = {
        "tests": ("Tests", tests or "<p>No test grew.</p>"),
        "left": ("Left behind", left),
        "fixtures": ("Fixtures wider than a function", fixtures or "<p>None.</p>"),
        "findings": ("Findings", f'<p class="soft">{LEGEND}</p>{findings}' if findings else "<p>None.</p>"),
    }
    shown = {name: (title, body) for name, (title, body) in sections.items() if body}
    body = f"<h1>Memory of the tests</h1><p>{html.escape(counts)}; {html.escape(total)}.</p>" + "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'
        for name, (title, body) in shown.items()
    )
    links = {name: title for name, (title, _) in shown.items()}
    footer = "Made by memwatch's pytest plugin; nothing is loaded when this page is opened."
    return document("memwatch: memory of the tests", body, links, footer=footer, extra_style=STYLE)


class Bar(NamedTuple):
    """One bar of a chart."""

    label: str
    size: int
    shown: str
    """The size in words."""
    state: str
    """Names its colour."""


def _bar(row: Row) -> Bar:
    metric, number = measure(row)
    return Bar(row.nodeid, number, words.amount(metric, number), STATES[row.label])


def bars(rows: list[Bar]) -> str:
    """A bar chart.  Of text and boxes, so that long names wrap and a narrow window has room for it."""
    largest = max((row.size for row in rows), default=1)
    return "".join(
        f'<div class="row"><div class="name">{html.escape(row.label)}</div><div class="track">'
        f'<svg class="long {row.state}" width="{max(0.5, WIDEST * row.size / largest):.1f}%" height="14" aria-hidden="true">'
        f'<rect width="100%" height="14"/></svg>'
        f'<span class="size">{html.escape(row.shown)}</span></div></div>'
        for row in rows
    )


def course(metric: str, first: int | None, again: list[int]) -> str:
    """The first run, where it was measured alike, and each repetition as a small column chart."""
    values = [*([] if first is None else [first]), *again]
    if not values:
        return ""
    largest = max(*values, 1)
    parts = [f'<figure><svg width="{len(values) * 26}" height="44" role="img" aria-label="growth of each run">']
    for position, value in enumerate(values):
        tall = max(1, round(36 * max(0, value) / largest))
        kind = "first" if first is not None and position == 0 else "again"
        parts.append(f'<rect class="{kind}" x="{position * 26}" y="{42 - tall}" width="20" height="{tall}"/>')
    told = [units.format_size(value) if metric in BYTES else f"{value:,}" for value in values]
    before = "" if first is None else f"first run: {told.pop(0)}; "
    return "".join([*parts, f"</svg><figcaption>{before}re-runs: {', '.join(told) or 'none'}</figcaption></figure>"])


def _finding(row: Row) -> str:
    text = html.escape(row.message or words.warm_up(row) or row.note or "")
    picture = ""
    if row.warmed:
        metric, first = measure(row)
        picture = course(metric, first, next(one["again"] for one in row.warmed if one["metric"] == metric))
    elif row.repeats and row.metric is not None:
        picture = course(row.metric, row.growth if row.metric in ("heap", "rss", "python") else None, row.repeats)
    return f"<h3>{html.escape(row.nodeid)} <small>{html.escape(row.label)}</small></h3>{picture}<pre>{text}</pre>"


LEGEND = "Columns: the first run in grey, where it was measured alike; its repetitions in colour."
STYLE = """
pre { background: var(--card); padding: .7em; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 var(--mono) }
h3, .name { overflow-wrap: anywhere } #findings figure { margin: 0 }
.row { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1em; padding: 2px 0; align-items: center; font: 12px/1.4 var(--mono) }
.name { text-align: right } .track { display: flex; align-items: center; gap: .6em } .long { flex: none }
.long.leaking, .again { fill: var(--leaking) } .long.growing { fill: var(--growing) } .long.warming-up { fill: var(--warming-up) }
.long.clean { fill: var(--link) } .long.peak, .long.fixture { fill: var(--recovering) } .first { fill: var(--soft) }
@media (max-width: 640px) { .row { grid-template-columns: 1fr; padding: 5px 0 } .name { text-align: left } }
"""
