"""`limit` and `checkpoint`: what a block of code keeps, and what it peaked at.

Law: a block is measured at rest before and after; a block that raises is not judged.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Literal, NamedTuple

from memwatch import units
from memwatch.gate import resources
from memwatch.gate.judging import MemoryGrowth
from memwatch.gate.limits import count_of, size_of
from memwatch.gate.peaks import Peak, PeakMeter
from memwatch.gate.readings import RESOURCES, Growth, Reader, Reading, between
from memwatch.gate.settling import settle
from memwatch.model import Suspect


class Measured:
    """What one block did; numbers are there once it has ended.

    Attributes:
        growth: bytes kept, by the live heap where it is known, else by RSS; None before the end.
        peak: bytes at the high-water mark above the beginning; None if no peak was asked for.
        details: blocks and bytes by allocator, and RSS.
        resources: what came and stayed of descriptors, threads, children and tasks.
    """

    def __init__(
        self,
        *,
        growth: int | None,
        peak: int | None,
        counts: dict[str, int | None],
        measure_peak: bool,
        engine: str,
        what: str = "the block",
    ) -> None:
        self._growth_limit = growth
        self._peak_limit = peak
        self._count_limits = counts
        self._meter = PeakMeter(engine) if measure_peak else None
        self._what = what
        self._reader = Reader()
        self._before: Reading | None = None
        self._seen: resources.Seen = {}
        self.growth: int | None = None
        self.peak: int | None = None
        self.peak_engine: str | None = None
        self.details = Growth()
        self.resources: tuple[resources.Arrival, ...] = ()

    def __enter__(self) -> Measured:
        if self._meter is not None:
            self._meter.prepare()
        settle(self._reader)
        self._seen = resources.look(tuple(self._counted()))
        self._before = self._reader.read(small=True)
        if self._meter is not None:
            self._meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        __tracebackhide__ = True
        peak = self._meter.stop() if self._meter is not None else None
        if kind is not None:
            self._reader.close()
            return False
        before = self._before
        assert before is not None
        settle(self._reader, before, channels=tuple(self._counted()))
        self.details = between(before, self._reader.read(small=True))
        heap = self.details.heap
        self.growth = heap if heap is not None else self.details.rss
        self.resources = tuple(resources.arrivals(self._seen, resources.look(tuple(self._counted()))))
        self._reader.close()
        if peak is not None:
            self.peak, self.peak_engine = peak.bytes, peak.engine
        problems = self._problems(peak)
        if problems:
            finding = {**self.to_dict(), "exceeded": [metric for metric, _ in problems]}
            text = "; ".join(text for _, text in problems)
            if peak is not None and peak.sites and "peak" in finding["exceeded"]:
                finding["sites"] = [Suspect(label, size).to_dict() for label, size in peak.sites]
                text += "".join(f"\n  allocated at  {label}  {units.format_size(size)}" for label, size in peak.sites[:2])
            raise MemoryGrowth(text, finding)
        return False

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return {
            "growth": self.growth,
            "peak": self.peak,
            "peak_engine": self.peak_engine,
            "blocks": self.details.blocks,
            "python": self.details.python,
            "malloc": self.details.malloc,
            "rss": self.details.rss,
            "resources": [arrival._asdict() for arrival in self.resources],
        }

    def _counted(self) -> list[str]:
        return [channel for channel, most in self._count_limits.items() if most is not None]

    def _problems(self, peak: Peak | None) -> list[tuple[str, str]]:
        """What was exceeded (`heap`, `rss`, `peak` or the name of a resource), and how it is said."""
        problems = []
        limit, grown = self._growth_limit, self.growth
        outside = (self.details.rss or 0) - max(0, self.details.heap or 0)
        if limit is not None and grown is not None and grown > limit:
            text = f"{self._what} keeps {units.format_size(grown)} ({parts(self.details)}), limit {units.format_size(limit)}"
            problems.append(("rss" if self.details.heap is None else "heap", f"{text}; measured once"))
        elif limit is not None and self.details.heap is not None and outside > limit:
            text = f"{self._what} keeps {units.format_size(self.details.rss)} of resident memory outside malloc"
            problems.append(("rss", f"{text} ({parts(self.details)}), limit {units.format_size(limit)}; measured once"))
        if peak is not None and self._peak_limit is not None and peak.bytes >= self._peak_limit:
            text = f"{self._what} peaked at {units.format_size(peak.bytes)} (by {peak.engine})"
            problems.append(("peak", f"{text}, limit {units.format_size(self._peak_limit)}"))
        for channel, most in self._count_limits.items():
            came = [arrival for arrival in self.resources if arrival.channel == channel]
            count = sum(arrival.number for arrival in came)
            if most is not None and count > most:
                problems.append((channel, f"{self._what} leaves {counted(count, channel)}: {came[0].group}"))
        return problems


NOUNS = {"fds": "open descriptor", "threads": "thread", "children": "child process", "tasks": "asyncio task"}


def counted(number: int, channel: str) -> str:
    """`1 thread`, `2 child processes`."""
    noun = NOUNS[channel]
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def parts(growth: Growth) -> str:
    """The growth by how it was measured: `small Python blocks 4.1 MiB, malloc 1.0 MiB, RSS 5.2 MiB, blocks +12,345`."""
    told = []
    if growth.python is not None:
        told.append(f"small Python blocks {units.format_size(growth.python)}")
    if growth.malloc is not None:
        told.append(f"malloc {units.format_size(growth.malloc)}")
    if growth.rss is not None:
        told.append(f"RSS {units.format_size(growth.rss)}")
    told.append(f"blocks {units.format_count(growth.blocks, sign=True)}")
    return ", ".join(told)


def limit(
    growth: str | int | None = None,
    peak: str | int | None = None,
    *,
    fds: int | None = None,
    threads: int | None = None,
    children: int | None = None,
    tasks: int | None = None,
    engine: str = "auto",
    measure_peak: bool | None = None,
) -> Measured:
    """Measure a block, and fail it if it keeps or uses more than a limit: `with memwatch.limit(growth="1MB") as m: ...`.

    Args:
        growth: bytes that the block may keep, such as `"1MiB"`; more is a failure.  None: measured, not limited.
        peak: bytes that the block may use at once above the beginning; as much is a failure (pytest-memray's boundary).
        fds, threads, children, tasks: how many the block may leave; None: not counted.
        engine: of the peak: `auto`, `memray`, `tracemalloc` or `rss`.
        measure_peak: measure the peak without limiting it.

    Raises:
        MemoryGrowth: at the end of the block, if a limit is exceeded.  A block that raises is not judged.
        memwatch.gate.limits.LimitError: a limit is malformed.
        memwatch.gate.peaks.EngineMissing: memray was asked for and is not installed.

    A block is measured once: what it fills on first use (caches, imports) counts.  `assert_no_leak` repeats.

    Cost: a full collection before and after (0.1 s per million tracked objects); the peak by its engine.
    """
    wanted = peak is not None if measure_peak is None else measure_peak
    counts = {name: count_of(name, value) for name, value in zip(RESOURCES, (fds, threads, children, tasks), strict=True)}
    return Measured(growth=size_of("growth", growth), peak=size_of("peak", peak), counts=counts, measure_peak=wanted, engine=engine)


class Checkpoint(NamedTuple):
    """The process at one point of a program."""

    tag: str
    where: str
    reading: Reading
    growth: Growth
    """Since the checkpoint before; nothing for the first."""


_last: Checkpoint | None = None
_listeners: list[list[Checkpoint]] = []


def checkpoint(tag: str, *, growth: str | int | None = None) -> Checkpoint:
    """Note what the process holds now, and what it has kept since the checkpoint before.

    Args:
        tag: what is shown for it.
        growth: bytes that may have been kept since the checkpoint before; more raises.

    Raises:
        MemoryGrowth: more was kept.
        memwatch.gate.limits.LimitError: *growth* is malformed.

    Cost: a full collection.  Only the last checkpoint is kept; under pytest those of the running test are shown in its report.
    Threads: one at a time.
    """
    global _last
    __tracebackhide__ = True
    most = size_of("growth", growth)
    reader = Reader()
    settle(reader)
    now = reader.read(small=True)
    reader.close()
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    before = _last
    point = Checkpoint(tag, where, now, Growth() if before is None else between(before.reading, now))
    _last = point
    for listener in _listeners:
        listener.append(point)
    kept = point.growth.heap if point.growth.heap is not None else point.growth.rss
    if before is not None and most is not None and kept is not None and kept > most:
        raise MemoryGrowth(
            f"{units.format_size(kept)} kept between {before.tag!r} and {tag!r} ({parts(point.growth)}), "
            f"limit {units.format_size(most)}; measured once",
            {"growth": kept, "exceeded": ["rss" if point.growth.heap is None else "heap"]},
        )
    return point


def listen(into: list[Checkpoint]) -> None:
    """Append every checkpoint to a list from now on, and forget the one before: a test begins."""
    global _last
    _last = None
    _listeners.append(into)


def unlisten(into: list[Checkpoint]) -> None:
    """Stop that."""
    _listeners[:] = [listener for listener in _listeners if listener is not into]
