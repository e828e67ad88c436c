"""Every watched process of a machine, as its record tells of it: who is running, who has ended and how, and which is worst.

Law: only reads.  A record that cannot be read does not hide the others; it is told to whoever asked.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from memwatch.model import NO_GOODBYE, SEVERITY_ORDER, Process, Report
from memwatch.record import NoSuchRecord, Record, RecordError, find_records
from memwatch.report.words import as_of
from memwatch.vitals import is_running, oom_kills

STALE_INTERVALS = 5
"""On another host or in another container nobody can be asked: a record this many intervals old is of a dead process (guess)."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record and what it says."""

    path: Path
    report: Report


def read(path: Path, *, history: bool = False, points: int | None = None) -> Found:
    """Read one record, and find out whether its process still runs.

    Args:
        history: whether to read the curve and the censuses too.
        points: about how many moments of the curve; the reader's own number by default.

    Raises:
        RecordError: it cannot be read.
    """
    found = _read(path, history=history, points=points)
    process = found.report.process
    if process.fate != "running" or process.start_ticks is None:
        return found
    others = []
    for other in find_records(path.parent):
        if f"-{process.pid}-" in other.name and other.name != path.name:
            with contextlib.suppress(RecordError):
                others.append(_read(other))
    return _replaced(found, others)


def read_all(directory: Path, on_error: Callable[[RecordError], object]) -> list[Found]:
    """Every record in a directory, the most recently written first; *on_error* is told of each that cannot be read."""
    found = []
    for path in find_records(directory):
        try:
            found.append(_read(path))
        except NoSuchRecord:
            continue  # pruned while we looked
        except RecordError as error:
            on_error(error)
    return _with_replaced(found)


class Fleet:
    """The records of a directory, read again only where something was written: for whoever looks every few seconds.

    What is told of each is its verdict and its figures, without curve, events and evidence; so its fingerprint says nothing.

    Threads: one at a time; the caller serialises.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.errors: dict[Path, str] = {}
        """Records that could not be read at the last look, and why."""
        self._known: dict[Path, tuple[Written, Found]] = {}

    def look(self) -> list[Found]:
        """Every record, the most recently written first.

        Cost: a record that has changed 1 to 5 ms, another some 20 µs; `bench/web.py` measures it.
        """
        found: dict[Path, tuple[Written, Found]] = {}
        errors: dict[Path, str] = {}
        for path in find_records(self.directory):
            stamp = written(path)
            known = self._known.get(path)
            try:
                if known is None or known[0] != stamp or may_have_ended(known[1].report.process):
                    known = stamp, _read(path, findings=False)
            except NoSuchRecord:
                continue
            except RecordError as error:
                errors[path] = str(error)
                continue
            found[path] = known
        self._known, self.errors = found, errors
        return _with_replaced([item for _, item in found.values()])


Written = tuple[int, ...]
"""A stamp of a record's files."""


def written(path: Path) -> Written:
    """What changes whenever a record is written to; empty where there is none."""
    parts: list[int] = []
    for name in (path, f"{path}-wal"):
        with contextlib.suppress(OSError):
            status = Path(name).stat()
            parts += (status.st_mtime_ns, status.st_size)
    return tuple(parts)


def may_have_ended(process: Process) -> bool:
    """Whether a process that was running when its record was read may have gone since."""
    if process.fate != "running":
        return False
    if process.host in ("", socket.gethostname()):
        return not is_running(process.pid, process.start_ticks, process.boot)
    return True  # nobody can be asked: read it again, for only the time that has passed tells


def rank(found: Found) -> tuple[int, bool, int]:
    """Sort key, worst first: by state, then critical before not, then the better known."""
    verdict = found.report.verdict
    return SEVERITY_ORDER.index(verdict.state), verdict.severity != "critical", -found.report.statistics.samples


def worst_first(found: Iterable[Found]) -> list[Found]:
    """As people want to see them: those that run before those that have ended, the worst first."""
    return sorted(found, key=lambda item: (item.report.process.fate != "running", rank(item)))


def _with_replaced(found: list[Found]) -> list[Found]:
    of_one: dict[tuple[object, ...], list[Found]] = {}
    for item in found:
        of_one.setdefault(_same(item.report.process), []).append(item)
    return [_replaced(item, of_one[_same(item.report.process)]) for item in found]


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


def _read(path: Path, *, history: bool = False, findings: bool = True, points: int | None = None) -> Found:
    with Record(path) as record:
        report = record.report(is_running=_asked(record), history=history, findings=findings, points=points)
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
