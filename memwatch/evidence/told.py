"""What a child told, as Evidence: which types grew, who holds them, and whether a bounded container explains it.

Law: pure; lines of plain data in, evidence out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memwatch.evidence import census, names
from memwatch.evidence.findings import Bounded, Moment
from memwatch.model import Evidence, Suspect
from memwatch.units import format_duration, format_size

TOP = 8
BOUNDED_SHARE = 0.6
"""Growth held by one bounded container to this part is a fill."""
FULL = 0.97
"""A container this full does not explain growth any more."""
ROOM = 1.0
"""A fill is looked at again when it has grown by this times as much once more: another leak may hide behind it."""
UNCERTAIN = frozenset({"dict", "list", "float", "tuple", "set", "method", "builtin_function_or_method", "slice"})
"""Types whose dead instances CPython keeps and uses again (free lists): the next lives in a block that another line asked for."""
MOSTLY = 0.7
TOLD_FROM = 0.05
"""Holders with less than this part of the survivors are noise, unless they are the largest."""
LOST_FROM = 0.15
"""Blocks without an object are told from this part on: a few are always objects that wait in a free list."""
FEWEST = 8
"""Entries from which a container is one that fills."""
LEVELS_TOLD = 150
KINDS_OF = {
    "fds": ("_io.FileIO", "_socket.socket", "_ssl._SSLSocket", "sqlite3.Connection", "select.epoll"),
    "sockets": ("_socket.socket", "_ssl._SSLSocket"),
    "threads": ("threading.Thread",),
    "children": ("subprocess.Popen", "multiprocessing.process.BaseProcess", "asyncio.subprocess.Process"),
    "tasks": ("_asyncio.Task", "asyncio.tasks.Task"),
}
"""Python's objects for each kind of resource, by the name of a class that theirs derive from."""


def is_counted(channel: str) -> bool:
    """Whether a channel counts resources, and not bytes."""
    return channel in KINDS_OF


def measured(moment: Moment, before: Mapping[str, float], before_s: float) -> float:
    """Bytes that the process grew by since an earlier moment, on the verdict's channel.

    Large Python blocks live in malloc, so that for the Python heap both count.  Channels that are read rarely may not have been
    read in between: then the verdict's rate says it.
    """
    channels = {"heap": ("heap", "native"), "native": ("native",)}.get(moment.verdict.channel, (moment.verdict.channel,))
    total = 0.0
    for channel in channels:
        old, new = before.get(channel), moment.readings.get(channel)
        if old is not None and new is not None:
            total += max(0.0, new - old)
    predicted = moment.verdict.rate * max(0.0, moment.now_s - before_s)
    return total if total > 0.3 * predicted else predicted


class Paths:
    """What the child told of the way to each survivor."""

    def __init__(
        self, lines: Sequence[Mapping[str, Any]], labels: Mapping[int, str], whole: float | None, *, counted: bool
    ) -> None:
        self._lines = lines
        self._paths = [line for line in lines if line.get("what") == "path"]
        self._labels = labels
        self._counted = counted
        self._lost = sum(float(weight) for line in lines if line.get("what") == "lost" for weight in line["stacks"].values())
        self._total = sum(float(line["weight"]) for line in self._paths) + self._lost
        self._whole = whole
        self.cycles_share = self._share_of(lambda line: line["status"] == 1)

    def _share_of(self, wanted: Callable[[Mapping[str, Any]], bool]) -> float:
        return sum(float(line["weight"]) for line in self._paths if wanted(line)) / self._total if self._total else 0.0

    def by_type(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Type to the bytes that its survivors stand for, and to those by the site that allocated them."""
        found: dict[str, tuple[float, dict[str, float]]] = {}
        beside = self._sites_beside()
        for line in self._paths:
            weight, places = found.get(line["type"], (0.0, {}))
            label = self._labels.get(int(line["stack"]))
            known = beside.get(str(line.get("place")), frozenset())
            if line["type"] in UNCERTAIN and known and label not in known:
                label = None  # its block was another line's before
            if label is not None:
                places[label] = places.get(label, 0.0) + float(line["weight"])
            found[line["type"]] = weight + float(line["weight"]), places
        return found

    def _sites_beside(self) -> dict[str, frozenset[str]]:
        """For each place where growth accumulates, the sites of what lives there in blocks that were nobody's before."""
        found: dict[str, set[str]] = {}
        for line in self._paths:
            label = self._labels.get(int(line["stack"]))
            if label is not None and line["type"] not in UNCERTAIN and line.get("place"):
                found.setdefault(str(line["place"]), set()).add(label)
        return {place: frozenset(labels) for place, labels in found.items()}

    def with_doubts(self, sites: Evidence) -> Evidence:
        """Sites whose survivors are of types with free lists, where others are surely from other sites, go behind those."""
        beside = self._sites_beside()
        at: dict[str, tuple[float, float]] = {}
        for line in self._paths:
            label = self._labels.get(int(line["stack"]))
            if label is not None:
                all_of_it, doubtful = at.get(label, (0.0, 0.0))
                known = beside.get(str(line.get("place")), frozenset())
                weight = float(line["weight"])
                doubt = line["type"] in UNCERTAIN and bool(known) and label not in known
                at[label] = all_of_it + weight, doubtful + weight * doubt
        doubted = {label for label, (weight, doubtful) in at.items() if doubtful >= MOSTLY * weight}
        certain = [suspect for suspect in sites.suspects if suspect.label not in doubted]
        others = [suspect for suspect in sites.suspects if suspect.label in doubted]
        if not certain or not others:
            return sites
        named = ", ".join(suspect.label for suspect in others[:3])
        told = f"CPython uses blocks of dead dicts, lists, floats and tuples again, so that these may be innocent: {named}"
        return replace(sites, suspects=(*certain, *others), note="; ".join(filter(None, (sites.note, told))))

    def evidence(self, died: str | None) -> Evidence:
        """Who holds it: the places where it accumulates, the largest first."""
        places: dict[str, tuple[float, dict[tuple[str, ...], float]]] = {}
        for line in self._paths:
            place, trail = self._place(line)
            weight, trails = places.get(place, (0.0, {}))
            trails[trail] = trails.get(trail, 0.0) + float(line["weight"])
            places[place] = weight + float(line["weight"]), trails
        if self._lost > LOST_FROM * self._total:
            places[
                "nothing that Python can see: C code holds it, or took it through Python's allocator and has not given it back"
            ] = self._lost, {(): 1.0}
        whole = max(self._whole or 0.0, self._total, 1e-9)
        suspects: list[Suspect] = []
        for place, (weight, trails) in sorted(places.items(), key=lambda item: -item[1][0])[:TOP]:
            if weight < 0.01 * whole or (suspects and weight < TOLD_FROM * self._total):
                break
            trail = max(trails, key=lambda key: trails[key])
            size, count = (None, round(weight)) if self._counted else (round(weight), None)
            suspects.append(Suspect(place, size, count, round(weight / whole, 4), trail))
        note = f"the child that looked {died}; this is what it had told by then" if died else None
        if not suspects and note is None:
            note = "no survivor of the growth was found in the heap"
        explains = min(1.0, sum(suspect.share or 0.0 for suspect in suspects)) if suspects else None
        return Evidence("holders", tuple(suspects), explains, note)

    def _place(self, line: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        trail = tuple(line.get("trail") or ())
        match line["status"]:
            case 0:
                return str(line["place"]), trail
            case 1:
                return "nothing but each other: a cycle that the collector has not reached yet", (line["type"],)
            case 2 | 3 if self._counted:
                return "nothing but themselves and the lists of the standard library: they are at work", (line["type"],)
            case 2:
                return f"a reference held in C, to {trail[0] if trail else line['type']}", (*trail[1:-1], line["type"])
            case _:
                return "a holder that was not found in the time there was", (line["type"],)

    def made_at(self, stack: Callable[[int], Sequence[names.Frame]]) -> tuple[str, ...]:
        """Where most of the resources that were sampled were made, innermost first, from the first line that is not the standard
        library's; empty if none was sampled."""
        made: Mapping[str, Any] = next((line["stacks"] for line in self._lines if line.get("what") == "made"), {})
        for key in sorted(made, key=lambda key: -int(made[key])):
            frames = stack(int(key))
            place = next((i for i, frame in enumerate(frames) if not names.is_standard(frame[0])), None)
            if place is not None and not names.is_ours(frames[place][0]):
                return tuple(names.site(frame) for frame in frames[place : place + 8])
        return ()

    def bounded(self, moment: Moment) -> Bounded | None:
        """The bounded container that holds most of the growth and is not full, if one does."""
        bounds: dict[str, tuple[float, int, int, str]] = {}
        for line in self._paths:
            bound = line.get("bound")
            if line["status"] == 0 and bound:
                weight = bounds.get(bound[0], (0.0,))[0]
                bounds[bound[0]] = (
                    weight + float(line["weight"]),
                    int(bound[1]),
                    int(bound[2]),
                    str(bound[3]),
                )
        for name, (weight, holds, most, unit) in bounds.items():
            if weight >= BOUNDED_SHARE * self._total and FEWEST <= holds < FULL * most:
                room = moment.verdict.grown * min(ROOM, (most - holds) / holds)
                if unit == "bytes":
                    reason = f"{name} held {format_size(holds)} of at most {format_size(most)} when it was looked at"
                else:
                    reason = f"{name} held {holds:,} of at most {most:,} entries when it was looked at"
                counted = is_counted(moment.verdict.channel)
                return Bounded(reason, room, moment.verdict.channel if counted else None)
        return None


def types_evidence(
    before: census.Counts | None,
    after: census.Counts | None,
    measured: float | None,
    paths: Paths,
    died: str | None,
    *,
    apart_s: float,
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
        looked_at = format_size(max(0.0, whole))
        note: str | None = f"exact counts, from two censuses {format_duration(apart_s)} apart: {looked_at} of the growth"
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


def with_callers(types: Evidence, callers: Mapping[str, str]) -> Evidence:
    """The same with the program's own line behind each site in an installed package."""
    told = [
        replace(suspect, trail=tuple(f"{site} ← {callers[site]}" if site in callers else site for site in suspect.trail))
        for suspect in types.suspects
    ]
    return replace(types, suspects=tuple(told))


def _best(sampled: tuple[float, Mapping[str, float]] | None) -> tuple[str, ...]:
    places = {} if sampled is None else sampled[1]
    return tuple(sorted(places, key=lambda label: -places[label])[:3])


def counts_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]] | None:
    """The census in what a child told; None if it did not come so far."""
    for line in lines:
        if line.get("what") == "types":
            return {sys.intern(str(name)): (int(row[0]), int(row[1])) for name, row in line["types"].items()}
    return None


def levels_of(counts: census.Counts) -> Evidence:
    """The largest types of a census, as a record keeps them."""
    largest = sorted(counts.items(), key=lambda item: -item[1][1])[:LEVELS_TOLD]
    return Evidence("types", tuple(Suspect(name, size, count) for name, (count, size) in largest))
