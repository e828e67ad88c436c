"""The report as plain text: the verdict, then the proof, then the next command to type.

Law: no line is wider than *width*, and what is left out is counted and said.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from memwatch.model import ChannelSummary, Event, Evidence, Report
from memwatch.report.happenings import happened
from memwatch.report.layout import cells, padded, shown, table, wrapped
from memwatch.report.proof import INDENT, TRAILS, counted, joined, numbers, others, proof_lines
from memwatch.report.usage import ROUTE_HEADER, blame, blamed_routes, cache_line, route_cells
from memwatch.report.words import (
    amount,
    as_of,
    channel_pace,
    channel_state,
    channels_in_order,
    fate_word,
    headline,
    moment,
    says_only_now,
    share_of,
    status,
    title,
)
from memwatch.units import format_count, format_duration

__all__ = ["WIDTH", "headline", "render_text", "sections"]

WIDTH = 100
"""Columns where nobody says otherwise: a log, a mail, a wide terminal."""
NARROWEST = 40
EVENTS_SHOWN = 12
NEWS_AFTER_S = 10.0
"""A reading younger than this is as good as new, whatever the interval."""
WHAT_SHOWN = 12
"""Columns for the kind of an event."""
COMMAND_SHOWN = 400
"""Characters of a command line that are shown; the rest is counted."""
FACT = 10
"""Columns for the name of a fact (`process`, `started`, …)."""

SUSPECTS_SHOWN = 8
"""Of each collector; the others are counted, and JSON has them all."""

COLLECTOR_TITLES = {
    "sites": "where it was allocated",
    "types": "what grew",
    "holders": "who holds it",
    "resources": "resources",
    "native": "what ran while native memory grew",
    "caches": "bounded containers",
}


def render_text(report: Report, *, width: int = WIDTH) -> str:
    """Render a report as text of at most *width* columns (never less than 40)."""
    width = max(width, NARROWEST)
    blocks = [
        list(_verdict(report, width)),
        list(_channels(report, width)),
        *(list(_evidence(item, width)) for item in report.evidence),
        list(_alive(report, width)),
        list(_routes(report, width)),
        list(_caches(report, width)),
        list(_happened(report, width)),
        list(_facts(report, width)),
        wrapped(next_command(report), width, first="next: ", rest="      "),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def sections(report: Report, width: int) -> dict[str, list[str]]:
    """What follows the headline, part by part, for a view that shows one at a time: `evidence`, `caches` and `channels`.

    Of at most *width* columns (never less than 40); a part that has nothing to say is empty.
    """
    width = max(width, NARROWEST)
    evidence = [
        list(proof_lines(report, width)),
        *(list(_evidence(item, width)) for item in report.evidence),
        list(_alive(report, width)),
        list(_routes(report, width)),
    ]
    return {
        "evidence": "\n\n".join("\n".join(block) for block in evidence if block).splitlines(),
        "caches": list(_caches(report, width)),
        "channels": list(_channels(report, width)),
    }


def _verdict(report: Report, width: int) -> Iterator[str]:
    first = headline(report)
    word = status(report.verdict)
    yield from wrapped(first.removeprefix(word).lstrip(" "), width, first=f"{word}  ")
    reason = shown(report.verdict.reason)
    if reason and reason not in first:
        yield from wrapped(reason, width, first=INDENT)
    if report.verdict.severity == "critical":
        yield from wrapped("critical: at or above the growth limit, or little time is left", width, first=INDENT)
    yield from proof_lines(report, width)


def _channels(report: Report, width: int) -> Iterator[str]:
    rows = [_channel_row(report, name, summary) for name, summary in channels_in_order(report)]
    if not rows:
        return
    header = ("", "now" if report.process.fate == "running" else "last", "average", "peak", "rate", "state", "")
    # A column that is empty in every row says nothing.
    used = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    numbers = [place for place, column in enumerate(used) if column in (1, 2, 3, 4)]
    lines = table([[row[column] for column in used] for row in (header, *rows)], right=numbers)
    if max(map(len, lines)) + len(INDENT) <= width:
        yield from (INDENT + line for line in lines)
        return
    # Too narrow for columns: two lines a channel, with words in place of the header.
    for name, now, average, peak, rate, state, taken in rows:
        yield from wrapped("  ".join(filter(None, (padded(name, 18), now, state, rate))), width, first=INDENT, rest=INDENT * 2)
        moved = {average, peak} - {now, ""}  # a channel that never moved has said everything
        more = [part for part in (moved and f"average {average}", moved and f"peak {peak}", taken) if part]
        if more:
            yield from wrapped(", ".join(more), width, first=INDENT * 2)


def _channel_row(report: Report, name: str, summary: ChannelSummary) -> tuple[str, ...]:
    over_time = not says_only_now(name)
    return (
        title(name),
        amount(name, summary.current),
        amount(name, summary.average) if over_time else "",
        amount(name, summary.peak) if over_time else "",
        channel_pace(name, summary),
        channel_state(summary),
        _taken(report, summary),
    )


def _taken(report: Report, summary: ChannelSummary) -> str:
    """When a channel that is read rarely was read; nothing for one that is read every time."""
    newest = as_of(report)
    if summary.taken is None or newest is None:
        return ""
    age_s = newest - summary.taken
    late_s = max(1.5 * (report.process.interval_s or 1.0), NEWS_AFTER_S)
    return f"read {format_duration(age_s)} before" if age_s > late_s else ""


def _alive(report: Report, width: int) -> Iterator[str]:
    """What was alive when somebody asked (`memwatch report --now`), where nothing grows that evidence would be about."""
    census = next((item for item in reversed(report.censuses) if any(part.collector == "types" for part in item.evidence)), None)
    if census is None or report.evidence:
        return
    for part in census.evidence:
        name = {"types": "alive, by type", "sites": "alive, by the line that allocated it"}.get(part.collector, part.collector)
        kept, left_out = part.suspects[:SUSPECTS_SHOWN], part.suspects[SUSPECTS_SHOWN:]
        note = f"; {shown(part.note)}" if part.note else ""
        yield from wrapped(f"{name} ({moment(census.time_s)} UTC){note}:", width, first=INDENT, rest=INDENT * 2)
        firsts, indent = numbers(kept)
        for first, suspect in zip(firsts, kept, strict=True):
            amount_alive = first.replace("+", " ", 1)  # a level, not a growth
            yield from wrapped(counted(part.collector, suspect), width, first=amount_alive, rest=indent + INDENT)
        if left_out:
            yield from wrapped(others(left_out), width, first=indent)


def _evidence(evidence: Evidence, width: int) -> Iterator[str]:
    name = COLLECTOR_TITLES.get(evidence.collector, shown(evidence.collector))
    explained = f" {share_of(evidence.explains)} of the growth explained" if evidence.explains is not None else ""
    only = f" {shown(evidence.note)}" if evidence.note and not evidence.suspects else ""
    parts = "; ".join(filter(None, (explained, only)))
    yield from wrapped(f"{name}:{parts}", width, first=INDENT, rest=INDENT * 2)
    kept, left_out = evidence.suspects[:SUSPECTS_SHOWN], evidence.suspects[SUSPECTS_SHOWN:]
    firsts, indent = numbers(kept)
    for first, suspect in zip(firsts, kept, strict=True):
        rest = indent + INDENT
        if evidence.collector == "holders":
            path = joined((counted("holders", suspect), *suspect.trail), " →", width - cells(first))
            yield from wrapped(path, width, first=first, rest=rest)
            continue
        yield from wrapped(counted(evidence.collector, suspect), width, first=first, rest=rest)
        if suspect.trail:
            word, arrow = TRAILS.get(evidence.collector, ("from", " →"))
            yield from wrapped(joined(suspect.trail, arrow, width - cells(rest)), width, first=f"{indent}{word}  ", rest=rest)
    if left_out:
        yield from wrapped(others(left_out), width, first=indent)
    if evidence.note and evidence.suspects:
        yield from wrapped(shown(evidence.note), width, first=f"{INDENT}note: ", rest=INDENT * 2)


ROUTES_SHOWN = 6
"""With what is blamed, the header and the count of the others: ten lines at most, where names are not too long for one."""


def _routes(report: Report, width: int) -> Iterator[str]:
    if not report.routes:
        return
    blamed = blamed_routes(report.routes)[:2]
    if blamed:
        for row in blamed:
            yield from wrapped(shown(blame(row)), width, first=INDENT, rest=INDENT * 2)
    elif report.routes_note:
        yield from wrapped(f"which route it is cannot be told: {shown(report.routes_note)}", width, first=INDENT, rest=INDENT * 2)
    kept = report.routes[:ROUTES_SHOWN]
    rows = [("routes", *ROUTE_HEADER[1:]), *map(route_cells, kept)]
    used = [column for column in range(len(ROUTE_HEADER)) if column == 0 or any(cell[column] for cell in rows[1:])]
    lines = table([[cell[column] for column in used] for cell in rows], right=range(1, len(used)))
    if max(map(cells, lines)) + len(INDENT) <= width:
        yield from (INDENT + line for line in lines)
    else:
        yield f"{INDENT}routes:"
        for name, *figures in rows[1:]:
            parts = [f"{what} {figure}" for what, figure in zip(ROUTE_HEADER[1:], figures, strict=True) if figure]
            yield from wrapped(f"{name}  {', '.join(parts)}", width, first=INDENT * 2, rest=INDENT * 3)
    if report.routes[ROUTES_SHOWN:]:
        yield f"{INDENT}… and {len(report.routes) - len(kept)} more"


def _caches(report: Report, width: int) -> Iterator[str]:
    if report.caches:
        yield f"{INDENT}caches:"
    for cache in report.caches:
        yield from wrapped(shown(cache_line(cache)), width, first=INDENT * 2, rest=INDENT * 4)


def _happened(report: Report, width: int) -> Iterator[str]:
    events = [event for event in report.events if event.what != "end"]
    if not events:
        return
    kept = events[-EVENTS_SHOWN:]
    left_out = f", the last {len(kept)} of {len(events):,} events" if len(events) > len(kept) else ""
    yield from wrapped(f"what happened (UTC){left_out}:", width, first=INDENT)
    day = ""
    word = min(WHAT_SHOWN, max(cells(shown(event.what)) for event in kept))
    for event in kept:
        date, _, time = moment(event.time_s).rpartition(" ")
        if date != day:
            day = date
            yield f"{INDENT}{date or 'at an unknown time'}"
        yield from _event(event, time, word, width)


def _event(event: Event, time: str, word: int, width: int) -> Iterator[str]:
    what, told = shown(event.what), happened(event)
    if cells(what) > word:  # no kind of event of ours: it stands with its details
        what, told = "", f"{what}: {told}"
    first = f"{INDENT * 2}{time}  {padded(what, word)}  "
    yield from wrapped(told, width, first=first, rest=INDENT * 4 if width < 72 else None)


def _facts(report: Report, width: int) -> Iterator[str]:
    for name, text in facts(report):
        yield from wrapped(text, width, first=f"{INDENT}{padded(name, FACT)}")


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Who was watched, for how long, and what became of it, as (name, text)."""
    process, statistics = report.process, report.statistics
    if process.command:
        yield "command", _command(process.command)
    where = [f"pid {process.pid}"]
    if process.ppid is not None:
        where.append(f"parent {process.ppid}")
    if process.host:
        where.append(f"on {shown(process.host)}")
    if process.python:
        where.append(f"Python {shown(process.python)}")
    yield "process", ", ".join(where)
    if process.labels:
        yield "labels", ", ".join(f"{shown(key)}={shown(value)}" for key, value in process.labels.items())
    if process.started is not None:
        yield "started", f"{moment(process.started)} UTC"
    every = f", one every {format_duration(process.interval_s)}" if process.interval_s else ""
    if statistics.samples:
        yield "watched", f"for {format_duration(statistics.uptime_s)}, {format_count(statistics.samples)} samples{every}"
    else:
        yield "watched", "no sample was taken yet"
    if process.fate != "running":
        how = f": {shown(process.end)}" if process.end else ""
        when = f" {moment(process.ended)} UTC" if process.ended is not None else ""
        yield fate_word(process), f"{when.strip()}{how}" or "nobody saw how"


def _command(command: tuple[str, ...]) -> str:
    whole = shown(shlex.join(command))
    if len(whole) <= COMMAND_SHOWN:
        return whole
    return f"{whole[:COMMAND_SHOWN]} … and {len(whole) - COMMAND_SHOWN:,} more characters"


def next_command(report: Report) -> str:
    """What to type next, given what was found."""
    pid = report.process.pid
    if report.verdict.state == "leaking":
        return f"memwatch report {pid} --html leak.html  (the curves; --format markdown for an issue)"
    if report.process.fate == "running" and report.verdict.state == "stable":
        return "memwatch ps  (all watched processes)"
    return f"memwatch report {pid}  (as it is then)" if report.process.fate == "running" else f"memwatch report {pid} --json"
