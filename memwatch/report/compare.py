"""Two moments side by side: what grew from one to the other, by channel and, where censuses were taken, by type, site and resource.

Law: pure.  A level that is not known is absent, not 0: a row that only one side has is told with the other left open.  Growth per
hour is told of one process only: between two, time says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memwatch.model import CHANNELS, SCHEMA, Census, Evidence, Process, iso
from memwatch.report.layout import cells, padded, shown, table, wrapped
from memwatch.report.words import amount, moment, title, unit
from memwatch.units import format_count, format_duration, format_size

ROWS = 20
WORTH_A_ROW = 0.01
"""Part of the largest growth in a table below which a row is only counted, where nobody said how many to show."""
INDENT = "  "
LABEL_AT_LEAST = 30
"""Columns for a name beside its numbers; with fewer, a row takes two lines."""
TITLES = {"types": "by type", "sites": "by site", "resources": "by resource"}
_LINE = re.compile(r":\d+(?= |$)")


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of one process at one moment."""

    process: Process
    time_s: float | None
    """Unix time of the sample; None where there was none."""
    values: Mapping[str, float] = field(default_factory=dict)
    census: Census | None = None
    """The census nearest to the moment."""


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity at both moments."""

    before: float | None
    after: float | None
    per_hour: float | None = None

    @property
    def grown(self) -> float:
        """What is not known of one side counts as nothing: it was not worth listing there."""
        return (self.after or 0.0) - (self.before or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        return {"a": self.before, "b": self.after, "grown": self.grown, "per_hour": self.per_hour}


@dataclass(frozen=True, slots=True)
class Row:
    """One type, site or group of resources at both moments."""

    label: str
    bytes: Change | None
    count: Change | None
    trail: tuple[str, ...] = ()

    @property
    def grown(self) -> tuple[float, float]:
        """Sort key: bytes, and where they say nothing how many."""
        return (self.bytes.grown if self.bytes is not None else 0.0, self.count.grown if self.count is not None else 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "bytes": None if self.bytes is None else self.bytes.to_dict(),
            "count": None if self.count is None else self.count.to_dict(),
            "trail": list(self.trail),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from A to B."""

    a: Moment
    b: Moment
    channels: Mapping[str, Change]
    tables: Mapping[str, tuple[Row, ...]]
    """By collector of the censuses: every row, the largest growth first."""
    notes: tuple[str, ...]

    def to_dict(self, *, limit: int | None = None) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "a": _moment_to_dict(self.a),
            "b": _moment_to_dict(self.b),
            "same_process": is_same(self.a.process, self.b.process),
            "seconds": _apart(self.a.time_s, self.b.time_s),
            "channels": {name: change.to_dict() for name, change in self.channels.items()},
            "tables": {name: [row.to_dict() for row in rows[:limit]] for name, rows in self.tables.items()},
            "notes": list(self.notes),
        }


def _moment_to_dict(side: Moment) -> dict[str, Any]:
    census = None if side.census is None else iso(side.census.time_s)
    return {"process": side.process.to_dict(), "time": iso(side.time_s), "census": census}


def is_same(one: Process, other: Process) -> bool:
    """Whether two records are of one process."""
    return (one.host, one.pid, one.boot, one.start_ticks, one.started) == (
        other.host,
        other.pid,
        other.boot,
        other.start_ticks,
        other.started,
    )


def _apart(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def compare(a: Moment, b: Moment) -> Comparison:
    """What changed from *a* to *b*."""
    same = is_same(a.process, b.process)
    seconds = _apart(a.time_s, b.time_s) if same else None
    notes = []
    if seconds is not None and seconds < 0:
        notes.append("A is later than B: what is shown as growth went the other way")
    order = [channel.name for channel in CHANNELS]
    names = sorted({*a.values, *b.values}, key=lambda name: (order.index(name) if name in order else len(order), name))
    channels = {name: _change(a.values.get(name), b.values.get(name), seconds) for name in names}
    note = _no_tables(a, b, same=same)
    if note is not None or a.census is None or b.census is None:
        return Comparison(a, b, channels, {}, (*notes, *([note] if note else [])))
    apart = _apart(a.census.time_s, b.census.time_s) if same else None
    before, after = ({item.collector: item for item in side.evidence} for side in (a.census, b.census))
    tables = {}
    for name in sorted({*before, *after}, key=lambda name: ([*TITLES].index(name) if name in TITLES else len(TITLES), name)):
        missing = [side for side, found in (("A", before), ("B", after)) if name not in found]
        if missing:
            notes.append(f"the census of {missing[0]} has no {name}: they are not compared")
        else:
            tables[name] = _rows(before[name], after[name], apart, same=same)
            notes += [f"{name} in {side}: {found[name].note}" for side, found in (("A", before), ("B", after)) if found[name].note]
    return Comparison(a, b, channels, tables, tuple(notes))


def _no_tables(a: Moment, b: Moment, *, same: bool) -> str | None:
    missing = [side for side, found in (("A", a), ("B", b)) if found.census is None]
    if missing:
        return (
            f"no census of {' and '.join(missing)} was recorded, so only channels are compared: "
            "a census is taken inside the process, when growth is suspected"
        )
    if same and a.census is not None and a.census == b.census:
        return f"the census of {moment(a.census.time_s)} UTC is the nearest to both moments, so only channels are compared"
    return None


def _change(before: float | None, after: float | None, seconds: float | None) -> Change:
    known = before is not None and after is not None and seconds is not None and seconds > 0
    return Change(before, after, ((after or 0.0) - (before or 0.0)) * 3600.0 / (seconds or 1.0) if known else None)


def _rows(before: Evidence, after: Evidence, seconds: float | None, *, same: bool) -> tuple[Row, ...]:
    first, second = _levels(before, same=same), _levels(after, same=same)
    rows = []
    for key in {**first, **second}:
        old, new = first.get(key, _Level(key)), second.get(key, _Level(key))
        known = new if key in second else old
        size = _change(old.bytes, new.bytes, seconds) if known.bytes is not None else None
        count = _change(old.count, new.count, seconds) if known.count is not None else None
        rows.append(Row(known.label, size, count, known.trail))
    return tuple(sorted(rows, key=lambda row: (-row.grown[0], -row.grown[1], row.label)))


@dataclass(slots=True)
class _Level:
    label: str
    bytes: float | None = None
    count: float | None = None
    trail: tuple[str, ...] = ()


def _levels(evidence: Evidence, *, same: bool) -> dict[str, _Level]:
    """Levels by what names a row on both sides: in another process a function's lines have moved."""
    levels: dict[str, _Level] = {}
    for suspect in evidence.suspects:
        key = suspect.label if same or evidence.collector != "sites" else _LINE.sub("", suspect.label, count=1)
        known = levels.get(key)
        if known is None:
            levels[key] = _Level(suspect.label, suspect.bytes, suspect.count, suspect.trail)
            continue
        known.bytes = _sum(known.bytes, suspect.bytes)
        known.count = _sum(known.count, suspect.count)
    return levels


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


# -- as text -------------------------------------------------------------------------------------------------------------------


def render_comparison(comparison: Comparison, *, width: int, limit: int | None = None) -> str:
    """Render a comparison as text of at most *width* columns.

    Args:
        limit: rows of each table; the rest is counted.  None is `ROWS`, and none that grew by next to nothing.
    """
    a, b = comparison.a, comparison.b
    blocks = [
        [*_side("A", a, b, width), *_side("B", b, a, width), *_between(comparison, width)],
        list(_channels(comparison, width)),
        *(list(_table(comparison, name, rows, width, limit)) for name, rows in comparison.tables.items()),
        [line for note in comparison.notes for line in wrapped(shown(note), width, first="note: ", rest=INDENT)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _side(name: str, side: Moment, other: Moment, width: int) -> Iterator[str]:
    process = side.process
    parts = [f"{shown(process.name)}[{process.pid}]"]
    if process.host != other.process.host and process.host:
        parts.append(f"on {shown(process.host)}")
    parts.append(f"{moment(side.time_s)} UTC" if side.time_s is not None else "no sample was taken")
    if side.time_s is not None and process.started is not None and side.time_s >= process.started:
        parts.append(f"{format_duration(side.time_s - process.started)} after its start")
    parts += [f"{shown(key)}={shown(value)}" for key, value in process.labels.items() if other.process.labels.get(key) != value]
    yield from wrapped(f"{parts[0]}  {', '.join(parts[1:])}", width, first=f"{name}  ", rest=INDENT * 2)


def _between(comparison: Comparison, width: int) -> Iterator[str]:
    text = between(comparison)
    if text:
        yield from wrapped(text, width, first="   ")


def between(comparison: Comparison) -> str:
    """What lies between the two moments, in words; empty where one of them has no sample."""
    seconds = _apart(comparison.a.time_s, comparison.b.time_s)
    if seconds is None:
        return ""
    if is_same(comparison.a.process, comparison.b.process):
        return f"one process, {format_duration(abs(seconds))} apart"
    return "two processes: levels are compared, and there is no growth per hour"


def _channels(comparison: Comparison, width: int) -> Iterator[str]:
    changed = [(name, item) for name, item in comparison.channels.items() if item.before != item.after or name == "rss"]
    same = [name for name, item in comparison.channels.items() if item.before == item.after and name != "rss"]
    rows = [
        (title(name), _or_dash(amount(name, item.before)), _or_dash(amount(name, item.after)), *moved(name, item))
        for name, item in changed
    ]
    if rows:
        header = ("", "A", "B", "change", "per hour")
        used = [column for column in range(5) if not column or any(row[column] for row in rows)]
        lines = table([[row[column] for column in used] for row in (header, *rows)], right=range(1, len(used)))
        if max(map(cells, lines)) + len(INDENT) <= width:
            yield from (INDENT + line for line in lines)
        else:
            for name, before, after, change, rate in rows:
                text = "  ".join(filter(None, (padded(name, 18), change, rate and f"{rate}/h", f"({before} → {after})")))
                yield from wrapped(text, width, first=INDENT, rest=INDENT * 2)
    if same:
        yield from wrapped(", ".join(map(title, same)), width, first=f"{INDENT}unchanged: ", rest=INDENT * 2)


def moved(name: str, item: Change) -> tuple[str, str]:
    """How far a channel moved, and per hour, in its unit; empty where it is not known."""
    if item.before is None or item.after is None:
        return "", ""
    rate = "" if item.per_hour is None or unit(name) in ("seconds", "percent") else _signed(name, item.per_hour)
    return _signed(name, item.grown), rate


def _signed(name: str, value: float) -> str:
    if value < 0:
        return f"-{amount(name, -value)}"
    return f"+{amount(name, value)}" if value else "0"


def _or_dash(text: str) -> str:
    return text or "–"


def _table(comparison: Comparison, name: str, rows: Sequence[Row], width: int, limit: int | None) -> Iterator[str]:
    yield from wrapped(f"{TITLES.get(name, shown(name))}{when_taken(comparison)}:", width, first=INDENT)
    kept, more = grown_most(rows, limit)
    if not kept:
        yield f"{INDENT * 2}nothing grew"
    yield from _listed(kept, width)
    for line in more:
        yield from wrapped(line, width, first=INDENT * 2)


def grown_most(rows: Sequence[Row], limit: int | None = None) -> tuple[list[Row], list[str]]:
    """The rows of a table that are worth showing, and what is said of the others."""
    grown = [row for row in rows if row.grown > (0.0, 0.0)]
    kept = grown[:limit] if limit is not None else [row for row in grown[:ROWS] if _size(row) >= WORTH_A_ROW * _size(grown[0])]
    more = []
    for text, left_out in (
        ("more that grew", grown[len(kept) :]),
        ("that shrank", [row for row in rows if row.grown < (0.0, 0.0)]),
    ):
        if left_out:
            total = _total(left_out)
            more.append(f"and {len(left_out):,} {text}{f', {total}' if total else ''}")
    return kept, more


def _size(row: Row) -> float:
    """What a row grew by: in bytes, or where they say nothing in objects."""
    size, count = row.grown
    return size or count


def when_taken(comparison: Comparison) -> str:
    """When the censuses were taken, where that is not when the samples were."""
    sides = (comparison.a, comparison.b)
    times = [(side.census.time_s if side.census is not None else None, side.time_s) for side in sides]
    apart = abs(_apart(comparison.a.time_s, comparison.b.time_s) or 0.0)
    near = min(60.0, apart / 20) if is_same(comparison.a.process, comparison.b.process) else 60.0
    if all(taken is not None and time_s is not None and abs(taken - time_s) <= near for taken, time_s in times):
        return ""
    return f" (censuses of {' and '.join(moment(taken) for taken, _ in times)} UTC)"


def _total(rows: Sequence[Row]) -> str:
    if any(row.bytes is not None for row in rows):
        return format_size(sum(row.bytes.grown for row in rows if row.bytes is not None), sign=True)
    return format_count(sum(row.count.grown for row in rows if row.count is not None), sign=True)


def _listed(rows: Sequence[Row], width: int) -> Iterator[str]:
    if not rows:
        return
    header = ("growth", "per hour", "A", "B", "objects")
    told = [numbers(row) for row in rows]
    used = [column for column in range(len(header)) if any(row[column] for row in told)]
    lines = table([[row[column] for column in used] for row in (header, *told)], right=range(len(used)))
    wide = max(map(cells, lines)) + 2 * len(INDENT) + 2
    if wide + LABEL_AT_LEAST <= width:
        yield f"{INDENT * 2}{lines[0]}"
        for line, row in zip(lines[1:], rows, strict=True):
            yield from wrapped(shown(row.label), width, first=padded(f"{INDENT * 2}{line}", wide))
        return
    for row, (growth, rate, before, after, objects) in zip(rows, told, strict=True):  # the name, and its numbers below
        yield from wrapped(shown(row.label), width, first=f"{INDENT * 2}{growth}  ", rest=INDENT * 4)
        more = (rate and f"{rate}/h", before and f"{before} → {after}", objects and f"{objects} objects")
        yield from wrapped(", ".join(filter(None, more)), width, first=INDENT * 4)


def numbers(row: Row) -> tuple[str, str, str, str, str]:
    """Growth, growth per hour, A and B, in bytes where they are known, else in objects; and with bytes the growth in objects."""
    size, count = row.bytes, row.count
    if size is not None:
        objects = "" if count is None else format_count(count.grown, sign=True)
        return *_columns(size, format_size), objects
    return (*_columns(count, format_count), "") if count is not None else ("", "", "", "", "")


def _columns(change: Change, form: Callable[..., str]) -> tuple[str, str, str, str]:
    rate = "" if change.per_hour is None else form(change.per_hour, sign=True)
    before, after = ("–" if level is None else form(level) for level in (change.before, change.after))
    return form(change.grown, sign=True), rate, before, after
