"""What pages are made of, read from the records: the fleet, one process, a moment.

Law: everything here blocks on files; it is called in a thread, one call at a time (`Reading.lock`).  What is kept is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from memwatch import fleet
from memwatch.fleet import Fleet, Found
from memwatch.model import Report
from memwatch.moments import NothingThen, is_moment, read_moment, split
from memwatch.record import NoSuchRecord, Record, RecordError, find_records
from memwatch.report.compare import Moment
from memwatch.report.layout import shown

OUTLINE_CHANNEL = "rss"
OUTLINE_POINTS = 48
"""Of a curve as wide as a word: more cannot be seen."""
OUTLINES_S = 0.15
"""Outlines are read this long at one look: from a disk that has forgotten them one takes 50 ms, and nobody waits for all."""
OUTLINE_AGE = 0.02
"""An outline is read again when its record has become longer by this part: before, it would look the same."""
REPORTS_KEPT = 8
"""Reports with their curves that are kept for the next reader; one is some 2 MB."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of a curve, and when it was read."""

    points: tuple[tuple[float, float], ...]
    until_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A record of the fleet with the outline of its memory; None until somebody has had the time to read it."""

    name: str
    found: Found
    outline: Outline | None


class NotFound(LookupError):
    """There is no such record; the message says what there is instead."""


class Reading:
    """Reads the records of one directory.

    Threads: any; calls wait for each other.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        self._fleet = Fleet(directory)
        self._outlines: dict[str, Outline] = {}
        self._reports: OrderedDict[str, tuple[fleet.Written, Report]] = OrderedDict()
        self._has_looked = False
        self.is_complete = False
        """Whether the last look had the time for every outline."""

    def look(self) -> tuple[list[Seen], list[str]]:
        """Every record, the most recently written first, and what is wrong with those that cannot be read.

        Cost: for 200 records 0.2 s the first time, then some 2 ms a record that has changed (bench/web.py).
        """
        with self.lock:
            found = self._fleet.look()
            errors = [shown(text) for text in self._fleet.errors.values()]
            known = {name_of(item.path): item for item in found}
            self._outlines = {name: outline for name, outline in self._outlines.items() if name in known}
            self._read_outlines(known, OUTLINES_S if self._has_looked else 0.0)  # the first page is not to wait for them
            self._has_looked = True
            return [Seen(name, item, self._outlines.get(name)) for name, item in known.items()], errors

    def _read_outlines(self, known: dict[str, Found], for_s: float) -> None:
        until_s = time.monotonic() + for_s
        self.is_complete = False
        for item in fleet.worst_first(known.values()):
            name = name_of(item.path)
            length_s = item.report.statistics.uptime_s
            before = self._outlines.get(name)
            if before is not None and length_s - before.until_s <= OUTLINE_AGE * length_s:
                continue
            if time.monotonic() > until_s:
                return
            try:
                with Record(item.path) as record:
                    points = record.outline(OUTLINE_CHANNEL, OUTLINE_POINTS)
            except RecordError:
                points = ()
            self._outlines[name] = Outline(points, length_s)
        self.is_complete = True

    def report(self, name: str) -> Report:
        """One record as its whole report.

        Raises:
            NotFound: there is none of that name.
            RecordError: it cannot be read.
        """
        with self.lock:
            path = self._path(name)
            stamp = fleet.written(path)
            known = self._reports.get(name)
            if known is None or known[0] != stamp or fleet.may_have_ended(known[1].process):
                try:
                    report = fleet.read(path, history=True).report
                except NoSuchRecord:
                    raise NotFound(f"the record {shown(name)} has just been deleted") from None
                known = stamp, report
            self._reports[name] = known
            self._reports.move_to_end(name)
            while len(self._reports) > REPORTS_KEPT:
                self._reports.popitem(last=False)
            return known[1]

    def _path(self, name: str) -> Path:
        """The file of a record, by its name in the directory: what is not a name there is no path either."""
        for path in find_records(self.directory):
            if name_of(path) == name:
                return path
        raise NotFound(f"there is no record {shown(name)[:300]} in {shown(str(self.directory))}")

    def moment(self, text: str, when: str) -> tuple[str, str, Moment]:
        """What is known at a moment: the name of the record, the moment, and what it says.

        Args:
            text: a record, a pid, the name of a process or a label (`version=1.4.1`, with a name before it if there are several),
                with a moment after @ if you like.
            when: the moment if *text* has none; empty is the last.

        Raises:
            NotFound: there is none; the message says why.
            ValueError: *when* is no moment.
            RecordError: it cannot be read.
        """
        seen, _ = self.look()
        target, told = split(text, lambda whole: _chosen(whole, seen) is not None)
        chosen = _chosen(target, seen)
        if chosen is None:
            known = ", ".join(sorted({shown(item.found.report.process.name)[:80] for item in seen})[:8])
            raise NotFound(f"no record is meant by {shown(text)[:200]!r}" + (f"; there are records of {known}" if known else ""))
        when = told if target != text else when or "last"
        if not is_moment(when):
            raise ValueError(f"{shown(when)[:100]!r} is no moment")
        with self.lock:
            try:
                return chosen.name, when, read_moment(chosen.found.path, when)
            except NothingThen as error:
                raise NotFound(str(error)) from None


def name_of(path: Path) -> str:
    """What a record is called in addresses: its file name without the suffix that all have."""
    return path.stem


def _chosen(text: str, seen: list[Seen]) -> Seen | None:
    for item in seen:
        if text in (item.name, item.found.path.name):
            return item
    processes = [(item, item.found.report.process) for item in seen]
    if text.isdecimal():
        ours = [(item, process) for item, process in processes if str(process.pid) == text]
        if ours:
            return max(ours, key=lambda pair: (pair[1].started or 0.0, pair[1].fate == "running"))[0]
    named = [item for item, process in processes if process.name == text]
    if named:
        return min(named, key=lambda item: fleet.rank(item.found))
    before, _, label = text.rpartition(" ")
    key, equals, value = label.partition("=")
    if equals:
        for item, process in processes:
            if process.labels.get(key) == value and before in ("", process.name):
                return item
    return None
