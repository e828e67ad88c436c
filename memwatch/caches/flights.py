"""Loads under way: a key is loaded once, however many threads or coroutines ask for it.

Law: nobody waits for ever for a load that cannot end: who is asked for what it is loading itself, or would close a ring of loads
    that wait for each other, loads by itself.  What was invalidated while it was loaded is given to those who wait, and not stored.
    No lock: a flight begins and ends by one step of a dictionary.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from memwatch.caches import background
from memwatch.caches.engine import GONE, TooLargeError

if TYPE_CHECKING:
    from memwatch.caches.cache import Cache

SLICE_S = 0.1
"""A waiting thread looks so often whether a ring has closed."""

_waiting: dict[int, _Flight] = {}
"""The flight that each thread waits for, over all caches."""
_loading: contextvars.ContextVar[tuple[_AsyncFlight, ...]] = contextvars.ContextVar("memwatch_loading", default=())
"""The loads that this task is part of, the outermost first.  A task that a load has started keeps them when they have ended."""


class _Flight:
    """One load by a thread."""

    __slots__ = ("done", "error", "is_spoiled", "owner", "tags", "value")

    def __init__(self, tags: frozenset[str]) -> None:
        self.tags = tags
        self.owner = threading.get_ident()
        self.done = threading.Event()
        self.value: Any = GONE
        self.error: BaseException | None = None
        self.is_spoiled = False


class _AsyncFlight:
    """One load by a task of its own."""

    __slots__ = ("is_spoiled", "key", "loads", "tags", "task", "waiters", "waits_for")

    def __init__(self, loads: Flights, key: Any, tags: frozenset[str]) -> None:
        self.loads = loads
        self.key = key
        self.tags = tags
        self.is_spoiled = False
        self.waiters = 0
        self.waits_for: list[_AsyncFlight] = []
        self.task: asyncio.Task[Any]

    def reaches(self, others: Iterable[_AsyncFlight]) -> bool:
        """Whether it waits, directly or through others, for one of these."""
        wanted, seen, left = set(map(id, others)), set(), [self]
        while left:
            flight = left.pop()
            if id(flight) in wanted:
                return True
            if id(flight) not in seen:
                seen.add(id(flight))
                left += flight.waits_for
        return False


class Flights:
    """The loads of one cache."""

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache
        self._by_key: dict[Any, _Flight] = {}
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, _AsyncFlight]] = weakref.WeakKeyDictionary()
        self._refreshing: dict[Any, None] = {}
        """Keys that wait for a thread to refresh them."""
        self._loads = self._errors = 0
        self._time_s = 0.0

    def figures(self) -> tuple[int, int, float, int]:
        """Loads, those that raised, their seconds together, and those under way."""
        under_way = len(self._by_key) + sum(map(len, list(self._by_loop.values()))) + len(self._refreshing)
        return self._loads, self._errors, self._time_s, under_way

    # --- threads

    def load(self, key: Any, load: Callable[[], Any], ttl: Any, tags: Iterable[str], timeout_s: float | None = None) -> Any:
        """As `Cache.get_or_set`, of a key that was not there a moment ago."""
        cache = self._cache
        tags = frozenset((tags,) if isinstance(tags, str) else tags)
        stale = cache.stale(key)
        if stale is not GONE:
            cache.count_stale_hit()
            if key not in self._by_key and self._refreshing.setdefault(key, None) is None:
                self._refresh_soon(key, load, ttl, tags)
            return stale
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            other, value = self._try(key, load, ttl, tags)
            if other is None:
                return value
            if self._would_wait_for_ever(other):
                return self._timed(load)
            if not self._wait(other, None if deadline_s is None else deadline_s - time.monotonic()):
                return self._timed(load)
            if other.error is None:
                return other.value
            if isinstance(other.error, Exception):
                raise other.error
            # The thread that loaded was stopped (KeyboardInterrupt, SystemExit): that is its affair.  Load again.

    def _try(self, key: Any, load: Callable[[], Any], ttl: Any, tags: frozenset[str]) -> tuple[_Flight | None, Any]:
        """Load, if nobody does; else the flight of who does."""
        flight: Any = _Flight(tags)
        other: Any = None
        try:
            other = self._by_key.setdefault(key, flight)
            if other is not flight:
                return other, None
            value = self._cache.peek(key, GONE)
            if value is GONE:  # else another has landed since this thread looked
                value = self._timed(load)
                # Stored before the flight ends: whoever comes in between finds one of the two.
                self._keep(flight, key, value, ttl)
            flight.value = value
            return None, value
        except BaseException as error:
            flight.error = error
            raise
        finally:
            self._end(key, flight)
            flight = other = None  # or the error's traceback, this frame and the flight hold each other

    def _end(self, key: Any, flight: _Flight) -> None:
        try:
            if self._by_key.get(key) is flight:
                self._by_key.pop(key, None)
        finally:
            flight.done.set()

    def _refresh_soon(self, key: Any, load: Callable[[], Any], ttl: Any, tags: frozenset[str]) -> None:
        def refresh() -> None:
            try:
                # A flight from here on, not before: whoever needs the value meanwhile loads it, and waits for no queue.
                if self._cache.peek(key, GONE) is GONE:
                    self._try(key, load, ttl, tags)
            finally:
                self._refreshing.pop(key, None)

        try:
            background.run(refresh)
        except BaseException:
            self._refreshing.pop(key, None)
            raise

    def _keep(self, flight: _Flight | _AsyncFlight, key: Any, value: Any, ttl: Any) -> None:
        if flight.is_spoiled:
            return
        try:
            self._cache.keep_loaded(key, value, ttl, tuple(flight.tags))
        except TooLargeError:
            return  # who asked gets it all the same
        if flight.is_spoiled:
            self._cache.discard(key, value)  # invalidated while it was stored

    def _timed(self, load: Callable[[], Any]) -> Any:
        self._loads += 1
        began_s = time.perf_counter()
        try:
            return load()
        except BaseException:
            self._errors += 1
            raise
        finally:
            self._time_s += time.perf_counter() - began_s

    def _would_wait_for_ever(self, flight: _Flight) -> bool:
        """Whether the thread that loads is this one, or waits, through others, for this one."""
        me = threading.get_ident()
        for _ in range(len(_waiting) + 1):
            if flight.owner == me:
                return True
            further = _waiting.get(flight.owner)
            if further is None or further.done.is_set():
                return False
            flight = further
        return False

    def _wait(self, flight: _Flight, timeout_s: float | None) -> bool:
        """Whether it ended in time, and without a ring."""
        me = threading.get_ident()
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        _waiting[me] = flight
        try:
            while not flight.done.is_set():
                left_s = SLICE_S if until_s is None else min(SLICE_S, until_s - time.monotonic())
                if left_s <= 0:
                    return False
                # A ring may have closed after this thread began to wait, and one of it must see that.
                if not flight.done.wait(left_s) and self._would_wait_for_ever(flight):
                    return False
            return True
        finally:
            _waiting.pop(me, None)

    # --- coroutines

    async def aload(self, key: Any, load: Callable[[], Awaitable[Any]], ttl: Any, tags: Iterable[str]) -> Any:
        """As `Cache.aget_or_set`, of a key that was not there a moment ago."""
        cache = self._cache
        tags = frozenset((tags,) if isinstance(tags, str) else tags)
        under_way = [flight for flight in _loading.get() if not flight.task.done()]
        if any(flight.loads is self and flight.key == key for flight in under_way):
            return await load()  # this very load asks for its own key
        stale = cache.stale(key)
        flight = self._flight(key, load, ttl, tags)
        if stale is not GONE:
            cache.count_stale_hit()
            return stale
        if under_way and flight.reaches(under_way):
            return await load()
        flight.waiters += 1
        if under_way:
            under_way[-1].waits_for.append(flight)
        try:
            return await asyncio.shield(flight.task)
        finally:
            if under_way:
                under_way[-1].waits_for.remove(flight)
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                flight.task.cancel()

    def _flight(self, key: Any, load: Callable[[], Awaitable[Any]], ttl: Any, tags: frozenset[str]) -> _AsyncFlight:
        loop = asyncio.get_running_loop()
        known = self._by_loop.setdefault(loop, {})
        flight = known.get(key)
        if flight is not None and not flight.task.done() and not flight.task.cancelling():
            return flight
        flight = known[key] = _AsyncFlight(self, key, tags)
        context = contextvars.copy_context()
        context.run(_loading.set, (*(one for one in _loading.get() if not one.task.done()), flight))
        flight.task = loop.create_task(self._aload(flight, known, load, ttl), context=context)
        flight.task.add_done_callback(_retrieve)
        return flight

    async def _aload(
        self, flight: _AsyncFlight, known: dict[Any, _AsyncFlight], load: Callable[[], Awaitable[Any]], ttl: Any
    ) -> Any:
        self._loads += 1
        began_s = time.perf_counter()
        try:
            value = await load()
            self._keep(flight, flight.key, value, ttl)
            return value
        except BaseException:
            self._errors += 1
            raise
        finally:
            self._time_s += time.perf_counter() - began_s
            if known.get(flight.key) is flight:
                del known[flight.key]

    # --- invalidation

    def spoil(self, key: Any) -> None:
        """What is being loaded for this key is out of date before it has arrived."""
        # Who asks from now on must not get what was loaded before: the flight goes on without being known.
        for known in self._known():
            flight = known.pop(key, None)
            if flight is not None:
                flight.is_spoiled = True

    def spoil_tags(self, tags: frozenset[str]) -> None:
        """As `spoil`, by tag."""
        self._spoil(lambda key, flight: not flight.tags.isdisjoint(tags))

    def spoil_where(self, matches: Callable[[Any], bool]) -> None:
        """As `spoil`, by a test of the key."""
        self._spoil(lambda key, flight: matches(key))

    def spoil_all(self) -> None:
        """As `spoil`, all."""
        self._spoil(lambda key, flight: True)

    def _spoil(self, concerns: Callable[[Any, Any], bool]) -> None:
        for known in self._known():
            for key, flight in list(known.items()):
                if concerns(key, flight):
                    flight.is_spoiled = True
                    known.pop(key, None)

    def _known(self) -> list[dict[Any, Any]]:
        return [self._by_key, *self._by_loop.values()]


def _retrieve(task: asyncio.Task[Any]) -> None:
    """An error that nobody waited for (a refresh in the background) is no news: the next who asks gets it."""
    if not task.cancelled():
        task.exception()
