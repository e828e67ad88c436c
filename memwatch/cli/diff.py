"""`memwatch diff`: what grew between two records, two moments of one, or two releases."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import click

from memwatch.cli import OK, options, records
from memwatch.cli.screen import NotThere, put, put_json, say, width
from memwatch.model import Process
from memwatch.moments import MOMENTS, NothingThen, read_moment, split
from memwatch.record import RecordError
from memwatch.report import shown
from memwatch.report.compare import ROWS, Moment, compare, render_comparison


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
    target, when = split(text, lambda text: Path(text).exists())
    try:
        path = find(target)
    except NotThere as error:
        if "@" in target:
            raise click.UsageError(f"{target!r} is no record, and what follows @ is no moment: {MOMENTS}") from None
        raise error
    return _read(path, when)


def _read(path: Path, when: str) -> Moment:
    try:
        return read_moment(path, when)
    except (RecordError, NothingThen) as error:
        raise NotThere(str(error)) from None


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
