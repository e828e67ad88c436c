"""One more run, looked at closely: which line allocated what stays, what type it is, who holds it.

Law: looking is only for what is already decided; whatever fails here is a note, not an error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from memwatch.evidence import census, names, sites, sources
from memwatch.evidence.child import Child, refusal
from memwatch.evidence.survivors import survivors
from memwatch.model import Suspect
from memwatch.vitals import heap

_sleep = time.sleep  # a test may put its own in its place

FINEST_MEAN = 1024
COARSEST_MEAN = 4096
SAMPLES_WANTED = 1000
"""Samples of the growth that tell a site's share to within 3 % (one sigma)."""
CHILD_DEADLINE_S = 60.0
MOST_LINES_TRACED = 300_000
"""Line events after which native growth is not followed any more: about 1 s."""
SURVIVORS = 120


class Explanation(NamedTuple):
    """What one look has found."""

    sites: tuple[Suspect, ...] = ()
    types: tuple[Suspect, ...] = ()
    holders: tuple[Suspect, ...] = ()
    python_bytes: float | None = None
    """Growth that came through Python's allocators; None where it was not sampled."""
    notes: tuple[str, ...] = ()


class Look:
    """Looks at one run: `begin()`, the run, `conclude(growth)`.

    Args:
        expected_bytes: what the run is expected to keep.
        exempt: tells whether a stack does not count; `exempted` is then what such stacks grew by, in bytes.

    Cost: two forks; and the run itself up to two times slower.
    """

    def __init__(self, expected_bytes: int, *, exempt: Callable[[Sequence[names.Frame]], bool] | None = None) -> None:
        self._exempt = exempt
        self.exempted = 0.0
        self._mean = int(min(COARSEST_MEAN, max(FINEST_MEAN, expected_bytes / SAMPLES_WANTED)))
        self._source: sources.Sampling | sources.Tracing | None = None
        self._before: dict[str, float] | None = None
        self._level: sites.Level | None = None
        self._counts: census.Counts | None = None
        self._notes: list[str] = []

    def begin(self) -> None:
        """Take the baselines; the run comes right after."""
        _name_callers()
        with contextlib.suppress(ImportError):  # now: what loading it leaves would be taken for growth
            importlib.import_module("memwatch.evidence._sampler")
        self._counts = with_itself(_counts(self._child(census.Task(list, None, False))))
        try:
            module: Any = __import__("memwatch.evidence._sampler", fromlist=["running"])
            if module.running():  # a watcher of the program's own samples already: it goes on afterwards
                self._before = module.statistics()
            self._source = sources.Sampling(self._mean)
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            self._notes.append(f"allocations were traced, not sampled: {error}")
            self._source = sources.Tracing()
        gc.collect()
        self._level = sites.take_level(self._source, sites.now(), {})

    def conclude(self, growth: int) -> Explanation:
        """Tell what has come and stayed since `begin`; *growth* is in bytes."""
        source, level = self._source, self._level
        if source is None or level is None:
            return Explanation(notes=tuple(self._notes))
        try:
            # What the program frees late does not count: only what is alive after a collection.
            grown = sites.growths(level.live(), source.live(), source.live(level.time_s))
            if self._exempt is not None:
                self.exempted = sum(row.bytes for row in grown if self._is_exempt(source.stack(row.key)))
            ranked, labels = rank_sites(grown, source, growth)
            python = sum(row.bytes for row in grown)
            wanted = {row.key: row.bytes for row in grown if row.key in labels}
            since_s, until_s = level.time_s, sites.now()

            def blocks() -> list[census.Block]:
                if isinstance(source, sources.Sampling):
                    return survivors(source, wanted, since_s, until_s, SURVIVORS)
                return []

            lines = self._child(census.Task(blocks, self._counts, True))
            types = rank_types(self._counts, _counts(lines), growth)
            holders = rank_holders(lines, growth)
        finally:
            self._end()
        return Explanation(ranked, types, holders, python, tuple(self._notes))

    def abandon(self) -> None:
        """The run failed: leave no trace."""
        self._end()

    def _end(self) -> None:
        source, self._source = self._source, None
        if isinstance(source, sources.Sampling) and self._before is not None:
            source.give_back(self._before)
        elif source is not None:
            source.stop()

    def _is_exempt(self, frames: Sequence[names.Frame]) -> bool:
        assert self._exempt is not None
        return bool(frames) and self._exempt(frames)

    def _child(self, task: census.Task) -> list[dict[str, Any]]:
        why = refusal(None, None)
        if why is not None:
            if why not in self._notes:
                self._notes.append(why)
            return []
        try:
            child = Child(task, deadline_s=CHILD_DEADLINE_S, niceness=0)
        except (OSError, RuntimeError) as error:
            self._notes.append(f"the heap was not looked at: no child could be forked ({error})")
            return []
        while not child.poll():
            _sleep(0.001)
        if child.died is not None:
            self._notes.append(f"the child that looked at the heap {child.died}")
        return child.lines


def rank_sites(
    grown: Sequence[sites.Growth], source: sources.SiteSource, growth: int
) -> tuple[tuple[Suspect, ...], dict[int, str]]:
    """Sites by growth, the largest first, and the site of each stack that grew.

    Unlike `sites.rank` it asks for no significance: that something grew is known, and one block larger than the sampler's mean is
    one sample.  Lines of the test runner are not told.
    """
    found: dict[str, tuple[float, float, tuple[str, ...]]] = {}
    labels: dict[int, str] = {}
    for row in grown:
        frames = source.stack(row.key)
        place = sites.site_of(frames) if frames else None
        if place is None or row.bytes <= 0:
            continue
        label = names.site(frames[place])
        if label.startswith(RUNNERS):
            continue
        labels[row.key] = label
        size, count, _ = found.get(label, (0.0, 0.0, ()))
        trail = tuple(names.site(frame) for frame in frames[place + 1 :])
        found[label] = size + row.bytes, count + row.objects, tuple(one for one in trail if not one.startswith(RUNNERS))[:8]
    whole = max(float(growth), sum(size for size, _, _ in found.values()), 1.0)
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    suspects = [
        Suspect(label, round(size), max(1, round(count)), round(size / whole, 4), trail)
        for label, (size, count, trail) in ranked[:TOP]
        if size >= TOLD_FROM * whole
    ]
    return tuple(suspects), labels


def _counts(lines: Sequence[Mapping[str, Any]]) -> census.Counts | None:
    """The census in what a child told; None if it did not come so far."""
    for line in lines:
        if line.get("what") == "types":
            return {str(name): (int(row[0]), int(row[1])) for name, row in line["types"].items()}
    return None


def _name_callers() -> None:
    """Have the names of the files that call us cached: the stacks of the run begin in them, and the caches are on the heap, too."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        names.short_file(frame.f_code.co_filename)
        frame = frame.f_back


def with_itself(counts: census.Counts | None) -> census.Counts | None:
    """A census and the objects that it is made of, which the next one finds on the heap: a string and a tuple for each type."""
    if counts is None:
        return None
    whole = dict(counts)
    for thing in (whole, *counts, *counts.values(), *(number for row in counts.values() for number in row if number > 256)):
        name, size = (
            type(thing).__name__,
            -(-sys.getsizeof(thing) // 16) * 16,
        )  # rounded up as allocators do; smaller numbers are shared
        count, held = whole.get(name, (0, 0))
        whole[name] = count + 1, held + size
    return whole


def rank_types(before: census.Counts | None, after: census.Counts | None, growth: int) -> tuple[Suspect, ...]:
    """Types by growth between two censuses, the largest first."""
    if before is None or after is None:
        return ()
    grown = sorted(((census.growth(name, after, before), name) for name in after), key=lambda row: -row[0][1])[:TOP]
    whole = max(growth, 1)
    return tuple(
        Suspect(name, size, count, round(size / whole, 4)) for (count, size), name in grown if size >= max(1, TOLD_FROM * whole)
    )


def rank_holders(lines: Sequence[Mapping[str, Any]], growth: int) -> tuple[Suspect, ...]:
    """Who holds the survivors, by the bytes that they stand for, from the paths that a child told."""
    places: dict[str, tuple[float, tuple[str, ...]]] = {}
    for line in lines:
        if line.get("what") != "path" or line.get("status") not in (census.FOUND, census.FROM_C):
            continue
        trail = tuple(str(step) for step in line.get("trail") or ())
        place = str(line["place"]) if line["status"] == census.FOUND else f"a reference held in C, to {line['type']}"
        if place.startswith(RUNNER_HOLDERS):
            continue
        size, known = places.get(place, (0.0, ()))
        places[place] = size + float(line["weight"]), max(known, trail, key=len)
    ranked = sorted(places.items(), key=lambda item: -item[1][0])[:TOP]
    whole = max(growth, 1)
    return tuple(Suspect(place, round(size), None, round(size / whole, 4), trail) for place, (size, trail) in ranked)


TOP = 8
TOLD_FROM = 0.02
RUNNER_HOLDERS = ("frame ", "module _pytest", "module pluggy")
"""A frame that runs now is the runner's: nothing of the test's own runs any more."""
RUNNERS = ("_pytest/", "pluggy/", "pytest_memwatch/", "xdist/", "execnet/")


class LineMeter:
    """Charges native growth to lines of the program, by asking malloc at each of them.

    Does nothing where another tool traces lines (`sys.gettrace()`), or malloc does not tell.

    Cost: 2 µs a line of the program's own files, until *MOST_LINES_TRACED* of them.
    """

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str, int], int] = {}
        self.works = False
        self._last: tuple[str, str, int] | None = None
        self._level = 0
        self._events = 0
        self._before: Any = None

    def __enter__(self) -> LineMeter:
        self.works = sys.gettrace() is None and heap.malloc() is not None
        if self.works:
            self._level = self._now()
            sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        if self.works and sys.gettrace() == self._call:
            sys.settrace(None)
        self._charge(None)

    def _now(self) -> int:
        told = heap.malloc()
        return 0 if told is None else told.used_bytes + told.mapped_bytes

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        filename = frame.f_code.co_filename
        if "site-packages" in filename or names.is_standard(filename) or names.is_ours(filename) or "pytest_memwatch" in filename:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        self._events += 1
        if self._events > MOST_LINES_TRACED:
            sys.settrace(None)
            return None
        at: FrameType | None = frame.f_back if event == "return" else frame  # after a return, the line that called goes on
        if at is not None and (at is frame or at.f_trace is not None):
            self._charge((at.f_code.co_filename, at.f_code.co_qualname, at.f_lineno))
        return self._line

    def _charge(self, following: tuple[str, str, int] | None) -> None:
        now = self._now()
        if self._last is not None and now != self._level:
            self.lines[self._last] = self.lines.get(self._last, 0) + now - self._level
        self._level = now
        if following is not None:
            self._last = following

    def suspects(self, growth: int, top: int = 5) -> tuple[Suspect, ...]:
        """The lines that native memory grew at, the largest first."""
        ranked = sorted(self.lines.items(), key=lambda item: -item[1])[:top]
        whole = max(growth, 1)
        return tuple(
            Suspect(names.site(frame), size, None, round(size / whole, 4), ())
            for frame, size in ranked
            if size >= max(0.05 * whole, 1) and not math.isnan(size)
        )
