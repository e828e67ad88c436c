"""The fleet as rows of a table: one for each record, ready to be sent, with what it is sorted by.

Law: pure.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from memwatch.fleet import rank
from memwatch.model import SEVERITY_ORDER, Report
from memwatch.report.layout import shown
from memwatch.report.parts import chip, clipped, text
from memwatch.report.words import (
    amount,
    fate_word,
    grows,
    memory_limit,
    of_limit,
    pace,
    resident_bytes,
    status,
    time_left_s,
    what_grows,
)
from memwatch.units import format_duration, format_left_short
from memwatch.web.reading import OUTLINE_CHANNEL, Seen

SPARK_WIDTH, SPARK_HEIGHT = 120, 28
SPARK_RANGE = 0.1
"""Of the highest level, what the height of a sparkline stands for at least: noise looks like noise."""
LABELS_SHOWN = 4

COLUMNS: dict[str, tuple[str, str]] = {
    "worst": ("State", "asc"),
    "name": ("Process", "asc"),
    "kind": ("Grows", "asc"),
    "rate": ("Rate", "desc"),
    "rss": ("Memory", "desc"),
    "left": ("Time left", "asc"),
    "watched": ("Watched", "desc"),
}
"""What the table can be sorted by, with the title of the column and which way comes first.  `memory` in `rss` is resident."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record."""

    name: str
    is_running: bool
    keys: dict[str, float | str | None]
    """What each column sorts by; None comes last."""
    words: str
    """What a filter looks in, in lower case."""
    html: str


def address(name: str) -> str:
    """The page of a record."""
    return f"/process/{quote(name, safe='')}"


def row(seen: Seen) -> Row:
    """One record as a row."""
    report = seen.found.report
    verdict, process = report.verdict, report.process
    running = process.fate == "running"
    moving = grows(report)
    level, limit, left = resident_bytes(report), memory_limit(report), time_left_s(report)
    state, not_critical, samples = rank(seen.found)
    keys: dict[str, float | str | None] = {
        "worst": state * 4.0 + not_critical + 1.0 / (2.0 - samples),
        "name": f"{process.name.lower()} {process.pid:>10}",
        "kind": what_grows(verdict) if moving else None,
        "rate": verdict.rate if moving else None,
        "rss": level,
        "left": left,
        "watched": report.statistics.uptime_s,
    }
    labels = [f"{key}={value}" for key, value in process.labels.items()]
    words = " ".join([shown(process.name), str(process.pid), status(verdict), verdict.state, *map(shown, labels)]).lower()
    cells = (
        ("state", chip(report) + _critical(report)),
        ("name", _name(seen, labels)),
        ("kind", text(what_grows(verdict)) if moving else ""),
        ("rate n", text(pace(verdict.channel, verdict.rate)) if moving else ""),
        ("rss n", "" if level is None else _level(level, limit)),
        *([("left n", html.escape(format_left_short(left)) if left is not None else "")] if running else []),
        ("spark", _spark(seen, verdict.state)),
        ("watched", _watched(report)),
    )
    body = "".join(f'<td class="{kind}" data-title="{_TITLES.get(kind.split()[0], "")}">{cell}</td>' for kind, cell in cells)
    sorted_by = " ".join(f'data-{key}="{_attribute(value)}"' for key, value in keys.items())
    marks = f'data-row="{html.escape(seen.name)}" data-fate="{"running" if running else "ended"}"'
    whole = f'<tr {marks} data-words="{html.escape(words[:2000])}" {sorted_by}>{body}</tr>'
    return Row(seen.name, running, keys, words, whole)


_TITLES = {"kind": "grows", "rate": "rate", "rss": "memory", "left": "time left", "watched": "watched"}


def _attribute(value: float | str | None) -> str:
    if value is None:
        return ""
    return html.escape(shown(value)[:200]) if isinstance(value, str) else f"{value:.9g}"


def _critical(report: Report) -> str:
    return ' <span class="critical">critical</span>' if report.verdict.severity == "critical" else ""


def _name(seen: Seen, labels: Sequence[str]) -> str:
    process = seen.found.report.process
    whole = shown(process.name)
    name = html.escape(whole if len(whole) <= 80 else f"{whole[:80]}…")
    link = f'<a href="{address(seen.name)}">{name}<small>[{process.pid}]</small></a>'
    told = [text(label if len(label) <= 60 else f"{label[:60]}…") for label in labels[:LABELS_SHOWN]]
    if labels[LABELS_SHOWN:]:
        told.append(f"{len(labels) - LABELS_SHOWN} more")
    return link + (f'<div class="labels">{", ".join(told)}</div>' if told else "")


def _level(level: float, limit: float | None) -> str:
    told = html.escape(of_limit(level, limit))
    if not limit or limit <= 0:
        return told
    width = round(60 * min(1.0, max(0.0, level / limit)), 1)
    bar = f'<rect width="{width}" height="4"/>'
    return f'{told}<svg class="bar" viewBox="0 0 60 4" preserveAspectRatio="none" aria-hidden="true">{bar}</svg>'


def _watched(report: Report) -> str:
    process = report.process
    told = f"for {format_duration(report.statistics.uptime_s)}" if report.statistics.samples else "no sample yet"
    if process.fate == "running":
        return html.escape(told)
    return html.escape(f"{told}, {fate_word(process)}") + (
        f'<div class="labels">{clipped(process.end)}</div>' if process.end else ""
    )


def _spark(seen: Seen, state: str) -> str:
    """The shape of the curve of memory; from zero where that does not press it flat."""
    points = () if seen.outline is None else seen.outline.points
    if len(points) < 2:
        return ""
    levels = [level for _, level in points]
    low, high = min(levels), max(levels)
    base = 0.0 if low < 0.7 * high else min(low, (1.0 - SPARK_RANGE) * high)
    start, end = points[0][0], points[-1][0]
    drawn = " ".join(
        f"{(time_s - start) / ((end - start) or 1.0) * SPARK_WIDTH:.1f},"
        f"{SPARK_HEIGHT - 2 - (level - base) / ((high - base) or 1.0) * (SPARK_HEIGHT - 4):.1f}"
        for time_s, level in points
    )
    first, last = (amount(OUTLINE_CHANNEL, levels[place]) for place in (0, -1))
    label = f"resident memory over {format_duration(end - start)}: {first} to {last}"
    return (
        f'<svg class="spark {state}" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}"><polyline points="{drawn}"/></svg>'
    )


def in_order(rows: Iterable[Row], column: str, order: str) -> list[Row]:
    """Rows sorted; what has nothing in that column comes last, whichever the order."""
    filled = [item for item in rows if item.keys[column] is not None]
    empty = [item for item in rows if item.keys[column] is None]
    filled.sort(key=lambda item: item.keys[column], reverse=order == "desc")  # type: ignore[arg-type,return-value]
    return [*filled, *empty]


def summary(seen: Sequence[Seen]) -> str:
    """How many there are of what; nothing where there is none."""
    if not seen:
        return ""
    running = [item.found.report for item in seen if item.found.report.process.fate == "running"]
    count: Counter[str] = Counter(report.verdict.state for report in running)
    chips = [
        f'<span class="chip {state}">{count[state]:,} {state.replace("-", " ")}</span>' for state in SEVERITY_ORDER if count[state]
    ]
    ended = len(seen) - len(running)
    told = f"{len(running):,} running" + (f", {ended:,} ended" if ended else "")
    return f'<p class="headline">{told} {" ".join(chips)}</p>'


def errors(found: Sequence[str]) -> str:
    """What is wrong with the records that cannot be read."""
    if not found:
        return ""
    several = f"{len(found)} records" if found[1:] else "One record"
    lines = "".join(f"<li>{clipped(line)}</li>" for line in found[:50])
    return f"<details><summary>{several} cannot be read</summary><ul>{lines}</ul></details>"
