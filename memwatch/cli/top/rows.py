"""The table of processes: what stands in a row, in which order rows come, and which columns a terminal has room for.

Law: pure.  A state, a rate, a size and a time left are never cut; a long name is, before its pid.  What there is no room for goes:
first how long a process was watched, then the kind of growth, then its curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memwatch.cli.top.draw import spark
from memwatch.fleet import Found, worst_first
from memwatch.report import shown
from memwatch.report.layout import cells
from memwatch.report.words import (
    as_of,
    fate_word,
    grows,
    is_bytes,
    memory_limit,
    of_limit,
    pace,
    resident_bytes,
    status,
    time_left_s,
    what_grows,
)
from memwatch.units import format_duration, format_left_short

SPARK_LEAST, SPARK_MOST = 6, 30
"""A curve of fewer blocks says nothing; one of more says no more."""
NAME_LEAST, NAME_MOST = 16, 32
"""A name has so much before the curve has its place, and so much before the kind of growth has; what is left is its own."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column as it is drawn."""

    key: str
    title: str
    width: int
    right: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One process."""

    path: Path
    found: Found
    texts: Mapping[str, str]
    """By the key of the column, whole."""
    curve: tuple[float, ...]


TITLES: Mapping[str, str] = {
    "state": "STATE",
    "process": "PROCESS",
    "kind": "KIND",
    "rate": "RATE",
    "rss": "RSS",
    "left": "TIME LEFT",
    "curve": "RSS CURVE",
    "watched": "WATCHED",
}
RIGHT = ("rate", "rss", "left")


def row(found: Found, curve: tuple[float, ...]) -> Row:
    """What is told of one process."""
    report, verdict = found.report, found.report.verdict
    rss = resident_bytes(report)
    left_s, is_running = time_left_s(report), report.process.fate == "running"
    texts = {
        "state": status(verdict),
        "process": f"{shown(report.process.name[:200])}[{report.process.pid}]",
        "kind": what_grows(verdict) if grows(report) else "",
        "rate": pace(verdict.channel, verdict.rate) if grows(report) else "",
        "rss": "" if rss is None else of_limit(rss, memory_limit(report)),
        # What is left of a process that has ended is how it ended, and that must be told without colour, too.
        "left": format_left_short(left_s) if left_s is not None else "" if is_running else fate_word(report.process),
        "watched": format_duration(report.statistics.uptime_s) if as_of(report) is not None else "no sample",
    }
    return Row(found.path, found, texts, curve)


def columns(rows: Sequence[Row], width: int) -> list[Column]:
    """The columns that *width* cells have room for, from left to right."""
    gap = 1 if width < 100 else 2
    need = {key: max([cells(title), *(cells(each.texts.get(key, "")) for each in rows)]) for key, title in TITLES.items()}
    whole = need["process"]
    chosen = {key: need[key] for key in ("state", "rate", "rss", "left")}
    room = width - sum(chosen.values()) - gap * len(chosen) - gap
    chosen["process"] = max(min(whole, NAME_LEAST), min(whole, room) if room < NAME_LEAST + SPARK_LEAST + gap else 0)
    room -= chosen["process"]
    if room >= SPARK_LEAST + gap:
        chosen["curve"] = SPARK_LEAST
        room -= SPARK_LEAST + gap
        room = _widened(chosen, "process", min(whole, NAME_MOST), room)
        room = _widened(chosen, "curve", len(TITLES["curve"]), room)
    for key in ("kind", "watched"):
        if "curve" in chosen and room >= need[key] + gap:
            chosen[key] = need[key]
            room -= need[key] + gap
    room = _widened(chosen, "process", whole, room)
    if "curve" in chosen:
        _widened(chosen, "curve", SPARK_MOST, room)
    titles = {**TITLES, "curve": TITLES["curve"] if chosen.get("curve", 0) >= len(TITLES["curve"]) else "CURVE"}
    return [Column(key, titles[key], chosen[key] + gap, key in RIGHT) for key in TITLES if key in chosen]


def _widened(chosen: dict[str, int], key: str, wanted: int, room: int) -> int:
    """Give a column what it wants of the room; returns what is left of that."""
    more = max(0, min(wanted - chosen[key], room))
    chosen[key] += more
    return room - more


def cell(row: Row, column: Column, gap: int) -> str:
    """The text of one cell, as wide as its column."""
    width = column.width - gap
    text = spark(row.curve, width) if column.key == "curve" else row.texts[column.key]
    text = shortened(text, width, keep=column.key == "process")
    space = " " * (width - cells(text))
    return (space + text if column.right else text + space) + " " * gap


def shortened(text: str, width: int, *, keep: bool = False) -> str:
    """*text* in at most *width* cells; with *keep* its end stays, where the pid is, if there is room for anything else."""
    if cells(text) <= width:
        return text
    name, _, pid = text.rpartition("[") if keep else (text, "", "")
    tail = f"…[{pid}" if keep and name and cells(pid) + 4 <= width else "…"
    body = name if len(tail) > 1 else text
    while body and cells(body) + cells(tail) > width:
        body = body[: min(len(body) - 1, width)]
    return body + tail


def _number(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _rate(item: Found) -> tuple[bool, float]:
    verdict = item.report.verdict
    moving = grows(item.report)
    return moving and is_bytes(verdict.channel), _number(verdict.rate) if moving else -math.inf


SORTS: Mapping[str, tuple[str, Callable[[Iterable[Found]], list[Found]]]] = {
    "state": ("worst first", worst_first),
    "process": ("by name", lambda found: sorted(found, key=lambda item: (item.report.process.name, item.report.process.pid))),
    "rate": ("fastest growth first", lambda found: sorted(found, key=_rate, reverse=True)),
    "rss": ("largest first", lambda found: sorted(found, key=lambda item: _number(resident_bytes(item.report)), reverse=True)),
    "left": ("least time left first", lambda found: sorted(found, key=lambda item: -_number(_soon(item)))),
    "watched": ("longest watched first", lambda found: sorted(found, key=lambda item: -item.report.statistics.uptime_s)),
}
"""What a table can be sorted by: the column, how it is said, and the order.  Among equals the most recently written comes first."""


def _soon(item: Found) -> float | None:
    left_s = time_left_s(item.report)
    return None if left_s is None else -left_s


def matches(found: Found, wanted: str) -> bool:
    """Whether a process is meant by what somebody typed: a part of its name, or the beginning of its pid."""
    process = found.report.process
    return wanted.casefold() in process.name.casefold() or (wanted.isdigit() and str(process.pid).startswith(wanted))
