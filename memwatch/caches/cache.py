"""What a cache offers beyond a mapping: arguments, tags, many at once, loading, bounds that move, statistics, copies."""

from __future__ import annotations

import math
import time
from _thread import RLock
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal

from memwatch.caches import registry
from memwatch.caches.causes import Lifetime, RemovalCause
from memwatch.caches.engine import BATCH, BYTES, DEFAULT, GONE, INVALIDATED, PRESSURE, SIZE, Engine, Entry, Hook, K, V, seconds_of
from memwatch.caches.sizer import ENTRY_BYTES
from memwatch.caches.sizer import sizeof as sizer
from memwatch.caches.statistics import CacheStatistics

FLOOR = 0.05
"""The part of its bounds that pressure leaves to a cache that held little."""
Cascade = Callable[[str], Iterable[str]] | Mapping[str, Iterable[str]]


class Cache(Engine[K, V]):
    """A thread-safe cache; use `LRUCache`, `TTLCache` or `TLRUCache`.

    Args:
        maxsize: entries, or the sum of *getsizeof*; None for no such bound, which needs *max_bytes*.
        getsizeof: weight of a value.  One that weighs more than *maxsize* raises ValueError.
        max_bytes: accounted bytes of keys, values and the cache's own, as a number or such as `"64MB"`.
        ttl: how long a value is fresh, in the timer's unit; or a function of the value.  None for ever.
        ttu: as TLRUCache takes it: `ttu(key, value, now)` returns when the value expires.
        stale_ttl: for how much longer `get_or_set` may answer with it while it is loaded anew.
        jitter: up to this part of each *ttl* is taken off, at random, so that not all expire at once.
        policy: `"lru"`, exact; or `"clock"`, whose reads take no lock and move nothing.
        sizeof: bytes of a value, instead of `memwatch.caches.sizer.sizeof`.
        oversize: what happens to a value larger than *max_bytes*: `"skip"` (it is rejected, with a hook) or `"raise"` a ValueError.
        on_remove: called with key, value and cause once per value that has left, after it has, without a lock held.  Others may
            still hold the value.  An exception is counted and logged.
        tier: a named lifetime; the *ttl*, if that is not given, and the order in which caches shrink under pressure.
        cascade: which other tags an invalidated tag invalidates, as a mapping or a function.
        name: what statistics call it [where it was made].
        timer: the clock; must not go backwards.

    Raises:
        ValueError, TypeError: an argument that cannot be; the message names it.
    """

    __slots__ = ("__dict__", "__weakref__", "_cascade", "_held_at", "_stale_hits", "_tier", "_timer", "_whole")

    def __init__(
        self,
        maxsize: float | None = 1000,
        getsizeof: Callable[[V], float] | None = None,
        *,
        max_bytes: int | str | None = None,
        ttl: Any = None,
        ttu: Callable[[K, V, Any], Any] | None = None,
        stale_ttl: Any = None,
        jitter: float = 0.0,
        policy: Literal["lru", "clock"] = "lru",
        sizeof: Callable[[V], int] | None = None,
        oversize: Literal["skip", "raise"] = "skip",
        on_remove: Hook | None = None,
        tier: Lifetime | str | None = None,
        cascade: Cascade | None = None,
        name: str | None = None,
        timer: Callable[[], Any] = time.monotonic,
    ) -> None:
        checked = _checked(maxsize, max_bytes, ttl, stale_ttl, jitter, policy, oversize, tier)
        self._maxsize, self._max_bytes, self._ttl, self._stale_ttl, self._tier = checked
        if getsizeof is not None:
            self.getsizeof = getsizeof  # type: ignore[assignment]  # as cachetools: the attribute hides the static method
        self._ttu = ttu
        self._jitter = float(jitter)
        self._sizeof = sizer if sizeof is None and self._max_bytes is not None else sizeof
        self._oversize = oversize
        self._hooks: tuple[Hook, ...] = () if on_remove is None else (on_remove,)
        self._cascade = cascade
        self._timer = self._now = timer
        self._begin_room()
        self.name = name or registry.place_of_caller()
        self._weigh = None if self.getsizeof is Cache.getsizeof else self.getsizeof
        self._begin(clock=policy == "clock")
        registry.add(self)

    def _begin_room(self) -> None:
        self._stale_hits = 0
        self._whole: tuple[int, Any] | None = None
        """Bytes and weight held when pressure began; None while there is none."""
        self._held_at: list[Any] = []
        """Times at which `with cache.timer` holds the clock, by now."""

    def get(self, key: K, default: Any = None) -> Any:
        """The value, or *default*.  Counts and promotes."""
        value = self._find(key)
        return default if value is GONE else value

    def peek(self, key: K, default: Any = None) -> Any:
        """The value, or *default*.  Neither counts nor promotes."""
        entry = self._entries.get(key)
        if entry is None:
            return default
        value = entry.value
        return value if self._is_fresh(entry) else default

    def __contains__(self, key: object) -> bool:
        entry = self._entries.get(key)
        return entry is not None and self._is_fresh(entry)

    def _is_fresh(self, entry: Entry) -> bool:
        return entry.expires is None or bool(self._now() < entry.expires)

    def __len__(self) -> int:
        self.expire()
        if self._stale_ttl is None:
            return len(self._entries)
        return sum(1 for _ in self)

    def _snapshot(self) -> list[tuple[Any, Entry]]:
        with self._lock:
            return list(self._entries.items())

    def __iter__(self) -> Iterator[K]:
        """Keys of a moment, least recently used first; those that have left or expired meanwhile are passed over."""
        for key, _ in self._snapshot():
            if key in self:
                yield key

    def items(self) -> Any:
        """Pairs of a moment; iterating neither counts nor promotes."""
        return _Items(self)

    def values(self) -> Any:
        """Values of a moment; iterating neither counts nor promotes."""
        return _Values(self)

    def __repr__(self) -> str:
        bounds = f"maxsize={self._maxsize!r}" + ("" if self._max_bytes is None else f", max_bytes={self._max_bytes!r}")
        return f"{type(self).__name__}({bounds}, currsize={self._total()!r}, name={self.name!r})"

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value if there is one; else *default*, which is stored."""
        value = self._find(key)
        if value is GONE:
            self[key] = value = default
        return value

    def set(
        self,
        key: K,
        value: V,
        *,
        ttl: Any = DEFAULT,
        tags: Iterable[str] = (),
        size: int | None = None,
        tier: Lifetime | str | None = None,
    ) -> bool:
        """Store a value.

        Args:
            ttl: instead of the cache's; a number, a function of the value, or None for ever.
            tags: what `invalidate(tag=…)` finds it by.
            size: bytes of the value, instead of measuring it.
            tier: its lifetime, instead of the cache's.

        Returns:
            Whether it was stored: not if it is too large for *max_bytes*, or expired already.

        Raises:
            ValueError: it weighs more than *maxsize*, or is larger than *max_bytes* and `oversize="raise"`.
        """
        if self._flights is not None:
            self._flights.spoil(key)  # what is being loaded is out of date
        lifetime = lifetime_of(tier)
        if lifetime is not None and ttl is DEFAULT:
            ttl = lifetime.ttl_s
        return self._store(key, value, ttl, (tags,) if isinstance(tags, str) else tuple(tags), size, lifetime)

    # --- tags and patterns

    def invalidate(self, *, tag: str | Iterable[str] | None = None, prefix: str | None = None, pattern: str | None = None) -> int:
        """Remove by tag, by the beginning of the key, or by a shell pattern of it; returns how many left.

        Cost: by tag O(entries removed); by prefix or pattern O(entries).  Only text keys have a beginning.

        A value that is being loaded meanwhile is given to those who wait for it, but not stored.
        """
        if (tag is not None) + (prefix is not None) + (pattern is not None) != 1:
            raise TypeError("invalidate() takes exactly one of tag=, prefix= and pattern=")
        if tag is not None:
            tags = self.with_cascades([tag] if isinstance(tag, str) else tag)
            if self._flights is not None:
                self._flights.spoil_tags(tags)
            with self._lock:
                keys = {key for name in tags for key in self._tags.get(name, ())}
        else:

            def matches(key: Any) -> bool:
                if not isinstance(key, str):
                    return False
                return key.startswith(prefix) if prefix is not None else fnmatchcase(key, str(pattern))

            if self._flights is not None:
                self._flights.spoil_where(matches)
            keys = {key for key, _ in self._snapshot() if matches(key)}
        return sum(self._take(key, INVALIDATED) is not None for key in keys)

    def with_cascades(self, tags: Iterable[str]) -> frozenset[str]:
        """These tags and all that their invalidation invalidates."""
        found: dict[str, None] = {}
        waiting = list(tags)
        while waiting:
            tag = waiting.pop()
            if tag in found:
                continue
            found[tag] = None
            if self._cascade is not None:
                more = self._cascade(tag) if callable(self._cascade) else self._cascade.get(tag, ())
                waiting += [more] if isinstance(more, str) else more
        return frozenset(found)

    # --- many at once

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values that are there, by key."""
        found = {key: self._find(key) for key in keys}
        return {key: value for key, value in found.items() if value is not GONE}

    def set_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]], *, ttl: Any = DEFAULT, tags: Iterable[str] = ()) -> int:
        """Store all; returns how many were stored."""
        pairs = items.items() if isinstance(items, Mapping) else items
        tags = (tags,) if isinstance(tags, str) else tuple(tags)
        return sum(self.set(key, value, ttl=ttl, tags=tags) for key, value in pairs)

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove all that are there; returns how many were."""
        missing = object()
        return sum(self.pop(key, missing) is not missing for key in keys)

    def warm(self, items: Mapping[K, V] | Callable[[K], V], keys: Iterable[K] = (), *, tags: Iterable[str] = ()) -> int:
        """Fill from a mapping, or from a function of each of *keys* that is not there yet; returns how many were stored.

        Stops at the bound rather than evict what it has just filled in.
        """
        stored = 0
        wanted: Iterable[Any] = items if isinstance(items, Mapping) else keys
        for key in wanted:
            if key in self:
                continue
            if self._total() >= self._room_weight or self._bytes >= self._room_bytes:
                break
            stored += self.set(key, items[key] if isinstance(items, Mapping) else items(key), tags=tags)
        return stored

    # --- loading

    def get_or_set(
        self,
        key: K,
        load: Callable[[], V],
        *,
        ttl: Any = DEFAULT,
        tags: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> V:
        """The value; else what *load* returns, which is stored.  However many threads ask, it is loaded once.

        Args:
            ttl, tags: as for `set`.
            timeout_s: how long to wait for another thread's load; then this one loads by itself.

        An exception of *load* is raised in all that wait for it, and nothing is stored.  A value that is stale within *stale_ttl*
        is returned at once and loaded anew in the background, once.
        """
        value = self._find(key)
        return self.flights.load(key, load, ttl, tags, timeout_s) if value is GONE else value  # type: ignore[no-any-return]

    async def aget_or_set(self, key: K, load: Callable[[], Any], *, ttl: Any = DEFAULT, tags: Iterable[str] = ()) -> V:
        """As `get_or_set`, with a coroutine function *load*, run once per event loop.

        A caller that is cancelled leaves; the load goes on for the others, and is cancelled when the last has left.
        """
        value = self._find(key)
        return await self.flights.aload(key, load, ttl, tags) if value is GONE else value  # type: ignore[no-any-return]

    @property
    def flights(self) -> Any:
        """The loads under way."""
        flights = self._flights
        if flights is None:
            from memwatch.caches.flights import Flights

            with self._lock:
                flights = self._flights = self._flights or Flights(self)
        return flights

    def count_stale_hit(self) -> None:
        """A stale value was served."""
        self._stale_hits += 1

    def keep_loaded(self, key: K, value: V, ttl: Any, tags: tuple[str, ...]) -> bool:
        """Store what a load brought: as `set`, but it makes no other load out of date."""
        return self._store(key, value, ttl, tags)

    def discard(self, key: K, value: V) -> None:
        """Remove a key if it has this very value."""
        self._locked(self._discard, key, value)

    def _discard(self, key: K, value: V) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            self._drop(key, entry, INVALIDATED)

    def stale(self, key: K) -> Any:
        """A value that has expired and may still be served; GONE if there is none."""
        entry = self._entries.get(key)
        if entry is None or entry.expires is None or self._stale_ttl is None:
            return GONE
        value, now = entry.value, self._now()
        return value if not now < entry.expires and now < entry.dead else GONE

    # --- bounds

    @staticmethod
    def getsizeof(value: Any) -> float:
        """Weight of a value: 1."""
        return 1

    @property
    def maxsize(self) -> Any:
        """Entries, or weight, that the cache may hold."""
        return self._maxsize

    @property
    def max_bytes(self) -> int | None:
        """Accounted bytes that the cache may hold."""
        return self._max_bytes

    @property
    def currsize(self) -> Any:
        """Entries, or weight, that it holds; the expired are removed first."""
        self.expire()
        return self._total()

    @property
    def bytes(self) -> int:
        """Accounted bytes that it holds; 0 in a cache that does not account (neither *max_bytes* nor *sizeof*)."""
        return self._bytes

    @property
    def entries(self) -> int:
        """How many it holds, with those that have expired and were not yet removed."""
        return len(self._entries)

    @property
    def ttl(self) -> Any:
        """How long a value is fresh."""
        return self._ttl

    @property
    def ttu(self) -> Any:
        """The function that says when a value expires."""
        return self._ttu

    @property
    def tier(self) -> Lifetime | None:
        """The lifetime it was given."""
        return self._tier

    @property
    def timer(self) -> Any:
        """The clock; as a context manager it stands still."""
        return _Timer(self)

    def on_remove(self, hook: Hook) -> Hook:
        """Add a hook; returns it, so that it serves as a decorator."""
        if not callable(hook):
            raise TypeError(f"on_remove: {type(hook).__name__} is not callable")
        self._hooks = (*self._hooks, hook)
        return hook

    def resize(self, maxsize: float | None = None, *, max_bytes: int | str | None = None) -> None:
        """Set new bounds; what is too much is evicted."""
        wanted = (self._maxsize if maxsize is None else maxsize, self._max_bytes if max_bytes is None else max_bytes)
        checked = _checked(*wanted, None, None, 0.0, "lru", "skip", None)
        if checked[1] is not None and self._sizeof is None:
            self._account()
        room_weight, room_bytes = checked[0], math.inf if checked[1] is None else checked[1]
        cause = SIZE if maxsize is not None else BYTES

        def is_much() -> bool:
            return bool(self._total() > room_weight or self._bytes > room_bytes)

        self._shrink_while(is_much, cause)  # first: it is never larger than its bounds
        # One statement: an exception comes before it or after it.
        self._maxsize, self._max_bytes, self._room_weight, self._room_bytes = *checked[:2], room_weight, room_bytes
        self._whole = None
        self._shrink_while(is_much, cause)  # what other threads stored meanwhile

    def _account(self) -> None:
        """Begin to count bytes in a cache that did not."""
        sizes = {id(entry): self._measure(key, sizer(entry.value)) for key, entry in self._snapshot()}

        def begin() -> None:
            for entry in self._entries.values():
                entry.size = sizes.get(id(entry), ENTRY_BYTES)
            self._sizeof = sizer
            self._bytes = sum(entry.size for entry in self._entries.values())

        self._locked(begin)

    def resize_entry(self, key: K) -> None:
        """Measure a value again that has been changed since it was stored.  Does nothing for a key that is not there."""
        entry = self._entries.get(key)
        if entry is None or self._sizeof is None:
            return
        size = self._measure(key, self._sizeof(entry.value))

        def change() -> None:
            if entry.cause is None:
                self._bytes += size - entry.size
                entry.size = size

        self._locked(change)
        self._shrink_while(lambda: self._bytes > self._room_bytes, BYTES)

    def shrink(
        self,
        *,
        bytes: float | None = None,
        fraction: float | None = None,
        cause: RemovalCause = PRESSURE,
        permanent: bool = True,
    ) -> int:
        """Give some back, what was used least recently first; returns the accounted bytes that left.

        Args:
            bytes: at least as many accounted bytes.  A cache that does not account estimates what an entry holds.
            fraction: at least this part of the bytes, or of the entries where it does not account.
            cause: what hooks and statistics are told.
            permanent: whether entries of the lifetime PERMANENT may go.

        Cost: about 1 µs an entry; the lock is held for at most 1,024 of them at a time.
        """
        if (bytes is None) == (fraction is None):
            raise TypeError("shrink() takes exactly one of bytes= and fraction=")
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"fraction: {fraction!r} is not between 0 and 1")
        held, total = self.held_bytes(), self._total()
        if fraction is None:
            fraction = min(1.0, float(bytes or 0) / held) if held else 0.0
        if self._sizeof is not None:
            self._shrink_while(lambda: self._bytes > held * (1 - fraction), cause, permanent)
            return held - self._bytes
        self._shrink_while(lambda: self._total() > total * (1 - fraction), cause, permanent)
        return round(held * (1 - self._total() / total)) if total else 0

    def _shrink_while(self, is_much: Callable[[], bool], cause: RemovalCause, permanent: bool = True) -> None:
        self.expire()
        spared = [0]  # permanent entries passed over, now at the young end
        while self._locked(self._shrink_some, is_much, cause, permanent, spared):
            pass

    def _shrink_some(self, is_much: Callable[[], bool], cause: RemovalCause, permanent: bool, spared: list[int]) -> bool:
        """Whether there may be more to do.  Under the lock, which others want: a batch at a time."""
        entries = self._entries
        for _ in range(BATCH):
            if spared[0] >= len(entries) or not is_much():
                return False
            key = next(iter(entries))
            extra = entries[key].extra
            if not permanent and extra is not None and extra[1] is Lifetime.PERMANENT:
                entries.move_to_end(key)
                spared[0] += 1
            else:
                self._unlink(entries.pop(key), cause)
        return True

    def give_back(self, part: float, *, permanent: bool = True) -> int:
        """Shrink to *part* of what it held when pressure began, and stay there until `raise_room`; returns the bytes that left.

        What is left to a cache that held little is a twentieth of its bounds: pressure is no reason to refuse the first few
        entries.
        """
        held, total = self.held_bytes(), self._total()
        with self._lock:
            if self._whole is None:
                self._whole = held, total
            whole_bytes, whole_total = self._whole
            if self._sizeof is not None:
                floor = FLOOR * self._max_bytes if self._max_bytes is not None else 0.0
                self._room_bytes = min(self._bytes_bound(), max(part * whole_bytes, floor))
            else:
                floor = FLOOR * self._maxsize if math.isfinite(self._maxsize) else 64
                self._room_weight = min(self._maxsize, max(math.floor(part * whole_total), math.ceil(floor), 1))
        if self._sizeof is not None:
            self._shrink_while(lambda: self._bytes > self._room_bytes, PRESSURE, permanent)
            return held - self._bytes
        self._shrink_while(lambda: self._total() > self._room_weight, PRESSURE, permanent)
        return round(held * (1 - self._total() / total)) if total else 0

    def raise_room(self, step: float) -> bool:
        """Let in *step* of the bounds more; whether the bounds are whole again."""
        if self._whole is None:
            return True
        with self._lock:
            if self._room_bytes < self._bytes_bound():
                whole = self._max_bytes if self._max_bytes is not None else max(self._bytes, 1) * 4
                self._room_bytes += whole * step
                if self._room_bytes >= whole:
                    self._room_bytes = self._bytes_bound()
            if self._room_weight < self._maxsize:
                whole = self._maxsize if math.isfinite(self._maxsize) else max(self._total(), 1) * 4
                self._room_weight += max(1, math.ceil(whole * step))
                if self._room_weight >= whole:
                    self._room_weight = self._maxsize
            if self._room_bytes >= self._bytes_bound() and self._room_weight >= self._maxsize:
                self._whole = None
            return self._whole is None

    def lift(self) -> None:
        """Have all of its bounds back at once: nobody watches any more."""
        with self._lock:
            self._whole = None
            self._room_weight, self._room_bytes = self._maxsize, self._bytes_bound()

    def _bytes_bound(self) -> float:
        return math.inf if self._max_bytes is None else float(self._max_bytes)

    @property
    def room(self) -> float:
        """The part of its bounds that it may use now; less than 1 after pressure."""
        parts = [1.0]
        if math.isfinite(self._room_weight):
            parts.append(self._room_weight / self._maxsize if self._maxsize and math.isfinite(self._maxsize) else 0.0)
        if math.isfinite(self._room_bytes):
            parts.append(self._room_bytes / self._max_bytes if self._max_bytes else 0.0)
        return min(parts)

    # --- what it did

    def stats(self, *, estimate: bool = True) -> CacheStatistics:
        """What it holds and did so far.

        Args:
            estimate: whether a cache that does not account estimates its bytes, from some 32 of its entries: about 100 µs.
        """
        entries, weight, known = len(self._entries), self._total(), self._sizeof is not None
        counts = self._counts | {SIZE: self._counts[SIZE] + self._evicted}
        loads = self._flights.figures() if self._flights is not None else (0, 0, 0.0, 0)
        return CacheStatistics(
            name=self.name,
            kind=type(self).__name__,
            entries=entries,
            weight=weight,
            maxsize=self._maxsize if math.isfinite(self._maxsize) else None,
            bytes=self.held_bytes() if known or estimate else None,
            is_estimated=not known,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            stale_hits=self._stale_hits,
            loads=loads[0],
            load_errors=loads[1],
            load_time_s=loads[2],
            loading=loads[3],
            removals={cause.value: count for cause, count in counts.items() if count},
            hook_errors=self._hook_errors,
            room=self.room,
        )

    def held_bytes(self) -> int:
        """Accounted bytes; a cache that does not account estimates them from some 32 of its entries."""
        if self._sizeof is not None:
            return self._bytes
        with self._lock:
            count = len(self._entries)
            # The whole of a small cache is walked for a sample from all ages; of a large one, the oldest are.
            step = max(1, min(count, 65536) // 32)
            sampled = [(key, entry.value) for key, entry in islice(self._entries.items(), 0, 65536, step)]
        if not sampled:
            return 0
        total = sum(self._measure(key, sizer(value)) for key, value in sampled)
        return round(total / len(sampled) * count)

    # --- copies

    def __getstate__(self) -> dict[str, Any]:
        now = self._now()
        entries = [
            (
                entry.key, entry.value, getattr(entry, "weight", 1), getattr(entry, "size", 0),
                None if entry.expires is None else entry.expires - now, entry.extra,
            )
            for _, entry in self._snapshot()
        ]  # fmt: skip
        config = {name: getattr(self, name) for name in _CONFIGURATION} | {"clock": self._touch is None}
        return {"config": config, "attributes": dict(getattr(self, "__dict__", {})), "entries": entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks and statistics are not carried over; what is left of each time to live is."""
        if state["attributes"]:
            self.__dict__.update(state["attributes"])
        config = dict(state["config"])
        clock = config.pop("clock")
        for name, value in config.items():
            setattr(self, name, value)
        self._now = self._timer
        self._hooks = ()
        self._begin_room()
        self._weigh = None if self.getsizeof is Cache.getsizeof else self.getsizeof
        self._begin(clock=clock)
        now = self._now()
        for key, value, weight, size, left, extra in state["entries"]:
            entry = Entry()
            entry.key, entry.value, entry.weight, entry.size, entry.extra = key, value, weight, size, extra
            entry.cause, entry.hot, entry.expires = None, False, None
            if left is not None:
                entry.expires = now + left
                entry.dead = entry.expires if self._stale_ttl is None else entry.expires + self._stale_ttl
            self._entries[key] = entry
        self._repair()
        registry.add(self)

    def __copy__(self) -> Any:
        copied = type(self).__new__(type(self))
        copied.__setstate__(self.__getstate__())
        return copied

    def after_fork_in_child(self) -> None:
        """The threads that may have held the lock, and those that were loading, do not exist here."""
        self._lock = RLock()
        self._flights = None
        self._repair()
        self.lift()  # a watcher of this process would begin anew


_CONFIGURATION = (
    "_maxsize", "_max_bytes", "_ttl", "_ttu", "_stale_ttl", "_jitter", "_sizeof", "_oversize", "_tier", "_cascade",
    "_timer", "name",
)  # fmt: skip


class _Items:
    """Pairs of a moment."""

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for key, entry in self._cache._snapshot():
            value = entry.value
            if entry.cause is None and self._cache._is_fresh(entry):
                yield key, value

    def __len__(self) -> int:
        return len(self._cache)

    def __contains__(self, pair: object) -> bool:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        value = self._cache.peek(pair[0], GONE)
        return value is not GONE and bool(value is pair[1] or value == pair[1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._cache!r})"


class _Values(_Items):
    """Values of a moment."""

    def __iter__(self) -> Iterator[Any]:
        for _, value in super().__iter__():
            yield value

    def __contains__(self, wanted: object) -> bool:
        return any(value is wanted or value == wanted for value in self)


class _Timer:
    """A cache's clock, as cachetools shows it: `with cache.timer as now:` holds it, for all threads, until the last has let go."""

    __slots__ = ("_cache",)

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache

    def __call__(self) -> Any:
        return self._cache._now()

    def __enter__(self) -> Any:
        cache = self._cache
        with cache._lock:
            now = cache._now()
            cache._held_at.append(now)
            cache._now = lambda: now
        return now

    def __exit__(self, *exc: object) -> None:
        cache = self._cache
        with cache._lock:
            cache._held_at.pop()
            if not cache._held_at:
                cache._now = cache._timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache._timer, name)


def lifetime_of(tier: Lifetime | str | None) -> Lifetime | None:
    """A lifetime from itself or its name."""
    if tier is None or isinstance(tier, Lifetime):
        return tier
    try:
        return Lifetime[tier.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"tier: {tier!r} is none of {', '.join(item.name for item in Lifetime)}") from None


def _checked(
    maxsize: Any, max_bytes: Any, ttl: Any, stale_ttl: Any, jitter: Any, policy: str, oversize: str, tier: Any
) -> tuple[Any, int | None, Any, Any, Lifetime | None]:
    from memwatch.units import parse_size

    if isinstance(max_bytes, str):
        try:
            max_bytes = parse_size(max_bytes)
        except ValueError as error:
            raise ValueError(f"max_bytes: {error}") from None
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int | float) or max_bytes <= 0):
        raise ValueError(f"max_bytes: {max_bytes!r} is not a number of bytes above 0, nor such as '64MB'")
    if maxsize is None:
        if max_bytes is None:
            raise ValueError("maxsize=None needs max_bytes=: a cache without a bound is a leak")
        maxsize = math.inf
    if isinstance(maxsize, bool) or not isinstance(maxsize, int | float) or not maxsize >= 0:
        raise ValueError(f"maxsize: {maxsize!r} is not a number of at least 0")
    if isinstance(ttl, str):
        ttl = seconds_of("ttl", ttl)
    if isinstance(stale_ttl, str):
        stale_ttl = seconds_of("stale_ttl", stale_ttl)
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise ValueError(f"jitter: {jitter!r} is not a part between 0 and 1")
    if policy not in ("lru", "clock"):
        raise ValueError(f"policy: {policy!r} is none of lru, clock")
    if oversize not in ("skip", "raise"):
        raise ValueError(f"oversize: {oversize!r} is none of skip, raise")
    lifetime = lifetime_of(tier)
    if ttl is None and lifetime is not None:
        ttl = lifetime.ttl_s
    return maxsize, None if max_bytes is None else int(max_bytes), ttl, stale_ttl, lifetime
