"""Finding the record somebody means: by pid, name, file or directory."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from memwatch.cli.screen import NotThere, say
from memwatch.model import NO_GOODBYE, SEVERITY_ORDER, Process, Report
from memwatch.record import NoSuchRecord, Record, RecordError, find_records
from memwatch.report import shown
from memwatch.report.words import as_of
from memwatch.vitals import is_running, oom_kills

STALE_INTERVALS = 5
"""On another host or in another container nobody can be asked: a record this many intervals old is of a dead process (guess)."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record and what it says."""

    path: Path
    report: Report


def read(path: Path, *, history: bool = False) -> Found:
    """Read one record, and find out whether its process still runs.

    Raises:
        RecordError: it cannot be read.
    """
    found = _read(path, history=history)
    process = found.report.process
    if process.fate != "running" or process.start_ticks is None:
        return found
    others = []
    for other in find_records(path.parent):
        if f"-{process.pid}-" in other.name and other.name != path.name:
            with contextlib.suppress(RecordError):
                others.append(_read(other))
    return _replaced(found, others)


def _replaced(found: Found, others: Iterable[Found]) -> Found:
    """A record whose process runs another program by now (exec), and writes to one of the *others*: it ended when that began.

    Two watches of one process, from inside and from outside, go on side by side: theirs are both running.
    """
    process, last = found.report.process, as_of(found.report)
    if process.fate != "running" or process.start_ticks is None or last is None:
        return found
    grace_s = 1.5 * (process.interval_s or 10.0) + 1.0
    for other in others:
        now = as_of(other.report)
        if now is None or _same(other.report.process) != _same(process) or now - last <= grace_s:
            continue
        if now - other.report.statistics.uptime_s > last:
            ended = replace(process, fate="exited", ended=last, end="replaced by another program (exec)")
            return replace(found, report=replace(found.report, process=ended))
    return found


def _same(process: Process) -> tuple[object, ...]:
    """What names a process for ever."""
    return process.host, process.pid, process.start_ticks, process.boot


def _read(path: Path, *, history: bool = False) -> Found:
    with Record(path) as record:
        report = record.report(is_running=_asked(record), history=history)
    if report.process.fate == "killed" and report.process.end is not None and report.process.end.startswith(NO_GOODBYE):
        report = replace(report, process=_with_oom_kills(report.process))
    return Found(path, report)


def _asked(record: Record) -> Callable[[Process], bool]:
    def running(process: Process) -> bool:
        if process.host in ("", socket.gethostname()):
            return is_running(process.pid, process.start_ticks, process.boot)
        last = record.last_written()
        return last is not None and time.time() - last < STALE_INTERVALS * max(process.interval_s or 10.0, 1.0)

    return running


def _with_oom_kills(process: Process) -> Process:
    """Add the kernel's hint to a death without goodbye: OOM kills counted since the watch began, if we are in the same group."""
    before = process.oom_kills
    after = oom_kills() if process.host in ("", socket.gethostname()) else None
    if before is None or after is None or after <= before:
        return process
    times = "once" if after == before + 1 else f"{after - before} times"
    return replace(process, end=f"{process.end}; the OOM killer has struck {times} in this control group since it was started")


def read_all(directory: Path) -> list[Found]:
    """Every record in a directory, the most recently written first; those that cannot be read are named on stderr."""
    found = []
    for path in find_records(directory):
        try:
            found.append(_read(path))
        except NoSuchRecord:
            continue  # pruned while we looked
        except RecordError as error:
            say(str(error))
    of_one: dict[tuple[object, ...], list[Found]] = {}
    for item in found:
        of_one.setdefault(_same(item.report.process), []).append(item)
    return [_replaced(item, of_one[_same(item.report.process)]) for item in found]


def rank(found: Found) -> tuple[int, bool, int]:
    """Sort key, worst first: by state, then critical before not, then the better known."""
    verdict = found.report.verdict
    return SEVERITY_ORDER.index(verdict.state), verdict.severity != "critical", -found.report.statistics.samples


def find(target: str | None, directory: Path) -> Path:
    """The record that *target* means: a pid, a name, a record file, a directory of them, or (None) the newest.

    Of several with that name, or in that directory, the one with the worst verdict; how many others there are goes to stderr.

    Raises:
        NotThere: there is none.
    """
    if target is None:
        for newest in find_records(directory):
            try:
                return _read(newest).path
            except RecordError as error:
                say(str(error))
        raise NotThere(f"no records in {directory}; start one with 'memwatch run -- CMD', or name a directory with --directory")
    place = Path(target)
    if place.is_dir():
        return _worst(read_all(place), f"no records in {place}", f"in {place}")
    if place.is_file():
        return place
    everything = read_all(directory)
    if target.isdigit():
        # A pid that was used again: the later process; of two programs that one ran, the one it runs now.
        ours = [found for found in everything if found.report.process.pid == int(target)]
        if ours:
            return max(ours, key=lambda found: (found.report.process.started or 0.0, found.report.process.fate == "running")).path
    named = [found for found in everything if found.report.process.name == target]
    known = ", ".join(sorted({shown(found.report.process.name) for found in everything})[:8])
    hint = f"; there are records of {known}" if known else ""
    return _worst(named, f"no record of {target!r} in {directory}{hint}", f"named {target}")


def _worst(found: Iterable[Found], otherwise: str, among: str) -> Path:
    ranked = sorted(found, key=rank)
    if not ranked:
        raise NotThere(otherwise)
    if len(ranked) > 1:
        others = len(ranked) - 1
        say(f"the worst of {len(ranked)} records {among}; {others} other{'s' * (others > 1)}: memwatch ps")
    return ranked[0].path
