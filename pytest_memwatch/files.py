"""Reports for others: JSON, a summary for a pull request, a page with pictures, annotations of a GitHub workflow.

Law: plain data in, text out; nothing is fetched when a page is opened.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

from memwatch import units
from pytest_memwatch.options import Settings
from pytest_memwatch.results import CLEAN, LEAK, SUSPECT, WARMUP, Results, Row, size_of

MOST_BARS = 25
COLOURS = {LEAK: "#c0392b", SUSPECT: "#d68910", WARMUP: "#7f8c8d", CLEAN: "#2e86c1"}


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
            told.append(f"::{level} file={_property(str(file))},line={line},title=memwatch: {verdict}::{text}")
    return told


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")


def as_markdown(results: Results) -> str:
    """A summary for a pull request."""
    leaks, warm, suspects = results.of(LEAK), results.of(WARMUP), results.of(SUSPECT)
    lines = [
        f"### memwatch: {len(leaks)} leak, {len(suspects)} suspect, {len(warm)} warm up, {results.checked} tests checked",
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
        lines.append("<details><summary>warm-ups (growth of the first run alone; not leaks)</summary>")
        lines += ["", *(f"- {_cell(row.nodeid)}: {units.format_size(row.growth)}" for row in warm[:20]), "", "</details>", ""]
    fixtures = sorted(results.fixtures.values(), key=lambda one: -one.growth)[:5]
    if fixtures:
        told = ", ".join(f"{_cell(one.name)} {units.format_size(one.growth)}" for one in fixtures)
        lines += [f"Fixtures by growth: {told}", ""]
    lines.append(f"Suite growth {units.format_size(results.growth, sign=True)}, peak RSS {units.format_size(results.peak_rss)}.")
    return "\n".join(lines) + "\n"


def _first_trail(row: Row) -> str:
    trail = row.resources[0]["trail"] if row.resources else []
    return str(trail[0]) if trail else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def as_html(results: Results) -> str:
    """A page by itself: bars of the largest tests and fixtures, and each finding with the course of its repetitions."""
    rows = sorted(results.rows.values(), key=size_of, reverse=True)[:MOST_BARS]
    tests = [(row.nodeid, max(0, size_of(row)), COLOURS.get(row.verdict, "#2e86c1")) for row in rows if size_of(row) > 0]
    wide = sorted(results.fixtures.values(), key=lambda one: -one.growth)[:MOST_BARS]
    fixtures = [(f"{one.name} [{one.scope}]", max(0, one.growth), "#8e44ad") for one in wide if one.growth > 0]
    findings = "".join(_finding(row) for verdict in (LEAK, SUSPECT, WARMUP) for row in results.of(verdict))
    counts = f"{results.checked} tests checked: " + ", ".join(f"{len(results.of(one))} {one}" for one in (LEAK, SUSPECT, WARMUP))
    total = f"suite growth {units.format_size(results.growth, sign=True)}, peak RSS {units.format_size(results.peak_rss)}"
    return PAGE.format(
        counts=html.escape(counts),
        total=html.escape(total),
        tests=bars(tests) or "<p>No test grew.</p>",
        fixtures=bars(fixtures) or "<p>None.</p>",
        findings=findings or "<p>None.</p>",
    )


def bars(rows: list[tuple[str, int, str]]) -> str:
    """A bar chart as SVG: label, bytes, colour."""
    if not rows:
        return ""
    largest, height = max(size for _, size, _ in rows) or 1, 22
    parts = [f'<svg width="100%" viewBox="0 0 900 {height * len(rows) + 4}" role="img" aria-label="sizes as bars">']
    for position, (label, size, colour) in enumerate(rows):
        y, width = position * height, max(1, round(420 * size / largest))
        short = label if len(label) <= 60 else "…" + label[-59:]
        parts.append(f'<text x="400" y="{y + 15}" text-anchor="end">{html.escape(short)}</text>')
        parts.append(f'<rect x="408" y="{y + 3}" width="{width}" height="15" fill="{colour}"/>')
        parts.append(f'<text x="{414 + width}" y="{y + 15}">{html.escape(units.format_size(size))}</text>')
    return "".join([*parts, "</svg>"])


def course(values: list[int]) -> str:
    """The first run and its repetitions as a small column chart."""
    if not values:
        return ""
    largest = max(max(values), 1)
    parts = [f'<svg width="{len(values) * 26}" height="44" role="img" aria-label="growth of each run">']
    for position, value in enumerate(values):
        tall = max(1, round(36 * max(0, value) / largest))
        colour = "#95a5a6" if position == 0 else "#c0392b"
        parts.append(f'<rect x="{position * 26}" y="{42 - tall}" width="20" height="{tall}" fill="{colour}"/>')
    return "".join([*parts, "</svg>"])


def _finding(row: Row) -> str:
    text = html.escape(row.message or row.note or "")
    values = [row.growth or 0, *row.repeats] if row.metric in ("heap", "rss", "python") else list(row.repeats)
    return f"<h3>{html.escape(row.nodeid)} <small>{html.escape(row.verdict)}</small></h3>{course(values)}<pre>{text}</pre>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>memwatch: memory of the tests</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }}
svg text {{ font: 12px ui-monospace, monospace; fill: #222 }} pre {{ background: #f4f4f4; padding: .7em; overflow-x: auto }}
small {{ color: #777; font-weight: normal }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16181c; color: #ddd }} svg text {{ fill: #ddd }} pre {{ background: #22252b }}
}}
</style></head><body>
<h1>Memory of the tests</h1><p>{counts}; {total}.</p>
<h2>Tests</h2>{tests}
<h2>Fixtures wider than a function</h2>{fixtures}
<h2>Findings</h2><p><small>Columns: the first run in grey, its repetitions in red.</small></p>{findings}
</body></html>
"""
