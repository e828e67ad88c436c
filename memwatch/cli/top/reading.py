"""What `memwatch top` knows of the records, and how often it reads them.

Law: bounded work.  A record that was not written to is not read again; curves are read for some records at each look, none more
often than its size allows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memwatch.fleet import Fleet, Found, Written, may_have_ended, read, written
from memwatch.record import Record, RecordError

CURVE_POINTS = 60
"""Twice as many moments as a curve in the table ever has blocks."""
CURVE_EVERY_S = 10.0
"""A block of such a curve stands for a minute or more, soon: reading it again earlier shows nothing new."""
CURVE_SHARE = 0.02
"""Reading the curve of one record takes at most this part of the time: a large record is read more rarely."""
ONE_SHARE = 0.05
"""Reading the record on view, with its curve, takes at most this part of the time."""
LOOK_MOST_S = 0.25
"""Curves are read until so much time has gone; the others come at the next look."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at one moment."""

    at_s: float
    """Unix time."""
    found: list[Found]
    errors: Mapping[Path, str]
    """Records that could not be read, and why."""
    curves: Mapping[Path, tuple[float, ...]]


@dataclass(slots=True)
class _Curve:
    stamp: Written = ()
    values: tuple[float, ...] = ()
    due_s: float = 0.0
    """Monotonic time before which it is not read again."""


@dataclass(slots=True)
class Reader:
    """The records of a directory.

    Threads: one at a time; the caller serialises.
    """

    directory: Path
    _fleet: Fleet = field(init=False)
    _curves: dict[Path, _Curve] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._fleet = Fleet(self.directory)

    def look(self) -> Look:
        """Read what was written since the last look.

        Cost: that of `Fleet.look()`, and at most about `LOOK_MOST_S` for curves.
        """
        found = self._fleet.look()
        self._read_curves([item.path for item in found])
        curves = {path: curve.values for path, curve in self._curves.items()}
        return Look(time.time(), found, dict(self._fleet.errors), curves)

    def _read_curves(self, paths: list[Path]) -> None:
        self._curves = {path: self._curves.get(path) or _Curve() for path in paths}
        began_s = time.monotonic()
        for path in sorted(paths, key=lambda path: self._curves[path].due_s):  # those never read, then the longest due
            now_s = time.monotonic()
            curve = self._curves[path]
            if curve.due_s > now_s or now_s - began_s > LOOK_MOST_S:
                break
            stamp = written(path)
            if stamp == curve.stamp:
                continue
            try:
                with Record(path) as record:
                    samples = record.history(points=CURVE_POINTS)
                curve.values = tuple(sample.values["rss"] for sample in samples if "rss" in sample.values)
                curve.stamp = stamp
            except RecordError:
                pass  # it is told where the record itself is read
            took_s = time.monotonic() - now_s
            curve.due_s = time.monotonic() + max(CURVE_EVERY_S, took_s / CURVE_SHARE)


@dataclass(slots=True)
class OneReader:
    """One record with its curve.

    Threads: one at a time; the caller serialises.
    """

    path: Path
    _stamp: Written = field(default=(), init=False)
    _found: Found | None = field(default=None, init=False)
    _due_s: float = field(default=0.0, init=False)
    """Monotonic time before which it is not read again only because it was written to."""

    def look(self, *, at_once: bool = False) -> Found:
        """The record as it is; read again only where it was written to, or its process may have gone.

        Args:
            at_once: there is something new that somebody waits for.

        Raises:
            RecordError: it cannot be read.
        """
        stamp, now_s = written(self.path), time.monotonic()
        is_news = stamp != self._stamp and (at_once or now_s >= self._due_s)
        if self._found is None or is_news or may_have_ended(self._found.report.process):
            self._found = read(self.path, history=True)
            self._stamp = stamp
            took_s = time.monotonic() - now_s
            self._due_s = time.monotonic() + took_s / ONE_SHARE
        return self._found
