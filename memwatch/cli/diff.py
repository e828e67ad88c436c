"""`memwatch diff`: what grew between two records, two moments of one, or two releases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import click

from memwatch.cli import OK, options, records
from memwatch.cli.screen import NotThere, put, put_json, say, width
from memwatch.model import Census, Evidence, Process
from memwatch.record import Record, RecordError
from memwatch.report import shown
from memwatch.report.compare import ROWS, Moment, compare, render_comparison
from memwatch.report.words import moment as told
from memwatch.units import parse_duration

MOMENTS = "first, last, -1h (before the last sample) or 2026-11-25T12:00 (UTC)"


@click.command("diff", short_help="What grew between two records or moments.")
@click.argument("targets", nargs=-1, metavar="[A B]")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Twice: the newest record with each, in place of A and B."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"Rows of each table [{ROWS}; with --json all].")
@click.option("--json", "as_json", is_flag=True, help="An object: both moments, channels, types, sites, resources.")
@options.settings("directory")
def command(targets: tuple[str, ...], labels: tuple[str, ...], limit: int | None, as_json: bool, directory: str | None) -> int:
    """What grew from A to B: channels, and by type and site where censuses were taken.

    A and B are pids, names, record files or directories as for `memwatch report`, each with a moment after @ if you like:
    api@first, api@last, api@-1h, api@2026-11-25T12:00 (UTC).  Without one it is the last.

    Between releases: --label version=1.4.1 --label version=1.4.2, with the name of the process if there are several.
    """
    place = options.record_directory(options.load(directory=directory))
    sides = _labelled(labels, targets, place) if labels else _named(targets, place)
    comparison = compare(*sides)
    if as_json:
        put_json(comparison.to_dict(limit=limit))
    else:
        put(render_comparison(comparison, width=width(), limit=limit))
    return OK


def _named(targets: tuple[str, ...], place: Path) -> tuple[Moment, Moment]:
    if len(targets) != 2:
        raise click.UsageError(
            f"two are compared, {len(targets)} {'was' if len(targets) == 1 else 'were'} given: memwatch diff A B, "
            "for two moments of one process memwatch diff api@first api@last"
        )
    find = cache(lambda target: records.find(target, place))  # what is said of several is said once
    a, b = (_side(target, find) for target in targets)
    return a, b


def _side(text: str, find: Callable[[str], Path]) -> Moment:
    target, when = _split(text)
    try:
        path = find(target)
    except NotThere as error:
        if "@" in target:
            raise click.UsageError(f"{target!r} is no record, and what follows @ is no moment: {MOMENTS}") from None
        raise error
    return _read(path, when)


def _split(text: str) -> tuple[str, str]:
    """A target and the moment after its last @; a name may have an @ itself, as Celery's workers do."""
    target, at, when = text.rpartition("@")
    if at and target and not Path(text).exists() and _is_moment(when):
        return target, when
    return text, "last"


def _is_moment(text: str) -> bool:
    try:
        return text in ("first", "last") or _at(text, 0.0) is not None
    except ValueError:
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


def _read(path: Path, when: str) -> Moment:
    try:
        with Record(path) as record:
            return _moment(record, when)
    except RecordError as error:
        raise NotThere(str(error)) from None


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
        began = next((start for start, *_ in record.coarse()), None) or next(record.samples()).time_s
        raise NotThere(
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


def _labelled(labels: tuple[str, ...], targets: tuple[str, ...], place: Path) -> tuple[Moment, Moment]:
    if len(labels) != 2 or len(targets) > 1:
        raise click.UsageError("--label is given twice, once for each side, with at most the name of a process beside it")
    wanted = [_pair(label) for label in labels]
    name = targets[0] if targets else None
    everything = [found for found in records.read_all(place) if name in (None, found.report.process.name)]
    a = _newest(everything, wanted[0], name)
    # Of another service the same label says nothing: the other side is of the same name where there is one.
    b = _newest([found for found in everything if found.report.process.name == a.report.process.name], wanted[1], name, everything)
    first, second = (shown(found.report.process.name) for found in (a, b))
    if first != second:
        say(f"for want of records of one program with both labels two are compared: {first} and {second}")
    return _read(a.path, "last"), _read(b.path, "last")


def _newest(
    among: list[records.Found], wanted: tuple[str, str], name: str | None, otherwise: list[records.Found] | None = None
) -> records.Found:
    for found in (*among, *(otherwise or [])):
        if found.report.process.labels.get(wanted[0]) == wanted[1]:
            return found
    known = sorted({value for found in otherwise or among for key, value in _labels(found.report.process) if key == wanted[0]})
    hint = f"; there are records with {', '.join(f'{wanted[0]}={shown(value)}' for value in known[:8])}" if known else ""
    raise NotThere(f"no record{f' of {name}' if name else ''} has the label {'='.join(wanted)}{hint}")


def _labels(process: Process) -> list[tuple[str, str]]:
    return list(process.labels.items())


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not key or not equals:
        raise click.UsageError(f"--label: {label!r} is not KEY=VALUE")
    return key, value
