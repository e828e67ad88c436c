"""A moment of a record: `api@-1h`, `api@first`, `api@2026-11-25T12:00`, and what is known of the process then.

Law: only reads.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from memwatch.model import Census, Evidence
from memwatch.record import Record
from memwatch.report.compare import Moment
from memwatch.report.layout import shown
from memwatch.report.words import moment as told
from memwatch.units import parse_duration

MOMENTS = "first, last, -1h (before the last sample) or 2026-11-25T12:00 (UTC)"


class NothingThen(LookupError):
    """Nothing was sampled by that moment; the message says when the record begins."""


def split(text: str, is_target: Callable[[str], bool]) -> tuple[str, str]:
    """A target and the moment after its last @; a name may have an @ itself, as Celery's workers do.

    Args:
        is_target: whether the whole text is there as a target.
    """
    target, at, when = text.rpartition("@")
    if at and target and not is_target(text) and is_moment(when):
        return target, when
    return text, "last"


def is_moment(text: str) -> bool:
    """Whether a text names a moment, see `MOMENTS`."""
    try:
        return text in ("first", "last") or _at(text, 0.0) is not None
    except (ValueError, OverflowError):  # a year that no clock has
        return False


def _at(text: str, last_s: float) -> float:
    """The Unix time that a moment means in a record that ends at *last_s*.

    Raises:
        ValueError: it is no moment.
    """
    if text.startswith("-"):
        return last_s - parse_duration(text[1:])
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def read_moment(path: Path, when: str) -> Moment:
    """What a record knows of a moment that `is_moment` accepts.

    Raises:
        RecordError: it cannot be read.
        NothingThen: it begins later.
    """
    with Record(path) as record:
        return _moment(record, when)


def _moment(record: Record, when: str) -> Moment:
    process, last_s, censuses = record.process(), record.last_written(), record.censuses()
    if last_s is None:
        return Moment(process, None, {}, _nearest(censuses, "first" if when == "first" else "last", 0.0))
    wanted_s = None if when in ("first", "last") else _at(when, last_s)
    if when == "first":
        time_s, values = next(((start, mean) for start, _, mean, _ in record.coarse()), (None, {}))
        first = next(record.samples(), None)
        if first is not None and (time_s is None or first.time_s <= time_s + 300):
            time_s, values = first.time_s, dict(first.values)
    else:
        time_s, values = _known_at(record, last_s if wanted_s is None else wanted_s)
    if time_s is None:
        # A coarse bucket begins on the clock's minutes, maybe before the process did.
        firsts = [next((start for start, *_ in record.coarse()), None), process.started]
        began = max((moment for moment in firsts if moment is not None), default=None) or next(record.samples()).time_s
        raise NothingThen(
            f"nothing was sampled of {shown(process.name)}[{process.pid}] by {told(wanted_s)} UTC: its record begins at "
            f"{told(began)} UTC (@first)"
        )
    return Moment(process, time_s, values, _nearest(censuses, when, time_s))


def _known_at(record: Record, wanted_s: float) -> tuple[float | None, dict[str, float]]:
    """The last reading of each channel by then: costly ones are read rarely."""
    time_s: float | None = None
    values: dict[str, float] = {}
    for sample in record.samples():
        if sample.time_s > wanted_s:
            break
        time_s = sample.time_s
        values.update(sample.values)
    if time_s is None:  # older than the fine samples
        for start, _, mean, _ in record.coarse():
            if start > wanted_s:
                break
            time_s, values = start, mean
    return time_s, values


def _nearest(censuses: tuple[Census, ...], when: str, time_s: float) -> Census | None:
    """For each table the census nearest to a moment that has it: not every census has all of them."""
    if not censuses:
        return None
    wanted_s = {"first": censuses[0].time_s, "last": censuses[-1].time_s}.get(when, time_s)
    ordered = sorted(censuses, key=lambda census: abs(census.time_s - wanted_s))
    tables: dict[str, Evidence] = {}
    for census in ordered:
        for item in census.evidence:
            tables.setdefault(item.collector, item)
    return Census(ordered[0].time_s, tuple(tables.values()))
