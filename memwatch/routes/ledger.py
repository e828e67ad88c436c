"""What every route and job did: counted as it is done, in bounded memory, at next to no cost.

Law: nothing of a request is kept when it is over but numbers in arrays that exist already, and until the next batch its route and
how long it took.  Whatever paths come, there are at most `MOST_ROUTES` rows; the others share `OTHER`.
"""

from __future__ import annotations

import importlib
import math
from array import array
from collections.abc import Callable, Iterable
from operator import add
from time import perf_counter
from typing import Any, NamedTuple

from memwatch import osthread
from memwatch.routes.buckets import BUCKETS, SCALE, percentiles
from memwatch.routes.flights import AsgiEntry, Flights
from memwatch.routes.names import LONGEST_NAME, method

MOST_ROUTES = 200
"""Rows; one takes some 2.5 KiB."""
OTHER = "(other)"
UNMATCHED = "(unmatched)"
MOST_IN_FLIGHT = 10_000
"""Requests under way that are timed; more are only counted."""

RECENT_S = 300.0
"""Percentiles are of the last one to two times this."""

DUTY = 0.002
"""Part of the time of requests that may go into reading resident memory before and after them (3 to 10 µs each)."""
FASTEST_FILL_BYTES_PER_S = 20e9
"""No core touches new pages faster (the kernel clears them: some 1 to 10 GB/s; guess, on the safe side): a request that took less
than a threshold's worth has not grown by it, and needs no second reading."""
BATCH = 64
"""So many that are over wait to be written into their rows: requests, or with the extension, which counts them itself, different
routes.  Code and data that come into the processor's caches once for all of them cost a tenth of what they cost between two
requests that do something else."""
SAY_AGAIN_S = 600.0
"""A route that grows with each request is told of once in this time."""
NOTES_KEPT = 20


class Grown(NamedTuple):
    """A single request during which resident memory grew beyond the threshold, while no other was under way."""

    route: str
    bytes: float
    took_s: float


class Figures(NamedTuple):
    """What one route did until now."""

    route: str
    requests: int
    errors: int
    in_flight: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    """Of the last five to ten minutes; None where nothing was timed in them."""


def fastest() -> type[Flights]:
    """The extension's flights where it is built, else Python's."""
    kind: type[Flights] = _built("Flights", Flights)
    return kind


def fastest_entry() -> type[AsgiEntry]:
    """The extension's entry where it is built, else Python's."""
    kind: type[AsgiEntry] = _built("AsgiEntry", AsgiEntry)
    return kind


def _built(name: str, in_python: Any) -> Any:
    try:
        return getattr(importlib.import_module("memwatch.routes._flights"), name)
    except (ImportError, AttributeError):  # not built; or built for an interpreter without a GIL, where it is empty
        return in_python


class _Route:
    __slots__ = ("earlier", "errors", "recent", "requests", "told_s")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.recent = array("I", bytes(4 * BUCKETS))
        self.earlier = array("I", bytes(4 * BUCKETS))
        self.told_s = -math.inf


class Ledger:
    """The counts of one process.

    Args:
        clock: monotonic seconds; None: the system's.
        flights: what counts requests under way; None: the extension where it is built, else what does the same in Python.

    Threads: every method from any, greenlets too; a lock is held for a microsecond or so, when rows are written for some 50 µs.  A
    forked child begins with none.
    Cost: `begin` and `end` together 0.4 µs, without the extension 1.5 µs (bench/middleware.py --cost).
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, flights: type[Flights] | None = None) -> None:
        self._clock = clock or perf_counter
        self.flights = (flights or fastest())(self, clock, BATCH, MOST_IN_FLIGHT, DUTY, FASTEST_FILL_BYTES_PER_S, SCALE)
        self.begin, self.end, self.forget = self.flights.begin, self.flights.end, self.flights.forget
        self.clear()

    def clear(self) -> None:
        """Begin anew: of a parent's requests none is this process's."""
        self.read_rss: Callable[[], float | None] | None = None
        """How resident memory is read; None: single requests are not measured."""
        self.threshold_bytes = 0.0
        self._lock = osthread.new_rlock()
        self._routes: dict[str, _Route] = {}
        self.flights.reset()
        self._rotated_s = self._clock()
        self._grown: list[Grown] = []

    @property
    def threshold_bytes(self) -> float:
        """Growth during one request from which on it is told; 0: never."""
        return self.flights.threshold_bytes

    @threshold_bytes.setter
    def threshold_bytes(self, value: float) -> None:
        self.flights.threshold_bytes = value

    def add(self, route: str, took_s: float, *, failed: bool = False) -> None:
        """Something is over whose beginning was not told."""
        self.flights.add(route, took_s, failed)

    # -- what `flights` calls --------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Into their rows with all that are over."""
        with self._lock:
            for route, verb, requests, errors, took in self.flights.take():
                figures = self._row(_whole(route, verb))
                figures.requests += requests
                figures.errors += errors
                for bucket, count in took:
                    figures.recent[bucket] += count

    def _name(self, route: str) -> str:
        """The name of the row that counts *route*: one that every report and every scrape can write."""
        if route in self._routes:
            return route
        if len(route) > LONGEST_NAME:
            route = route[: LONGEST_NAME - 1] + "…"
        if not route.isascii():
            route = route.encode("utf-8", "replace").decode()  # half of a surrogate pair, as undecodable bytes become
        # Two rows are kept free for what has no route of its own.
        full = len(self._routes) >= MOST_ROUTES - 2 and route not in (OTHER, UNMATCHED)
        return OTHER if full and route not in self._routes else route

    def _row(self, route: str) -> _Route:
        name = self._name(route)
        figures = self._routes.get(name)
        if figures is None:
            figures = self._routes[name] = _Route()
        return figures

    def resident(self) -> float | None:
        """Resident memory in bytes."""
        read = self.read_rss
        if read is None:
            return None
        began = self._clock()
        try:
            return read()
        except Exception:
            return None
        finally:
            self.flights.spent_s += self._clock() - began

    def compare(self, before: float, route: str, verb: str | None, took_s: float) -> None:
        """A request that was alone is over; *before*: resident memory when it began."""
        after = self.resident()
        if after is None or after - before < self.threshold_bytes:
            return
        self.write()
        route = _whole(route, verb)
        now = self._clock()
        with self._lock:
            figures = self._row(route)
            if self.flights.in_flight or now - figures.told_s < SAY_AGAIN_S or len(self._grown) >= NOTES_KEPT:
                return
            figures.told_s = now
            self._grown.append(Grown(self._name(route), after - before, took_s))

    # -- what the watcher calls ------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self.flights.in_flight

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever counted here."""
        return not (self._routes or self.flights.waiting or self.flights.in_flight)

    def counts(self) -> array[float]:
        """Requests completed per route, in the order of `names`."""
        self.write()
        with self._lock:
            return array("d", [figures.requests for figures in self._routes.values()])

    def names(self) -> list[str]:
        """The routes, in the order in which each was first completed; none ever leaves."""
        self.write()
        with self._lock:
            return list(self._routes)

    def grown(self) -> list[Grown]:
        """The single requests that grew since this was last asked."""
        if not self._grown:
            return []
        with self._lock:
            found, self._grown = self._grown, []
        return found

    def figures(self, routes: Iterable[str]) -> list[Figures]:
        """What these routes did.

        Cost: about 30 µs a route; the lock is held for one at a time, and for some 50 µs once in five minutes.
        """
        self.write()
        now = self._clock()
        with self._lock:
            if now - self._rotated_s >= RECENT_S:
                self._rotated_s = now
                for figures in self._routes.values():
                    figures.earlier, figures.recent = figures.recent, array("I", bytes(4 * BUCKETS))
        under_way: dict[str, int] = {}
        for what, arguments in self.flights.under_way():
            name = _named(what, arguments)
            if name is not None:
                name = self._name(name)
                under_way[name] = under_way.get(name, 0) + 1
        found = []
        for route in routes:
            with self._lock:
                known = self._routes.get(route)
                if known is None:
                    continue
                requests, errors, total = known.requests, known.errors, list(map(add, known.recent, known.earlier))
            found.append(Figures(route, requests, errors, under_way.get(route, 0), *percentiles(total)))
        return found


def _whole(route: str, verb: str | None) -> str:
    return route if verb is None else f"{method(verb)} {route}"


def _named(what: Any, arguments: tuple[Any, ...]) -> str | None:
    if what is None or isinstance(what, str):
        return what
    try:
        return str(what(*arguments))
    except Exception:
        return None  # not routed yet
