"""Where what grows was allocated: live bytes per Python stack, compared and told as sites.

Law: a growth that its own error could be is not told; memwatch's own allocations are left out.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from memwatch.evidence import names
from memwatch.evidence.sources import Live, SiteSource
from memwatch.model import Evidence, Suspect
from memwatch.units import format_duration, format_size

TOP = 10
TRAIL = 47
"""Callers told with a site: the whole stack, as deep as the sampler keeps it."""
STACKS_RECORDED = 150
"""Stacks in a census, the largest first."""
SIGMAS = 2.0
"""A growth smaller than this many standard errors is not told."""
UNTOUCHED = 1.5
"""Where this many times more was allocated than has grown, most of it was never touched."""
SOON = 0.3
"""A baseline may miss this part of the growth."""


class Level(NamedTuple):
    """Live memory by stack at one moment, packed: a few bytes a stack, so that several can be kept."""

    time_s: float
    """Monotonic seconds."""
    keys: array[int]
    bytes: array[float]
    counts: array[float]
    samples: array[int]
    readings: Mapping[str, float]
    """The channels as they were last read."""

    def live(self) -> dict[int, Live]:
        """Unpacked."""
        rows = zip(self.keys, self.bytes, self.counts, self.samples, strict=True)
        return {key: Live(size, count, samples) for key, size, count, samples in rows}


def take_level(source: SiteSource, now_s: float, readings: Mapping[str, float]) -> Level:
    """Read a source now."""
    live = source.live()
    return Level(
        now_s,
        array("Q", (key & 0xFFFFFFFFFFFFFFFF for key in live)),
        array("d", (row.bytes for row in live.values())),
        array("d", (row.objects for row in live.values())),
        array("q", (row.samples for row in live.values())),
        dict(readings),
    )


class Levels:
    """Levels of the past, the older the sparser: there is always one from about when growth began.

    Args:
        every: ticks between two.
    """

    KEPT = 10

    def __init__(self, every: int = 16) -> None:
        self._every = every
        self._ticks = 0
        self.kept: list[Level] = []

    def tick(self, source: SiteSource, now_s: float, readings: Mapping[str, float]) -> None:
        """Take one if it is time."""
        if self._ticks % self._every == 0:
            self.kept.append(take_level(source, now_s, readings))
            if len(self.kept) > self.KEPT:
                self._thin()
        self._ticks += 1

    def _thin(self) -> None:
        """Drop the one whose neighbours are nearest to each other for their age; never the oldest or the newest."""
        newest_s = self.kept[-1].time_s
        gaps = [
            ((self.kept[i + 1].time_s - self.kept[i - 1].time_s) / (newest_s - self.kept[i].time_s + 1e-9), i)
            for i in range(1, len(self.kept) - 1)
        ]
        del self.kept[min(gaps)[1]]

    def at(self, time_s: float) -> Level | None:
        """The one from about when growth began: soon after, so that nothing from before is in the growth, else the last before."""
        if not self.kept:
            return None
        soon_s = time_s + SOON * (self.kept[-1].time_s - time_s)
        before = [level for level in self.kept if level.time_s <= time_s]
        soon = [level for level in self.kept if time_s <= level.time_s <= soon_s]
        return soon[-1] if soon else before[-1] if before else self.kept[0]

    def forget(self) -> None:
        """Begin anew: what was sampled before means nothing any more."""
        self.kept.clear()


class Growth(NamedTuple):
    """What one stack has grown by."""

    key: int
    bytes: float
    objects: float
    error_bytes: float
    """Standard error of the growth."""


def growths(before: Mapping[int, Live], after: Mapping[int, Live], born_since: Mapping[int, Live]) -> list[Growth]:
    """The growth of each stack between two levels.

    Args:
        before, after: live memory by stack.
        born_since: the part of *after* that was born since *before*: what was there all the time has no sampling error.
    """
    found = []
    for key in {*before, *after}:
        old, new = before.get(key, Live(0.0, 0.0, 0)), after.get(key, Live(0.0, 0.0, 0))
        fresh = born_since.get(key, Live(0.0, 0.0, 0)).samples
        gone = max(0, old.samples - (new.samples - fresh))
        of = new if new.samples else old
        each = of.bytes / max(1, of.samples)
        found.append(Growth(key, new.bytes - old.bytes, new.objects - old.objects, each * math.sqrt(fresh + gone)))
    return found


def rank(
    grown: Iterable[Growth], source: SiteSource, measured: float | None, *, resident: bool = False, since_s: float | None = None
) -> tuple[Evidence, dict[int, str]]:
    """Sites by growth, the largest first.

    Args:
        measured: bytes that the process grew by meanwhile.
        resident: *measured* is resident memory, so that what was allocated and never touched is not in it.
        since_s: how long ago the growth looked at began, for the note.

    Returns:
        The evidence, and for each stack that grew the label of its site.
    """
    sites: dict[str, _Site] = {}
    labels: dict[int, str] = {}
    nowhere = 0.0
    total = 0.0
    for growth in grown:
        frames = source.stack(growth.key)
        if not frames:
            nowhere += growth.bytes
            total += growth.bytes
            continue
        place = site_of(frames)
        if place is None:
            continue
        label = names.site(frames[place])
        if growth.bytes > 0:
            labels[growth.key] = label
        total += growth.bytes
        sites.setdefault(label, _Site()).add(growth, frames[place + 1 :])
    whole = max(measured or 0.0, max(total, 0.0), 1.0)
    # What was never touched is not resident: sizes are told as the part of the growth that they stand for.
    scale = measured / total if resident and measured and total > UNTOUCHED * measured else 1.0
    ranked = sorted(sites.items(), key=lambda item: -item[1].bytes)
    suspects: list[Suspect] = []
    accounted = 0.0
    for label, found in ranked:
        if found.bytes <= max(0.005 * whole, SIGMAS * math.sqrt(found.variance)) or len(suspects) == TOP:
            break
        trail = tuple(names.site(frame) for frame in found.callers if not names.is_ours(frame[0]))[:TRAIL]
        suspects.append(
            Suspect(label, round(found.bytes * scale), max(1, round(found.count)), round(found.bytes / whole, 4), trail)
        )
        accounted += found.bytes
    explains = min(1.0, accounted / whole) if measured else None
    note = None
    if measured and since_s is not None:
        note = f"estimated by sampling: {format_size(measured)} of growth in {format_duration(since_s)}"
    if scale < 1.0:
        note = f"{total / 2**20:,.0f} MiB were allocated, of which {(measured or 0.0) / 2**20:,.0f} MiB were ever touched"
    if nowhere > 0.1 * whole:
        note = f"{nowhere * scale / 2**20:,.1f} MiB of the growth were allocated where no Python code ran"
    if not suspects and total <= 0.1 * whole:
        note = "what Python's allocators gave out did not grow: the growth is not in them"
    return Evidence("sites", tuple(suspects), explains, note), labels


def own_callers(source: SiteSource, labels: Mapping[int, str]) -> dict[str, str]:
    """For sites in installed packages: the line of the program itself that called, which is the one to change."""
    found: dict[str, str] = {}
    for key, label in labels.items():
        frames = source.stack(key)
        place = site_of(frames) if frames else None
        if label in found or place is None or not names.is_installed(frames[place][0]):
            continue
        for frame in frames[place + 1 :]:
            if not (names.is_installed(frame[0]) or names.is_standard(frame[0]) or names.is_ours(frame[0])):
                found[label] = names.site(frame)
                break
    return found


class _Site:
    def __init__(self) -> None:
        self.bytes = self.count = self.variance = 0.0
        self._heaviest = -math.inf
        self.callers: Sequence[names.Frame] = ()

    def add(self, growth: Growth, callers: Sequence[names.Frame]) -> None:
        self.bytes += growth.bytes
        self.count += growth.objects
        self.variance += growth.error_bytes**2
        if growth.bytes > self._heaviest:
            self._heaviest, self.callers = growth.bytes, callers


def site_of(frames: Sequence[names.Frame]) -> int | None:
    """Which frame of a stack a person would name: the innermost that is not the standard library's; None for memwatch's own."""
    for position, frame in enumerate(frames):
        if names.is_ours(frame[0]):
            return None
        if not names.is_standard(frame[0]):
            return position
    return 0


def levels_recorded(source: SiteSource) -> Evidence:
    """The stacks with the most live bytes, as a record keeps them: the whole stack, innermost first."""
    rows = sorted(source.live().items(), key=lambda item: -item[1].bytes)
    suspects: list[Suspect] = []
    for key, live in rows:
        frames = source.stack(key)
        if not frames or site_of(frames) is None:
            continue
        told = [names.site(frame) for frame in frames]
        suspects.append(Suspect(told[0], round(live.bytes), max(1, round(live.objects)), None, tuple(told[1:])))
        if len(suspects) == STACKS_RECORDED:
            break
    return Evidence("sites", tuple(suspects))


def now() -> float:
    """Monotonic seconds, the clock of the sampler's births."""
    return time.monotonic()
