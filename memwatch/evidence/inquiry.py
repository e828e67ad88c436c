"""From suspicion to evidence: when baselines are taken, when they are compared, and what follows from it for the verdict.

Law: a suspicion owns its baselines, and its end frees them.  Nothing here waits: what takes time happens in a forked child, and is read
at later ticks.  Each collector that cannot work says why in its Evidence.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memwatch.evidence import census, fallback, names, resources, sites
from memwatch.evidence.child import Child, refusal
from memwatch.model import Evidence, Suspect, Verdict

SAMPLES_NEEDED = 24
"""A conclusion waits until the growth was sampled about this often ..."""
PATIENCE_TICKS = 12
"""... or for so many ticks."""
SURVIVORS = 400
"""Sampled blocks looked at by a child."""
YOUNGEST_SHARE = 0.1
"""The youngest part of the window is left out: what lives so short is work in progress, not growth."""
CENSUS_DUTY = 0.01
"""Part of one core that censuses may take while a suspicion comes and goes."""
BOUNDED_SHARE = 0.6
"""Growth held by one bounded container to this part is a fill."""
CYCLES_SHARE = 0.5
FULL = 0.97
"""A container this full does not explain growth any more."""
LISTED_AT_MOST = 5000
"""Resources beyond this number are not listed for a baseline."""
LEVELS_EVERY_S = 600.0
"""Levels by site are put into the record this often, so that two releases can be compared."""
TRACED_TICKS = 64
"""tracemalloc that we started runs this many ticks at most before there is a conclusion."""
COUNTED = ("fds", "threads", "children", "tasks")
KINDS_OF = {
    "fds": ("_io.FileIO", "_socket.socket", "_ssl._SSLSocket"),
    "sockets": ("_socket.socket", "_ssl._SSLSocket"),
    "threads": ("threading.Thread",),
    "children": ("subprocess.Popen", "multiprocessing.process.BaseProcess", "asyncio.subprocess.Process"),
    "tasks": ("_asyncio.Task", "asyncio.tasks.Task"),
}
"""Python's objects for each kind of resource, by the name of a class that theirs derive from."""


class Bounded(NamedTuple):
    """Why growth is not a leak."""

    reason: str
    room: float | None
    """Bytes that it may still grow by."""
    channel: str | None


class Conclusion(NamedTuple):
    """What an inquiry found."""

    evidence: tuple[Evidence, ...]
    levels: tuple[Evidence, ...]
    """What is alive now, for the record."""
    bounded: Bounded | None
    cycles_share: float
    """Part of the growth that is garbage which the collector has not reached."""


class Moment(NamedTuple):
    """What the watcher knows at a tick."""

    now_s: float
    """Monotonic seconds."""
    verdict: Verdict
    since_s: float | None
    """When the growth judged began, monotonic."""
    readings: Mapping[str, float]
    """Every channel as it was last read."""


class Inquiry:
    """The evidence of one watch.

    Args:
        mode: the setting `evidence`.
        sample_bytes: bytes between two samples, on average.
        clock: monotonic seconds.
        give_back: hands free memory back to the system; returns the resident bytes that went, or None.
        say: told once of what was asked for and does not work.

    Threads: one at a time; the watcher serialises.
    """

    def __init__(
        self,
        mode: str,
        *,
        sample_bytes: int = 65536,
        clock: Callable[[], float] = time.monotonic,
        give_back: Callable[[], float | None] = lambda: None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.mode = mode
        self._sample_bytes = sample_bytes
        self._clock = clock
        self._give_back = give_back
        self._say = say
        self.sampling: sites.Sampling | None = None
        self.declined: str | None = None
        """Why there is no sampler."""
        self._levels = sites.Levels()
        self._suspicion: Suspicion | None = None
        self._next_census_s = -math.inf
        self._levels_due_s = -math.inf

    # -- life ------------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the sampler, where it is wanted and works.  Never raises."""
        if self.mode not in ("auto", "sampling") or self.sampling is not None:
            return
        try:
            self.sampling = sites.Sampling(self._sample_bytes)
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            self.declined = str(error)
            if self.mode == "sampling":
                self._say(f"allocations are not sampled: {error}")
        else:
            self._levels_due_s = self._clock() + LEVELS_EVERY_S

    def end(self) -> None:
        """Stop everything and free what was kept."""
        self._close()
        self._levels.forget()
        if self.sampling is not None:
            self.sampling.stop()
            self.sampling = None

    def after_fork(self) -> None:
        """In a forked child of the program: the inquiry under way is the parent's; the sampler goes on here."""
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is not None:
            suspicion.close()
        self._levels.forget()
        self._next_census_s = -math.inf

    @property
    def looking(self) -> bool:
        """Whether a child is at work, so that `poll` is to be called soon."""
        return self._suspicion is not None and self._suspicion.child is not None

    @property
    def pending(self) -> bool:
        """Whether a leak is being looked at and there is no conclusion yet."""
        return self._suspicion is not None and self._suspicion.asked and not self._suspicion.concluded

    @property
    def own_children(self) -> int:
        """Children of memwatch's own, which are not the program's."""
        return int(self.looking)

    @property
    def own_descriptors(self) -> int:
        return int(self.looking)

    # -- at every tick ---------------------------------------------------------------------------------------------------------

    def observe(self, moment: Moment) -> Conclusion | None:
        """Take note of a tick; returns a conclusion when there is one."""
        if self.mode == "off":
            return None
        if self.sampling is not None:
            if not self.sampling.maintain():
                self._levels.forget()
                if self._suspicion is not None:
                    self._suspicion.lost_samples()
            self._levels.tick(self.sampling, moment.now_s, moment.readings)
        state = moment.verdict.state
        if state not in ("growing", "leaking"):
            self._close()
            return None
        if self._suspicion is None:
            self._suspicion = Suspicion(self, moment)
        return self._suspicion.observe(moment)

    def poll(self) -> bool:
        """Read what a child has told by now; True when it has ended, and the next tick can conclude."""
        return self._suspicion is not None and self._suspicion.poll()

    def levels_due(self, now_s: float) -> tuple[Evidence, ...] | None:
        """Levels by site for the record, when it is time for them."""
        if self.sampling is None or now_s < self._levels_due_s:
            return None
        self._levels_due_s = now_s + LEVELS_EVERY_S
        return (sites.levels_recorded(self.sampling),)

    def site_level_at(self, since_s: float) -> sites.Level | None:
        """The level from about when growth began."""
        return self._levels.at(since_s)

    def may_take_census(self) -> bool:
        """Whether a census is cheap enough now, after those before."""
        return self._clock() >= self._next_census_s

    def census_took(self, seconds: float) -> None:
        """A census has taken so long: the next waits in proportion."""
        self._next_census_s = self._clock() + seconds / CENSUS_DUTY

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock

    def give_back(self) -> float | None:
        """See the class."""
        return self._give_back()

    def _close(self) -> None:
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is not None:
            suspicion.close()


class Suspicion:
    """One suspicion: its baselines, its child, its conclusion."""

    def __init__(self, inquiry: Inquiry, moment: Moment) -> None:
        self._inquiry = inquiry
        self._began = moment
        self._ticks = 0
        self.asked = False
        """Whether the verdict is a leak, and evidence for it is wanted."""
        self.concluded = False
        self._told_growth = 0.0
        self._waited = 0
        self.child: Child | None = None
        self._finished: Child | None = None
        self._is_baseline = False
        self._why_no_child: str | None = None
        self._counts: census.Counts | None = None
        self._counts_at: Moment | None = None
        self._tracing: sites.Tracing | None = None
        self._level: sites.Level | None = None
        self._native_stacks = fallback.NativeStacks()
        self._native_before: dict[int, float] = {}
        sampling = inquiry.sampling
        if sampling is not None:
            since_s = moment.now_s if moment.since_s is None else moment.since_s
            self._level = inquiry.site_level_at(since_s)
            sampling.module.watch_native(True)
            self._native_before = {row[0]: row[1] for row in sampling.module.native()}
        elif inquiry.mode in ("auto", "tracemalloc"):
            self._tracing = sites.Tracing()
            self._level = sites.take_level(self._tracing, moment.now_s, moment.readings)
        self._resources = {
            channel: resources.look(channel) for channel in COUNTED if moment.readings.get(channel, 0.0) <= LISTED_AT_MOST
        }
        self._resources_at = moment
        if not is_counted(moment.verdict.channel) and inquiry.may_take_census():
            self._fork(census.Task(list, None, False), moment)
            self._is_baseline = True

    # -- ticks -----------------------------------------------------------------------------------------------------------------

    def observe(self, moment: Moment) -> Conclusion | None:
        """Take note of a tick of the suspicion; returns a conclusion when there is one."""
        self._ticks += 1
        self._native_stacks.tick(moment.readings.get("native"))
        if self._tracing is not None and self._ticks > TRACED_TICKS and not self.asked:
            self._tracing.stop()
            self._tracing = None
        if self.poll() and self._finished is not None:
            child, self._finished = self._finished, None
            if not self._is_baseline:
                return self._conclude(moment, child)
            self._note_baseline(child)
        if moment.verdict.state != "leaking" or self.child is not None:
            return None
        grown_enough = moment.verdict.grown >= 2 * self._told_growth > 0
        if self.concluded and not grown_enough:
            return None
        if self.concluded:
            self.concluded = False
        self.asked = True
        if self._is_too_early(moment) and self._waited < PATIENCE_TICKS:
            self._waited += 1
            return None
        return self._ask(moment)

    def poll(self) -> bool:
        """Whether the child at work has ended."""
        if self.child is None or not self.child.poll():
            return self._finished is not None
        self._finished, self.child = self.child, None
        taken_s = [line.get("took_s") for line in self._finished.lines if line.get("what") in ("types", "end")]
        spent_s = max([float(value) for value in taken_s if isinstance(value, int | float)], default=1.0)
        self._inquiry.census_took(spent_s + self._finished.fork_s)
        return True

    def lost_samples(self) -> None:
        """Another tool has dropped the sampler's hooks: what was there before is unknown."""
        self._level = None

    def close(self) -> None:
        """Free the baselines, and end what is at work."""
        if self.child is not None:
            self.child.kill()
            self.child = None
        if self._tracing is not None:
            self._tracing.stop()
            self._tracing = None
        if self._inquiry.sampling is not None:
            self._inquiry.sampling.module.watch_native(False)
        self._counts = self._level = None
        self._resources = {}

    def _is_too_early(self, moment: Moment) -> bool:
        if is_counted(moment.verdict.channel) or self._inquiry.sampling is None or self._level is None:
            return False
        exhausted_s = moment.verdict.exhausted_in_s
        if exhausted_s is not None and exhausted_s < 60:
            return False
        grown = _measured(moment, self._level.readings, self._level.time_s)
        return grown < SAMPLES_NEEDED * self._inquiry.sampling.mean_bytes

    def _note_baseline(self, child: Child) -> None:
        counts = _counts(child)
        if counts is not None:
            self._counts, self._counts_at = counts, self._began

    # -- asking ----------------------------------------------------------------------------------------------------------------

    def _fork(self, task: census.Task, moment: Moment) -> None:
        self._why_no_child = refusal(moment.readings.get("rss"), moment.readings.get("limit"))
        if self._why_no_child is not None:
            return
        try:
            self.child = Child(task, clock=self._inquiry.clock)
        except (OSError, RuntimeError) as error:
            self._why_no_child = f"the heap was not looked at: no child could be forked ({error})"

    def _ask(self, moment: Moment) -> Conclusion | None:
        self._asked_at = moment
        self._grown: list[sites.Growth] = []
        self._sites: Evidence | None = None
        labels: dict[int, str] = {}
        source: sites.SiteSource | None = self._inquiry.sampling or self._tracing
        blocks: Callable[[], Sequence[census.Block]] = list
        if source is not None and self._level is not None:
            after, fresh = source.live(), source.live(self._level.time_s)
            self._grown = sites.growths(self._level.live(), after, fresh)
            measured = _measured(moment, self._level.readings, self._level.time_s)
            counted = is_counted(moment.verdict.channel)
            resident = moment.verdict.channel == "rss"
            self._sites, labels = sites.rank(self._grown, source, None if counted else measured, resident=resident)
            if self._inquiry.sampling is not None:
                told = {suspect.label for suspect in self._sites.suspects}
                wanted = {row.key: row.bytes for row in self._grown if labels.get(row.key) in told or not source.stack(row.key)}
                window_s = self._level.time_s, moment.now_s
                sampling = self._inquiry.sampling

                def blocks() -> list[census.Block]:
                    return survivors(sampling, wanted, *window_s)

        self._labels = labels
        kinds = KINDS_OF.get(moment.verdict.channel, ())
        self._is_baseline = False
        self._fork(census.Task(blocks, self._counts, True, kinds), moment)
        if self.child is None:
            return self._conclude(moment, None)
        return None

    # -- concluding ------------------------------------------------------------------------------------------------------------

    def _conclude(self, moment: Moment, child: Child | None) -> Conclusion:
        self.concluded = True
        self._waited = 0
        self._told_growth = moment.verdict.grown
        channel = moment.verdict.channel
        asked_at = self._asked_at
        found: list[Evidence] = []
        levels: list[Evidence] = []
        bounded: Bounded | None = None
        cycles = 0.0
        if is_counted(channel):
            before = self._resources.get(RESOURCE_OF.get(channel, channel))
            looked = resources.look(channel)
            found.append(resources.compare(channel, before, looked))
        if self._sites is not None:
            found.append(self._sites)
        told = child.lines if child is not None else []
        if child is not None:
            counts = _counts(child)
            growth = _measured(asked_at, self._counts_at.readings, self._counts_at.now_s) if self._counts_at is not None else None
            paths = Paths(told, self._labels, _measured_since(asked_at, self._level), counted=is_counted(channel))
            if not is_counted(channel):
                found.append(types_evidence(self._counts, counts, growth, paths, child.died))
            found.append(paths.evidence(child.died))
            bounded = paths.bounded(moment)
            cycles = paths.cycles_share
            if counts is not None:
                levels.append(_levels_of(counts))
        else:
            found.append(fallback.types_in_process(self._why_no_child or "", moment.readings.get("blocks")))
        native = self._native(moment)
        if native is not None:
            found.append(native)
        if self._inquiry.sampling is not None:
            levels.append(sites.levels_recorded(self._inquiry.sampling))
        elif self._tracing is not None:
            self._tracing.stop()
            self._tracing = None
        kept = tuple(item for item in found if item.suspects or item.note)
        return Conclusion(kept, tuple(levels), bounded, cycles)

    def _native(self, moment: Moment) -> Evidence | None:
        """What is known of growth that no Python allocator gave out."""
        explained = (self._sites.explains or 0.0) if self._sites is not None else 0.0
        if is_counted(moment.verdict.channel) or (moment.verdict.kind == "python-heap" and explained >= 0.5) or explained >= 0.8:
            return None
        facts = []
        start = self._level.readings if self._level is not None else self._began.readings
        for channel, title in (
            ("heap", "the Python heap"),
            ("native", "malloc in use"),
            ("retained", "what allocators keep unused"),
        ):
            before, after = start.get(channel), moment.readings.get(channel)
            if before is not None and after is not None:
                facts.append(f"{title} changed by {(after - before) / 2**20:+,.1f} MiB")
        given_back = self._inquiry.give_back()
        if given_back is not None:
            facts.append(f"malloc_trim gave back {max(0.0, given_back) / 2**20:,.1f} MiB")
        sampling = self._inquiry.sampling
        rows: list[tuple[tuple[names.Frame, ...], float]] = []
        if sampling is not None:
            charged = ((row[0], row[1] - self._native_before.get(row[0], 0.0)) for row in sampling.module.native())
            rows = [(sampling.stack(key), size) for key, size in charged]
        if not any(size > 0 for _, size in rows):
            rows = self._native_stacks.rows()
        measured = _measured_since(moment, self._level) or moment.verdict.grown
        suspects = fallback.native_suspects(rows, measured)
        note = "; ".join(facts) or None
        return Evidence("native", suspects, None, note)


RESOURCE_OF = {"sockets": "fds"}


def is_counted(channel: str) -> bool:
    """Whether a channel counts resources, and not bytes."""
    return channel in KINDS_OF


def survivors(
    sampling: sites.Sampling, wanted: Mapping[int, float], since_s: float, until_s: float, most: int = SURVIVORS
) -> list[census.Block]:
    """Sampled blocks that stand for the growth: of each stack that grew as many as its part, old enough to be more than work under way.

    Runs in the child, whose memory holds the sampler's tables as they were at the fork.
    """
    old_enough_s = until_s - YOUNGEST_SHARE * (until_s - since_s)
    by_stack: dict[int, list[tuple[int, float]]] = {}
    young: dict[int, list[tuple[int, float]]] = {}
    for address, _, weight, key, born_s in sampling.blocks(since_s, 1 << 30):
        if wanted.get(key, 0.0) > 0:
            (by_stack if born_s <= old_enough_s else young).setdefault(key, []).append((address, weight))
    for key, blocks in young.items():
        by_stack.setdefault(key, blocks)
    total = sum(wanted[key] for key in by_stack) or 1.0
    chosen: list[census.Block] = []
    for key, blocks in sorted(by_stack.items(), key=lambda item: -wanted[item[0]]):
        quota = max(1, round(most * wanted[key] / total))
        picked = blocks[:: max(1, len(blocks) // quota)][:quota]
        whole = sum(weight for _, weight in picked)
        chosen += [census.Block(address, wanted[key] * weight / whole, key) for address, weight in picked]
        if len(chosen) >= most:
            break
    return chosen


class Paths:
    """What the child told of the way to each survivor."""

    def __init__(
        self, lines: Sequence[Mapping[str, Any]], labels: Mapping[int, str], measured: float | None, *, counted: bool
    ) -> None:
        self._paths = [line for line in lines if line.get("what") == "path"]
        self._labels = labels
        self._counted = counted
        self._lost = sum(float(weight) for line in lines if line.get("what") == "lost" for weight in line["stacks"].values())
        self._total = sum(float(line["weight"]) for line in self._paths) + self._lost
        self._measured = measured
        self.cycles_share = self._share_of(lambda line: line["status"] == 1)

    def _share_of(self, wanted: Callable[[Mapping[str, Any]], bool]) -> float:
        return sum(float(line["weight"]) for line in self._paths if wanted(line)) / self._total if self._total else 0.0

    def by_type(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Type to the bytes that its survivors stand for, and to those by the site that allocated them."""
        found: dict[str, tuple[float, dict[str, float]]] = {}
        for line in self._paths:
            weight, places = found.get(line["type"], (0.0, {}))
            label = self._labels.get(int(line["stack"]))
            if label is not None:
                places[label] = places.get(label, 0.0) + float(line["weight"])
            found[line["type"]] = weight + float(line["weight"]), places
        return found

    def evidence(self, died: str | None) -> Evidence:
        """Who holds it: the places where it accumulates, the largest first."""
        places: dict[str, tuple[float, dict[tuple[str, ...], float]]] = {}
        for line in self._paths:
            place, trail = self._place(line)
            weight, trails = places.get(place, (0.0, {}))
            trails[trail] = trails.get(trail, 0.0) + float(line["weight"])
            places[place] = weight + float(line["weight"]), trails
        if self._lost > 0:
            places["nothing in Python: C code took it through Python's allocator and has not given it back"] = self._lost, {(): 1.0}
        whole = max(self._measured or 0.0, self._total, 1e-9)
        suspects = []
        for place, (weight, trails) in sorted(places.items(), key=lambda item: -item[1][0])[:TOP]:
            if weight < 0.01 * whole:
                break
            trail = max(trails, key=lambda key: trails[key])
            size, count = (None, round(weight)) if self._counted else (round(weight), None)
            suspects.append(Suspect(place, size, count, round(weight / whole, 4), trail))
        note = f"the child that looked {died}; this is what it had told by then" if died else None
        if not suspects and note is None:
            note = "no survivor of the growth was found in the heap"
        explains = min(1.0, sum(suspect.share or 0.0 for suspect in suspects)) if suspects else None
        return Evidence("holders", tuple(suspects), explains, note)

    @staticmethod
    def _place(line: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        trail = tuple(line.get("trail") or ())
        match line["status"]:
            case 0:
                return str(line["place"]), trail
            case 1:
                return "nothing but each other: a cycle that the collector has not reached yet", (line["type"],)
            case 2:
                return f"a reference held in C, to {trail[0] if trail else line['type']}", trail[1:]
            case _:
                return "a holder that was not found in the time there was", (line["type"],)

    def bounded(self, moment: Moment) -> Bounded | None:
        """The bounded container that holds most of the growth and is not full, if one does."""
        bounds: dict[str, tuple[float, int, int]] = {}
        for line in self._paths:
            bound = line.get("bound")
            if line["status"] == 0 and bound:
                weight, _, _ = bounds.get(bound[0], (0.0, 0, 0))
                bounds[bound[0]] = weight + float(line["weight"]), int(bound[1]), int(bound[2])
        for name, (weight, holds, most) in bounds.items():
            if weight >= BOUNDED_SHARE * self._total and 0 < holds < FULL * most:
                left = (most - holds) / holds
                room = moment.verdict.grown * left * 1.5
                reason = f"a fill, not a leak: {name} holds {holds:,} of at most {most:,} entries"
                counted = is_counted(moment.verdict.channel)
                return Bounded(reason, float(most - holds) if counted else room, moment.verdict.channel if counted else None)
        return None


TOP = 8


def types_evidence(
    before: census.Counts | None, after: census.Counts | None, measured: float | None, paths: Paths, died: str | None
) -> Evidence:
    """Which types grew: exactly, from two censuses; else estimated, from the types of the survivors."""
    sampled = paths.by_type()
    suspects: list[Suspect] = []
    if after is not None and before is not None:
        grown = {name: census.growth(name, after, before) for name in after}
        positive = sum(size for _, size in grown.values() if size > 0)
        whole = max(measured or 0.0, float(positive), 1.0)
        for name, (count, size) in sorted(grown.items(), key=lambda item: -item[1][1])[:TOP]:
            if size <= 0.01 * whole:
                break
            suspects.append(Suspect(name, size, count, round(size / whole, 4), _best(sampled.get(name))))
        note = None
    else:
        whole = max(sum(weight for weight, _ in sampled.values()), 1e-9)
        for name, (weight, _) in sorted(sampled.items(), key=lambda item: -item[1][0])[:TOP]:
            if weight > 0.01 * whole:
                suspects.append(Suspect(name, round(weight), None, round(weight / whole, 4), _best(sampled.get(name))))
        note = "estimated from the objects in sampled blocks: there was no earlier census to compare with" if suspects else None
    if died:
        note = f"the child that counted {died}"
    explains = min(1.0, sum(suspect.share or 0.0 for suspect in suspects)) if suspects and measured else None
    return Evidence("types", tuple(suspects), explains, note)


def _best(sampled: tuple[float, Mapping[str, float]] | None) -> tuple[str, ...]:
    places = {} if sampled is None else sampled[1]
    return tuple(sorted(places, key=lambda label: -places[label])[:3])


def _counts(child: Child) -> dict[str, tuple[int, int]] | None:
    for line in child.lines:
        if line.get("what") == "types":
            return {sys.intern(str(name)): (int(row[0]), int(row[1])) for name, row in line["types"].items()}
    return None


def _levels_of(counts: census.Counts) -> Evidence:
    largest = sorted(counts.items(), key=lambda item: -item[1][1])[:150]
    return Evidence("types", tuple(Suspect(name, size, count) for name, (count, size) in largest))


def _measured_since(moment: Moment, level: sites.Level | None) -> float | None:
    return None if level is None else _measured(moment, level.readings, level.time_s)


def _measured(moment: Moment, before: Mapping[str, float], before_s: float) -> float:
    """Bytes that the process grew by since an earlier moment, on the verdict's channel.

    Large Python blocks live in malloc, so that for the Python heap both count.  Channels that are read rarely may not have been read in
    between: then the verdict's rate says it.
    """
    channels = {"heap": ("heap", "native"), "native": ("native",)}.get(moment.verdict.channel, (moment.verdict.channel,))
    total = 0.0
    for channel in channels:
        old, new = before.get(channel), moment.readings.get(channel)
        if old is not None and new is not None:
            total += max(0.0, new - old)
    predicted = moment.verdict.rate * max(0.0, moment.now_s - before_s)
    return total if total > 0.3 * predicted else predicted


def collector_is_on() -> bool:
    """Whether the program lets the cyclic collector run by itself."""
    return gc.isenabled()
