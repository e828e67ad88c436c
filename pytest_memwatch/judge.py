"""From suspicion to a verdict: settle, repeat, decide; then look once more to say which line and which holder.

Law: only growth in every repetition that does not fade is a leak; growth of the first run alone is a warm-up.
"""

from __future__ import annotations

import fnmatch
import gc
import re
import sys
import types
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memwatch import units
from memwatch.evidence import names
from memwatch.gate import resources
from memwatch.gate.blocks import counted, parts
from memwatch.gate.explaining import Explanation, LineMeter, Look
from memwatch.gate.judging import Decision, MemoryGrowth, course_of, decide_memory, worst
from memwatch.gate.objects import way_to_root
from memwatch.gate.origins import Origins, without_ports
from memwatch.gate.peaks import Peak
from memwatch.gate.readings import RESOURCES, Growth, Reader, between
from memwatch.gate.settling import PATIENCE_S, settle
from memwatch.model import Suspect
from pytest_memwatch.limits import Limits
from pytest_memwatch.measure import RSS_SLACK
from pytest_memwatch.results import CLEAN, LEAK, SUSPECT, WARMUP, Row

RUNNERS = ("_pytest", "pluggy", "memwatch", "pytest_memwatch", "pytest")
LARGE = 0.5
"""A part of growth that is most of it."""


IMPATIENT_S = 0.05
"""What was still there after the whole patience once is not waited for again as long."""


Repeats = Callable[[], tuple[str | None, Peak | None]]


class Repeat(NamedTuple):
    """One repetition, measured at rest."""

    growth: Growth
    arrivals: tuple[resources.Arrival, ...]
    peak: Peak | None
    objects: int


class Case:
    """One suspicious test.

    Args:
        run: repeats the test; returns what it raised in one line or None, and the peak of its body if one is limited.
        row: the test's result, filled in.
        seen: the resources before the test, where they were listed.
    """

    def __init__(
        self,
        run: Callable[[], tuple[str | None, Peak | None]],
        limits: Limits,
        reader: Reader,
        row: Row,
        phase_of: Callable[[], str],
    ) -> None:
        self._run = run
        self._limits = limits
        self._reader = reader
        self._row = row
        self._phase_of = phase_of
        self._patience_s = PATIENCE_S

    def judge(self, first: Growth, first_arrivals: Mapping[str, int]) -> MemoryGrowth | None:
        """Repeat until it is clear; returns the failure, or None, with the row filled in either way."""
        limits, row = self._limits, self._row
        if limits.rerun == 0:
            return self._judge_once(first, sum(first_arrivals.values()))
        for _ in range(limits.warmup):
            row.reruns += 1
            error, _ = self._run()
            if error is not None:
                return self._unrepeatable(error)
        repeats: list[Repeat] = []
        decision = Decision("more")
        while decision.course == "more":
            row.reruns += 1
            repeat, error = self._repeat()
            if error is not None:
                return self._unrepeatable(error)
            repeats.append(repeat)
            decision = self._decide(repeats)
        if decision.course == "fine":
            row.repeats, row.metric = self._memory_of(repeats)
            row.warmed = self._warmed(first, first_arrivals, repeats)
            if row.warmed:
                row.verdict, row.note = WARMUP, "the first run alone grew"
            return None
        return self._leak(decision, repeats)

    def _warmed(self, first: Growth, arrivals: Mapping[str, int], repeats: Sequence[Repeat]) -> list[dict[str, Any]]:
        """What the first run was over its limit by, for sure: a collection may have taken what was older."""
        limits, row = self._limits, self._row
        found: list[dict[str, Any]] = []
        for metric in ("heap", "rss"):
            kept = getattr(first, metric)
            if not found and limits.growth is not None and (kept or 0) > limits.growth:
                found.append({"metric": metric, "first": kept, "again": [getattr(one.growth, metric) or 0 for one in repeats]})
        for channel, count in arrivals.items():
            again = [sum(one.number for one in repeat.arrivals if one.channel == channel) for repeat in repeats]
            found.append({"metric": channel, "first": count, "again": again})
        if limits.peak is not None and row.peak is not None and row.peak >= limits.peak:
            found.append(
                {"metric": "peak", "first": row.peak, "again": [one.peak.bytes for one in repeats if one.peak is not None]}
            )
        return found

    # -- repeating -------------------------------------------------------------------------------------------------------------

    def _repeat(self) -> tuple[Repeat, str | None]:
        channels = tuple(self._limits.counts)
        settle(self._reader)
        seen = resources.look(channels)
        before = self._reader.read(small=True)
        objects = len(self._counted_objects()) if self._limits.objects else 0
        error, peak = self._run()
        if not settle(self._reader, before, channels=channels, patience_s=self._patience_s):
            self._patience_s = IMPATIENT_S
        after = self._reader.read(small=True)
        arrived = tuple(
            arrival for arrival in resources.arrivals(seen, resources.look(channels)) if not self._ignored(arrival.group)
        )
        objects = len(self._counted_objects()) - objects if self._limits.objects else 0
        return Repeat(between(before, after), arrived, peak, objects), error

    def _counted_objects(self) -> list[Any]:
        """The objects that the collector tracks and that count, but for the runner's own."""
        keep = self._limits.filter_object
        found = []
        for thing in gc.get_objects():
            kind = type(thing)
            if str(kind.__module__).split(".")[0] in RUNNERS or kind in (types.FrameType, types.CellType, weakref.ReferenceType):
                continue
            try:
                if keep is None or keep(thing):
                    found.append(thing)
            except Exception:  # a filter that knows only some of all objects
                continue
        return found

    def _decide(self, repeats: Sequence[Repeat]) -> Decision:
        limits = self._limits
        decisions = []
        if limits.growth is not None:
            decisions.append(decide_memory([repeat.growth for repeat in repeats], limits.growth, runs=limits.rerun))
        for channel, most in limits.counts.items():
            counts = [sum(one.number for one in repeat.arrivals if one.channel == channel) for repeat in repeats]
            decisions.append(Decision(course_of(counts, most, runs=limits.rerun), channel, tuple(counts)))
        peaks = [repeat.peak.bytes for repeat in repeats if repeat.peak is not None]
        if limits.peak is not None and len(peaks) == len(repeats):
            # As much as the limit is too much: pytest-memray's boundary.  A peak need not repeat more than once.
            decisions.append(Decision("leak" if min(peaks) >= limits.peak else "fine", "peak", tuple(peaks)))
        if limits.objects:
            objects = [repeat.objects for repeat in repeats]
            decisions.append(Decision(course_of(objects, 0, runs=limits.rerun), "objects", tuple(objects)))
        return worst(decisions)

    @staticmethod
    def _memory_of(repeats: Sequence[Repeat]) -> tuple[list[int], str]:
        heap = [repeat.growth.heap for repeat in repeats]
        if any(value is None for value in heap):
            return [repeat.growth.rss or 0 for repeat in repeats], "rss"
        return [value or 0 for value in heap], "heap"

    def _ignored(self, text: str) -> bool:
        return any(fnmatch.fnmatchcase(text, pattern) or pattern in text for pattern in self._limits.ignore)

    # -- verdicts --------------------------------------------------------------------------------------------------------------

    def _judge_once(self, first: Growth, arrivals: int) -> MemoryGrowth | None:
        row, limits = self._row, self._limits
        kept = first.heap if first.heap is not None else first.rss or 0
        metric = "heap" if first.heap is not None else "rss"
        outside = (first.rss or 0) - max(0, kept)
        if limits.growth is not None and kept <= limits.growth < outside - RSS_SLACK:
            kept, metric = first.rss or 0, "rss"
        row.note = "judged once (rerun=0): what is filled on first use counts"
        if limits.growth is not None and kept > limits.growth:
            row.verdict, row.metric, row.repeats, row.limit = LEAK, metric, [kept], limits.growth
            text = f"retains {units.format_size(kept)}, limit {units.format_size(limits.growth)}; {row.note}\n{parts(first)}"
        elif row.peak is not None and limits.peak is not None and row.peak >= limits.peak:
            row.verdict, row.metric, row.repeats, row.limit = LEAK, "peak", [row.peak], limits.peak
            text = f"peaks at {units.format_size(row.peak)}, limit {units.format_size(limits.peak)}; {row.note}"
        elif arrivals > 0:
            row.verdict, row.metric, row.repeats, row.limit = LEAK, "resources", [arrivals], 0
            text = f"leaves {arrivals} more descriptors, threads, children or tasks; {row.note}"
        else:
            row.note = None
            return None
        row.message = text
        return MemoryGrowth(text, row.to_dict())

    def _unrepeatable(self, error: str) -> MemoryGrowth | None:
        row = self._row
        row.verdict = SUSPECT
        row.note = f"it grew, but cannot be repeated, so nothing is known for sure: run again, {error}"
        row.message = row.note
        return MemoryGrowth(f"suspect: {row.note} (strict)", row.to_dict()) if self._limits.strict else None

    def _leak(self, decision: Decision, repeats: Sequence[Repeat]) -> MemoryGrowth | None:
        row, limits = self._row, self._limits
        row.verdict, row.metric, row.repeats = LEAK, decision.metric, list(decision.growths)
        last = repeats[-1].growth
        lines: list[str]
        if decision.metric in ("heap", "rss", "python"):
            row.limit = limits.growth
            lines = self._memory_lines(decision, last)
            if row.verdict != LEAK:
                return None
        elif decision.metric == "peak":
            row.limit = limits.peak
            lines = self._peak_lines(decision, repeats)
        elif decision.metric == "objects":
            row.limit = 0
            lines = [f"leaves {decision.growths[-1]:,} new objects in each of {len(repeats)} re-runs", *self._object_lines()]
        else:
            row.limit = limits.counts[decision.metric]
            lines = self._resource_lines(decision, repeats)
        if decision.metric in RESOURCES or decision.metric == "peak":
            self._also(decision, repeats, lines)
        row.fingerprint = _fingerprint(row)
        row.message = "\n".join(lines[:9])
        return MemoryGrowth(row.message, row.to_dict())

    def _also(self, decision: Decision, repeats: Sequence[Repeat], lines: list[str]) -> None:
        """Name the other limits that were exceeded every time."""
        for channel, most in self._limits.counts.items():
            counts = [sum(one.number for one in repeat.arrivals if one.channel == channel) for repeat in repeats]
            if channel != decision.metric and min(counts) > most:
                groups = {one.group for one in repeats[-1].arrivals if one.channel == channel}
                lines.append(f"also leaves {counted(counts[-1], channel)}: {', '.join(sorted(groups)[:2])}")

    # -- words -----------------------------------------------------------------------------------------------------------------

    def _memory_lines(self, decision: Decision, last: Growth) -> list[str]:
        row, size = self._row, decision.growths[-1]
        found, ignored = self._look(size)
        if ignored > 0 and self._limits.growth is not None and min(decision.growths) - ignored <= self._limits.growth:
            row.verdict, row.note = CLEAN, f"{units.format_size(ignored)} of each run are ignored by the marker"
            return []
        python = found.python_bytes
        small = max(0, last.python or 0)
        native = decision.metric == "heap" and python is not None and python < LARGE * size and small < LARGE * size
        if decision.metric == "rss":
            row.kind = "resident memory outside malloc (mapped)"
        elif native:
            row.kind = "native heap"
        else:
            row.kind = "Python heap"
        sites: Sequence[Suspect] = found.sites
        if native or decision.metric == "rss":
            sites = self._native_sites(size) or sites
        row.sites = [site.to_dict() for site in sites[:5]]
        mapped = decision.metric == "rss" and last.heap is not None
        unseen = native or mapped  # by the census and the sampler: what they found is something else
        row.types = [] if unseen else [one.to_dict() for one in found.types[:5]]
        row.holders = [] if unseen else [one.to_dict() for one in found.holders[:3]]
        limit = units.format_size(self._limits.growth)
        through = "" if python is None else f", Python allocators {units.format_size(python)}"
        runs = ", ".join(units.format_size(growth) for growth in decision.growths)
        lines = [
            f"retains {units.format_size(size)} per run, limit {limit}; each of {len(decision.growths)} re-runs: {runs}",
            f"decided by  {row.kind}: {parts(last)}{through}",
        ]
        fixture = self._phase_of()
        if fixture:
            lines.append(f"in  {fixture}")
        lines += [f"allocated at  {site.label}  {units.format_size(site.bytes)}" for site in sites[:2]]
        if row.types:
            grown = [
                f"{one['label']} {units.format_count(one['count'], sign=True)} ({units.format_size(one['bytes'])})"
                for one in row.types[:3]
            ]
            lines.append(f"grew  {', '.join(grown)}")
        if row.holders:
            one = row.holders[0]
            lines.append("held by  " + " → ".join((one["label"], *one["trail"])))
        elif mapped:
            lines.append("held by  not known: no allocator of Python's or malloc's gave this memory (mmap, a C library)")
        elif native:
            lines.append("held by  no Python object: C code took it from malloc and has not given it back")
        return lines

    def _object_lines(self) -> list[str]:
        """Repeat once more, and tell the types of what stays and who holds one of them."""
        settle(self._reader)
        known = {id(thing) for thing in self._counted_objects()}
        self._row.reruns += 1
        self._run()
        settle(self._reader, trim=False)
        fresh = [thing for thing in self._counted_objects() if id(thing) not in known and thing is not known]
        types_of = Counter(names.type_name(type(thing)) for thing in fresh)
        self._row.types = [Suspect(name, None, count).to_dict() for name, count in types_of.most_common(5)]
        lines = ["grew  " + ", ".join(f"{name} +{count:,}" for name, count in types_of.most_common(3))]
        for thing in fresh[:50]:
            way = way_to_root(thing, ignored=[fresh, known, sys._getframe()])
            if way is not None and not way[0].startswith(("module _pytest", "module pluggy", "frame ")):
                self._row.holders = [Suspect(way[0], None, None, None, tuple(way[1:])).to_dict()]
                return [*lines, "held by  " + " → ".join(way)]
        return lines

    def _look(self, size: int) -> tuple[Explanation, int]:
        """Repeat once more under the sampler; and the bytes of it that the marker lets go."""
        settle(self._reader)
        look = Look(size, exempt=self._exempt())
        try:
            look.begin()
            self._row.reruns += 1
            error, _ = self._run()
            settle(self._reader, trim=False)
            found = look.conclude(size)
        except Exception as problem:  # the verdict stands without it
            look.abandon()
            return Explanation(notes=(f"nothing more is known: {type(problem).__name__}: {problem}",)), 0
        except BaseException:
            look.abandon()
            raise
        if error is not None:
            return Explanation(notes=(f"run once more it failed: {error}",)), 0
        return found, round(look.exempted)

    def _exempt(self) -> Callable[[Sequence[names.Frame]], bool] | None:
        limits = self._limits
        if limits.filter_stack is not None:
            counts = limits.filter_stack

            def filtered(frames: Sequence[names.Frame]) -> bool:
                return not counts(Stack(tuple(StackElement(function, file, line) for file, function, line in frames)))

            return filtered
        if limits.ignore:
            return lambda frames: any(self._ignored(names.site(frame)) for frame in frames)
        return None

    def _native_sites(self, size: int) -> tuple[Suspect, ...]:
        settle(self._reader)
        self._row.reruns += 1
        with LineMeter() as meter:
            self._run()
        return meter.suspects(size)

    def _peak_lines(self, decision: Decision, repeats: Sequence[Repeat]) -> list[str]:
        row, limits = self._row, self._limits
        peak = repeats[-1].peak
        assert peak is not None and limits.peak is not None
        row.kind, row.peak, row.peak_engine = "peak", peak.bytes, peak.engine
        row.sites = [Suspect(label, size).to_dict() for label, size in peak.sites]
        again = f"; {len(repeats)} re-run(s): {', '.join(units.format_size(one) for one in decision.growths)}"
        head = f"Test was limited to {units.format_size(limits.peak)} but allocated {units.format_size(peak.bytes)} at its peak"
        return [f"{head} (by {peak.engine}{again})"] + [
            f"allocated at  {label}  {units.format_size(size)}" for label, size in peak.sites[:3]
        ]

    def _resource_lines(self, decision: Decision, repeats: Sequence[Repeat]) -> list[str]:
        row, channel = self._row, decision.metric
        row.kind = channel
        arrivals = [one for one in repeats[-1].arrivals if one.channel == channel]
        origins = self._origins(channel)
        lines = [
            f"leaves {counted(decision.growths[-1], channel)}, limit {row.limit}; in each of {len(repeats)} re-runs: "
            + ", ".join(map(str, decision.growths))
        ]
        for one in arrivals[:2]:
            origin = origins.get((channel, without_ports(one.group)))
            made = origin.made if origin is not None and origin.made else one.trail
            row.resources.append({**one._asdict(), "trail": list(made), "held_by": list(origin.held_by) if origin else []})
            lines.append(f"left open  {one.number} × {one.group}")
            first = next((site for site in made if not _is_runner(site)), made[0] if made else None)
            if first is not None:
                lines.append(f"{'opened' if channel == 'fds' else 'made'} at  {first}")
            if origin is not None and origin.held_by:
                lines.append("held by  " + " → ".join(origin.held_by))
        fixture = self._phase_of()
        if fixture:
            lines.append(f"in  {fixture}")
        return lines

    def _origins(self, wanted: str) -> dict[tuple[str, str], Any]:
        channels = tuple(self._limits.counts)
        settle(self._reader)
        self._row.reruns += 1
        before = self._reader.read()
        with Origins((wanted,)) as origins:
            self._run()
            settle(self._reader, before, channels=channels, trim=False, patience_s=self._patience_s)
            return origins.found()


class StackElement(NamedTuple):
    """One frame, as pytest-memray hands it to a `filter_fn`."""

    function: str
    file: str
    line: int


class Stack(NamedTuple):
    """A stack, as pytest-memray hands it to a `filter_fn`; innermost frame first."""

    frames: tuple[StackElement, ...]


def _is_runner(site: str) -> bool:
    return site.startswith(("_pytest/", "pluggy/", "pytest_memwatch/", "threading.py", "asyncio/", "socket.py", "subprocess.py"))


def _fingerprint(row: Row) -> str:
    """Free of addresses, line numbers and sizes.

    Who holds it counts only where the line is not known: the search for a holder may come to no end on a busy machine, and the leak
    is the same all the same.
    """
    what = row.kind or row.metric or ""
    site = row.sites[0]["label"] if row.sites else ""
    held = row.holders[0]["label"] if row.holders else ""
    resource = without_ports(row.resources[0]["group"]) if row.resources else ""
    if not site and row.resources and row.resources[0]["trail"]:
        site = row.resources[0]["trail"][0]
    if site:
        held = ""
    text = "|".join((what, re.sub(r":\d+", "", str(site)), re.sub(r"\d[\d,]*", "*", str(held)), str(resource)))
    return text if site or held or resource else f"{what}|{row.nodeid}"
