"""Loads under way: a key is loaded once, however many threads or coroutines ask for it.

Law: nobody waits for ever for a load that cannot end: a thread that is asked for what it is loading itself, or that would close a
ring of waiting threads, loads by itself.  What was invalidated while it was loaded is given to those who wait, and not stored.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from memwatch.caches import background
from memwatch.caches.engine import GONE

if TYPE_CHECKING:
    from memwatch.caches.cache import Cache

log = logging.getLogger("memwatch.caches")

_waiting: dict[int, _Flight] = {}
"""The flight that each thread waits for, over all caches."""
_loading: contextvars.ContextVar[tuple[tuple[int, Any], ...]] = contextvars.ContextVar("memwatch_loading", default=())
"""Cache and key of the loads that this task is part of."""


class _Flight:
    """One load by a thread."""

    __slots__ = ("done", "error", "is_spoiled", "key", "owner", "tags", "value")

    def __init__(self, key: Any, tags: frozenset[str]) -> None:
        self.key = key
        self.tags = tags
        self.owner = threading.get_ident()
        self.done = threading.Event()
        self.value: Any = GONE
        self.error: BaseException | None = None
        self.is_spoiled = False


class _AsyncFlight:
    """One load by a task of its own."""

    __slots__ = ("is_spoiled", "key", "tags", "task", "waiters")

    def __init__(self, key: Any, tags: frozenset[str]) -> None:
        self.key = key
        self.tags = tags
        self.is_spoiled = False
        self.waiters = 0
        self.task: asyncio.Task[Any]


class Flights:
    """The loads of one cache."""

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._by_key: dict[Any, _Flight] = {}
        self._by_loop: dict[tuple[int, Any], _AsyncFlight] = {}
        self._loads = self._errors = 0
        self._time_s = 0.0

    def figures(self) -> tuple[int, int, float, int]:
        """Loads, those that raised, their seconds together, and those under way."""
        return self._loads, self._errors, self._time_s, len(self._by_key) + len(self._by_loop)

    # --- threads

    def load(self, key: Any, load: Callable[[], Any], ttl: Any, tags: Iterable[str], timeout_s: float | None = None) -> Any:
        """As `Cache.get_or_set`, of a key that was not there a moment ago."""
        cache = self._cache
        tags = frozenset((tags,) if isinstance(tags, str) else tags)
        stale = cache.stale(key)
        if stale is not GONE:
            refresh = self._begin(key, tags)
            if refresh is not None:
                # The flight belongs to the thread that will load, and nobody can wait for that one from within yet.
                refresh.owner = 0
                background.run(lambda: self._refresh(refresh, load, ttl))
            cache.count_stale_hit()
            return stale
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            flight = self._begin(key, tags)
            if flight is not None:
                # Another may have landed since this thread looked.
                value = cache.peek(key, GONE)
                return self._load(flight, load, ttl) if value is GONE else self._end(flight, value)
            flight = self._by_key.get(key)
            if flight is None:
                value = cache.peek(key, GONE)  # it has just landed
                if value is not GONE:
                    return value
                continue
            if self._would_wait_for_ever(flight):
                return self._timed(load)
            if not self._wait(flight, None if deadline_s is None else deadline_s - time.monotonic()):
                return self._timed(load)
            if flight.error is None:
                return flight.value
            if isinstance(flight.error, Exception):
                raise flight.error
            # The thread that loaded was stopped (KeyboardInterrupt, SystemExit): that is its affair.  Load again.

    def _begin(self, key: Any, tags: frozenset[str]) -> _Flight | None:
        """A new flight, or None if the key has one."""
        with self._lock:
            if key in self._by_key:
                return None
            flight = self._by_key[key] = _Flight(key, tags)
            return flight

    def _load(self, flight: _Flight, load: Callable[[], Any], ttl: Any) -> Any:
        try:
            flight.value = value = self._timed(load)
            # Stored before the flight ends: whoever comes in between finds one of the two.
            self._keep(flight, value, ttl)
            return value
        except BaseException as error:
            flight.error = error
            raise
        finally:
            self._end(flight, flight.value)

    def _end(self, flight: _Flight, value: Any) -> Any:
        flight.value = value
        with self._lock:
            if self._by_key.get(flight.key) is flight:
                del self._by_key[flight.key]
        flight.done.set()
        return value

    def _keep(self, flight: _Flight | _AsyncFlight, value: Any, ttl: Any) -> None:
        if flight.is_spoiled:
            return
        try:
            self._cache.set(flight.key, value, ttl=ttl, tags=flight.tags)
        except ValueError:
            return  # too large: who asked gets it all the same
        if flight.is_spoiled:
            self._cache.discard(flight.key, value)  # invalidated while it was stored

    def _refresh(self, flight: _Flight, load: Callable[[], Any], ttl: Any) -> None:
        flight.owner = threading.get_ident()
        try:
            self._load(flight, load, ttl)
        except Exception:
            # The stale value is served until it is dead; then whoever asks gets the error.
            log.debug("cache %s: could not load anew in the background", self._cache.name, exc_info=True)

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
        me = threading.get_ident()
        _waiting[me] = flight
        try:
            # In slices: a ring may close after this thread has begun to wait, and one of it must see that.
            while not flight.done.is_set():
                slice_s = 0.1 if timeout_s is None else min(0.1, max(0.0, timeout_s))
                if flight.done.wait(slice_s):
                    return True
                if timeout_s is not None:
                    timeout_s -= slice_s
                    if timeout_s <= 0:
                        return False
                if self._would_wait_for_ever(flight):
                    return False
            return True
        finally:
            _waiting.pop(me, None)

    # --- coroutines

    async def aload(self, key: Any, load: Callable[[], Awaitable[Any]], ttl: Any, tags: Iterable[str]) -> Any:
        """As `Cache.aget_or_set`, of a key that was not there a moment ago."""
        cache = self._cache
        tags = frozenset((tags,) if isinstance(tags, str) else tags)
        if (id(self), key) in _loading.get():
            return await load()  # this very load asks for its own key
        stale = cache.stale(key)
        flight = self._async_flight(key, load, ttl, tags)
        if stale is not GONE:
            cache.count_stale_hit()
            return stale
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                flight.task.cancel()

    def _async_flight(self, key: Any, load: Callable[[], Awaitable[Any]], ttl: Any, tags: frozenset[str]) -> _AsyncFlight:
        loop = asyncio.get_running_loop()
        place = (id(loop), key)
        flight = self._by_loop.get(place)
        if flight is not None and not flight.task.done() and flight.task.get_loop() is loop and not flight.task.cancelling():
            return flight
        flight = self._by_loop[place] = _AsyncFlight(key, tags)
        context = contextvars.copy_context()
        context.run(_loading.set, (*_loading.get(), (id(self), key)))
        flight.task = loop.create_task(self._aload(flight, place, load, ttl), context=context)
        flight.task.add_done_callback(_retrieve)
        return flight

    async def _aload(self, flight: _AsyncFlight, place: tuple[int, Any], load: Callable[[], Awaitable[Any]], ttl: Any) -> Any:
        self._loads += 1
        began_s = time.perf_counter()
        try:
            value = await load()
            self._keep(flight, value, ttl)
            return value
        except BaseException:
            self._errors += 1
            raise
        finally:
            self._time_s += time.perf_counter() - began_s
            if self._by_loop.get(place) is flight:
                del self._by_loop[place]

    # --- invalidation

    def spoil(self, key: Any) -> None:
        """What is being loaded for this key is out of date before it has arrived."""
        self._spoil(lambda flight: bool(flight.key == key))

    def spoil_tags(self, tags: frozenset[str]) -> None:
        """As `spoil`, by tag."""
        self._spoil(lambda flight: not flight.tags.isdisjoint(tags))

    def spoil_where(self, matches: Callable[[Any], bool]) -> None:
        """As `spoil`, by a test of the key."""
        self._spoil(lambda flight: matches(flight.key))

    def spoil_all(self) -> None:
        """As `spoil`, all."""
        self._spoil(lambda flight: True)

    def _spoil(self, concerns: Callable[[Any], bool]) -> None:
        # Who asks from now on must not get what was loaded before: the flight goes on without being known.
        for key, flight in list(self._by_key.items()):
            if concerns(flight):
                flight.is_spoiled = True
                self._by_key.pop(key, None)
        for place, other in list(self._by_loop.items()):
            if concerns(other):
                other.is_spoiled = True
                self._by_loop.pop(place, None)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """An error that nobody waited for (a refresh in the background) is no news: the next who asks gets it."""
    if not task.cancelled():
        task.exception()
