"""The engine of the caches: bounds, order, expiry, causes and bytes, under threads, exceptions and whatever a program's objects
do."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from memwatch import caches
from memwatch.caches import Cache, LRUCache, RemovalCause, TLRUCache, TTLCache
from memwatch.caches.sizer import ENTRY_BYTES
from memwatch.testing import FakeClock

pytestmark = pytest.mark.usefixtures("storing")


class Clock:
    """A timer that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log(list[tuple[Any, Any, RemovalCause]]):
    """A hook that writes down what it is told."""

    def __call__(self, key: Any, value: Any, cause: RemovalCause) -> None:
        self.append((key, value, cause))

    def causes(self) -> list[str]:
        return [cause.value for _, _, cause in self]


# --- against a simple model

KEYS = st.integers(0, 12)
SIZES = st.integers(0, 400)
COST = ENTRY_BYTES + sys.getsizeof(1)
MOST_ENTRIES, MOST_BYTES, TTL = 6, 4 * COST + 600, 10.0


class AgainstAModel(RuleBasedStateMachine):
    """Values are (serial, size): all different."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.log = Clock(), Log()
        self.cache: Any = LRUCache(
            MOST_ENTRIES, max_bytes=MOST_BYTES, ttl=TTL, sizeof=lambda value: value[1], on_remove=self.log, timer=self.clock
        )
        self.model: OrderedDict[int, tuple[tuple[int, int], float | None, tuple[str, ...]]] = OrderedDict()
        self.told: list[tuple[Any, Any, str]] = []
        self.serial = 0

    def leave(self, key: int, cause: str) -> None:
        self.told.append((key, self.model.pop(key)[0], cause))

    def held(self) -> int:
        return sum(value[1] + COST for value, _, _ in self.model.values())

    def expire(self) -> None:
        due = [(expires, key) for key, (_, expires, _) in self.model.items() if expires is not None and expires <= self.clock.now]
        for _, key in due:
            self.leave(key, "expired")

    @rule(key=KEYS, size=SIZES, ttl=st.sampled_from([None, "own", 3.0, 25.0]), tags=st.sampled_from([(), ("a",), ("a", "b")]))
    def store(self, key: int, size: int, ttl: Any, tags: tuple[str, ...]) -> None:
        self.serial += 1
        value = (self.serial, size)
        lifetime = TTL if ttl == "own" else ttl
        stored = self.cache.set(key, value, tags=tags, **({} if ttl == "own" else {"ttl": ttl}))
        self.expire()
        if key in self.model:
            self.leave(key, "replaced")
        if size + COST > MOST_BYTES:
            self.told.append((key, value, "rejected"))
        else:
            while len(self.model) >= MOST_ENTRIES or self.held() + size + COST > MOST_BYTES:
                self.leave(next(iter(self.model)), "size" if len(self.model) >= MOST_ENTRIES else "bytes")
            self.model[key] = (value, None if lifetime is None else self.clock.now + lifetime, tags)
        assert stored == (key in self.model and self.model[key][0] == value)

    @rule(key=KEYS, size=SIZES)
    def assign(self, key: int, size: int) -> None:
        self.serial += 1
        value = (self.serial, size)
        self.cache[key] = value
        self.expire()
        if key in self.model:
            self.leave(key, "replaced")
        if size + COST > MOST_BYTES:
            self.told.append((key, value, "rejected"))
            return
        while len(self.model) >= MOST_ENTRIES or self.held() + size + COST > MOST_BYTES:
            self.leave(next(iter(self.model)), "size" if len(self.model) >= MOST_ENTRIES else "bytes")
        self.model[key] = (value, self.clock.now + TTL, ())

    @rule(key=KEYS)
    def read(self, key: int) -> None:
        found = self.cache.get(key)
        known = self.model.get(key)
        if known is not None and known[1] is not None and known[1] <= self.clock.now:
            self.leave(key, "expired")
            known = None
        assert found == (None if known is None else known[0])
        if known is not None:
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def peek(self, key: int) -> None:
        known = self.model.get(key)
        fresh = known is not None and (known[1] is None or known[1] > self.clock.now)
        assert (key in self.cache) == fresh
        assert self.cache.peek(key) == (known[0] if known is not None and fresh else None)

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        known = self.model.get(key)
        fresh = known is not None and (known[1] is None or known[1] > self.clock.now)
        assert (self.cache.pop(key, None) is not None) == fresh
        if known is not None:
            self.leave(key, "deleted" if fresh else "expired")

    @rule(tag=st.sampled_from(["a", "b", "c"]))
    def invalidate(self, tag: str) -> None:
        hit = [key for key, (_, _, tags) in self.model.items() if tag in tags]
        self.cache.invalidate(tag=tag)
        for key in hit:
            expires = self.model[key][1]
            self.leave(key, "invalidated" if expires is None or expires > self.clock.now else "expired")

    @rule(fraction=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    def shrink(self, fraction: float) -> None:
        self.expire_now()
        before = self.held()
        self.cache.shrink(fraction=fraction)
        while self.held() > before * (1 - fraction):
            self.leave(next(iter(self.model)), "pressure")

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire_now(self) -> None:
        self.cache.expire()
        self.expire()

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        for key in list(self.model):
            self.leave(key, "cleared")

    @rule()
    def copy(self) -> None:
        copied = pickle.loads(pickle.dumps(TTLCache(3, 5)))
        assert len(copied) == 0
        twin = self.cache.__copy__()
        assert [pair for pair in twin.items()] == [pair for pair in self.cache.items()]  # noqa: C416
        assert twin.bytes == self.cache.bytes

    @invariant()
    def agree(self) -> None:
        fresh = {key: item for key, item in self.model.items() if item[1] is None or item[1] > self.clock.now}
        # `list` would ask for the length, and that drops what has expired.
        assert [key for key in self.cache] == list(fresh)  # noqa: C416
        assert [value for value in self.cache.values()] == [item[0] for item in fresh.values()]  # noqa: C416
        assert self.cache.bytes == self.held() <= MOST_BYTES
        assert self.cache.entries == len(self.model) <= MOST_ENTRIES
        # What is due at one moment leaves in any order.
        assert Counter((key, value, cause.value) for key, value, cause in self.log) == Counter(self.told)
        counts = Counter(cause for _, _, cause in self.told)
        assert self.cache.stats().removals == dict(counts)


def test_whatever_is_done_to_it_a_cache_is_what_a_simple_model_of_it_is() -> None:
    run_state_machine_as_test(AgainstAModel, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


# --- exceptions anywhere


def sound(cache: Any) -> None:
    """Bounds, counts and indexes are those of what is there, and the cache goes on."""
    entries = list(cache._entries.values())
    assert len(entries) <= cache.maxsize
    assert cache.bytes == sum(entry.size for entry in entries) <= cache.max_bytes
    tagged: dict[str, set[Any]] = {}
    for entry in entries:
        for tag in entry.extra[0] if entry.extra else ():
            tagged.setdefault(tag, set()).add(entry.key)
    assert cache._tags == tagged
    for number in range(100, 120):
        cache[f"after{number}"] = "x"
        assert cache[f"after{number}"] == "x" and cache.entries <= cache.maxsize
    cache._timer.now += 1e6
    assert len(cache) == 0 and cache.bytes == 0


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "insert": lambda cache: cache.__setitem__("new", "v"),
    "insert that evicts for bytes": lambda cache: cache.set("new", "v", size=2000),
    "insert with tags": lambda cache: cache.set("new", "v", tags=("t", "u")),
    "replace": lambda cache: cache.__setitem__("k3", "v"),
    "replace with tags": lambda cache: cache.set("k1", "v", tags=("t",)),
    "read": lambda cache: cache["k2"],
    "read of a key with Python equality": lambda cache: cache.get(("k", 2)),
    "delete": lambda cache: cache.__delitem__("k1"),
    "pop": lambda cache: cache.pop("k4", None),
    "popitem": lambda cache: cache.popitem(),
    "clear": lambda cache: cache.clear(),
    "invalidate": lambda cache: cache.invalidate(tag="t"),
    "invalidate by prefix": lambda cache: cache.invalidate(prefix="k"),
    "shrink": lambda cache: cache.shrink(fraction=0.6),
    "expire": lambda cache: (setattr(cache._timer, "now", cache._timer.now + 7), cache.expire()),
    "write when some are due": lambda cache: (setattr(cache._timer, "now", cache._timer.now + 7), cache.__setitem__("n", 1)),
    "resize": lambda cache: cache.resize(3),
    "get_or_set": lambda cache: cache.get_or_set("new", lambda: "v", tags=("t",)),
    "give back": lambda cache: cache.give_back(0.5),
}


class Stop(BaseException):
    """As a signal or a worker's time limit would: it may come anywhere."""


@pytest.mark.parametrize("policy", ["lru", "clock"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_exception_at_any_line_of_any_operation_leaves_the_cache_sound(operation: str, policy: Any) -> None:
    run, lines, interrupted = OPERATIONS[operation], 0, 0
    while True:
        log = Log()
        cache: Any = LRUCache(8, max_bytes=4000, ttl=10, policy=policy, on_remove=log, timer=Clock())
        for number in range(8):
            cache.set(f"k{number}", number, ttl=5 + number, tags=("t",) if number % 2 else ())
            cache.get(f"k{number - 1}")
        left = lines

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if "memwatch/caches" not in frame.f_code.co_filename or frame.f_code.co_name == "forget":
                return None  # that one is called for a cache of an earlier round
            if event == "line":
                if left == 0:
                    left = -1
                    raise Stop
                left -= 1
            return trace

        sys.settrace(trace)
        try:
            run(cache)
        except Stop:
            interrupted += 1
        finally:
            sys.settrace(None)
        sound(cache)
        if left >= 0:
            break  # it came to its end
        lines += 1
    assert interrupted == lines > 3


def test_a_key_whose_comparison_raises_leaves_the_cache_sound() -> None:
    class Touchy:
        is_touchy = False

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            if Touchy.is_touchy:
                raise RuntimeError("touchy")
            return self is other

    cache: Any = LRUCache(3, max_bytes=10_000, ttl=10, timer=Clock())
    keys = [Touchy() for _ in range(4)]
    for key in keys[:3]:
        cache[key] = "x"
    Touchy.is_touchy = True
    for attempt in (lambda: cache.__setitem__(keys[3], 1), lambda: cache.get(keys[3]), lambda: cache.pop(keys[3])):
        with pytest.raises(RuntimeError, match="touchy"):
            attempt()
    Touchy.is_touchy = False
    cache[keys[3]] = "y"
    assert len(cache) == 3 and cache[keys[3]] == "y"
    sound(cache)


@pytest.mark.parametrize("failing", range(1, 14))
def test_a_key_whose_comparison_raises_once_loses_no_hook_and_does_not_break_the_cache_for_good(failing: int) -> None:
    compared = 0

    class Touchy:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            if compared == failing:
                raise RuntimeError
            return isinstance(other, Touchy) and self.number == other.number

    log = Log()
    cache: Any = LRUCache(2, on_remove=log)
    stored = 0
    for number in (0, 1, 1, 2, 3):
        try:
            cache[Touchy(number)] = number
            stored += 1
        except RuntimeError:
            pass
    compared = 1000
    for number in (8, 9):
        cache[Touchy(number)] = number
    assert [key.number for key in cache] == [8, 9] and len(cache) == 2
    assert len(log) >= stored


@pytest.mark.parametrize("name", ["_left", "_bytes", "_evicted", "_hooks", "_room_bytes"])
def test_a_subclass_may_have_an_attribute_of_whatever_name(name: str) -> None:
    kind: Any = type("Own", (LRUCache,), {name: 0})
    cache = kind(2, max_bytes=10_000)
    for number in range(3):
        cache[number] = "x"
    assert list(cache) == [1, 2]
    assert cache.stats().removals == {"size": 1}


def test_sizes_beyond_any_memory_are_counted_as_they_are_said() -> None:
    cache: Any = LRUCache(3, max_bytes=10_000, sizeof=lambda value: value)
    cache["a"] = 10**20
    assert len(cache) == 0 and cache.stats().removals == {"rejected": 1}
    cache = LRUCache(9, sizeof=lambda value: value)
    for number in range(5):
        cache[number] = 2**62
    assert cache.bytes == sum(entry.size for entry in cache._entries.values()) > 5 * 2**62


def test_a_collection_in_the_middle_of_storing_whose_finalizers_use_the_cache_breaks_no_bound() -> None:
    class Dying:
        def __init__(self, last: Callable[[], None]) -> None:
            self.me, self.last = self, last

        def __del__(self) -> None:
            self.last()

    before = gc.get_threshold()
    try:
        for wait in range(1, 40):
            for what in ("write", "clear"):
                cache: Any = LRUCache(3, max_bytes=3000, sizeof=lambda value: value)
                for number in range(3):
                    cache[number] = 100
                gc.disable()
                Dying(cache.clear if what == "clear" else partial(cache.__setitem__, "big", 1700))
                gc.set_threshold(gc.get_count()[0] + wait, 10**6, 10**6)
                gc.enable()
                cache["k"] = 900
                gc.disable()
                assert cache.bytes == sum(entry.size for entry in cache._entries.values()) <= 3000
    finally:
        gc.set_threshold(*before)
        gc.enable()


def test_an_allocation_that_fails_anywhere_while_a_value_is_stored_leaves_the_cache_sound() -> None:
    capi = pytest.importorskip("_testcapi", reason="elsewhere: this interpreter came without its test modules")
    failed = 0
    for nth in range(1, 200):
        log = Log()
        cache: Any = LRUCache(4, max_bytes=4000, ttl=10, on_remove=log, timer=Clock())
        for number in range(4):
            cache[f"key{number}"] = "value"
        key, value = "a new key", b"its value"
        capi.set_nomemory(nth, nth + 1)
        try:
            cache[key] = value
        except MemoryError:
            capi.remove_mem_hooks()
            failed += 1
            assert key not in cache or cache[key] is value
            assert len(cache) >= 3
        finally:
            capi.remove_mem_hooks()
        sound(cache)
    assert failed > 5


# --- threads, forks and the program's objects


@pytest.mark.parametrize("policy", ["lru", "clock"])
def test_threads_that_hammer_one_cache_never_break_its_bounds(policy: Any) -> None:
    told: Counter[RemovalCause] = Counter()
    cache: Any = LRUCache(
        50, max_bytes=20_000, ttl=0.05, policy=policy, on_remove=lambda key, value, cause: told.update([cause]), sizeof=lambda
        value: value
    )  # fmt: skip
    failures: list[BaseException] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(4000):
                key: Any = chance.randrange(200)
                if chance.random() < 0.3:
                    key = ("tuple", key)
                dice = chance.random()
                if dice < 0.5:
                    value = cache.get(key)
                    assert value is None or isinstance(value, int)
                elif dice < 0.9:
                    cache.set(key, chance.randrange(600), tags=(str(chance.randrange(5)),))
                elif dice < 0.95:
                    cache.pop(key, None)
                elif dice < 0.97:
                    cache.invalidate(tag=str(chance.randrange(5)))
                elif dice < 0.98:
                    cache.shrink(fraction=0.5)
                elif dice < 0.985:
                    cache.clear()
                else:
                    list(cache.items())
        except BaseException as error:
            failures.append(error)
            raise

    def look() -> None:
        while not stop.is_set():
            assert cache.entries <= 50

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    observer = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*threads, observer):
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    observer.join(10)
    assert not failures and not observer.is_alive()
    assert cache.bytes == sum(entry.size for entry in cache._entries.values()) <= 20_000
    cache.clear()
    removals = cache.stats().removals
    assert cache.bytes == 0 and not cache._tags and sum(told.values()) == sum(removals.values())


def test_the_child_of_a_fork_can_use_a_cache_whose_lock_another_thread_held() -> None:
    cache: Any = LRUCache(10)
    cache["a"] = 1
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            held.set()
            let_go.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # kills a child that hangs
        cache["b"] = 2
        os._exit(0 if cache["a"] + cache["b"] == 3 and cache.get_or_set("c", lambda: 3) == 3 else 1)
    let_go.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_hooks_may_read_and_write_the_cache_and_raise_and_the_bound_holds(caplog: pytest.LogCaptureFixture) -> None:
    cache: Any = LRUCache(3)

    @cache.on_remove
    def hook(key: Any, value: Any, cause: RemovalCause) -> None:
        assert key not in cache or cause is RemovalCause.REPLACED
        cache.get("x")
        cache[f"from hook {key}"] = value  # evicts, and so calls the hook
        raise RuntimeError("the hook's own")

    for number in range(10):
        cache[number] = number
    assert len(cache) == 3
    assert cache.stats().hook_errors > 10
    assert "the hook's own" in caplog.text and "writes into its cache" in caplog.text
    assert len(caplog.records) < 20  # not once per call


def test_a_value_dies_outside_the_lock_and_may_use_the_cache_while_it_does() -> None:
    cache: Any = LRUCache(2, ttl=100)
    reads: list[Any] = []

    class Value:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            other = threading.Thread(target=lambda: reads.append(cache.get("probe")))  # would hang if the lock were held here
            other.start()
            other.join(10)
            assert not other.is_alive()
            cache.get(self.number)

    for number in range(5):
        cache[number] = Value(number)
    del cache[4]
    cache[3] = None
    cache.clear()
    gc.collect()
    assert reads == [None] * 5


def test_a_cache_that_its_own_value_holds_is_collected() -> None:
    cache: Any = LRUCache(5, ttl=10)
    cache["me"] = [cache]
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None and all(item is not None for item in caches.all())


def test_what_left_is_not_kept_alive_by_the_index_of_times() -> None:
    class Value:
        pass

    cache: Any = TTLCache(2, 3600)
    values = [Value() for _ in range(5)]
    alive = [weakref.ref(value) for value in values]
    for number in range(5):
        cache[number] = values.pop(0)
    del cache[4]
    assert [reference() is None for reference in alive] == [True, True, True, False, True]


def test_a_key_written_a_million_times_leaves_nothing_behind() -> None:
    clock = Clock()
    cache: Any = TTLCache(100, 3600, timer=clock)
    for number in range(2000):
        cache[number % 150] = number
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(300_000):
            clock.now += 0.001
            cache[number % 150] = number
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000


# --- what each argument does


def test_every_way_out_is_told_once_with_its_cause() -> None:
    clock, log = Clock(), Log()
    cache: Any = LRUCache(3, max_bytes=3 * (COST + 100), ttl=10, on_remove=log, timer=clock, sizeof=lambda value: 50)
    cache.update({1: "a", 2: "b", 3: "c"})
    cache[4] = "d"  # size
    cache.set(5, "e", size=250)  # size and bytes
    cache[5] = "f"  # replaced
    cache.set(6, "g", size=10_000)  # rejected
    del cache[5]  # deleted
    cache.set(7, "h", tags=["t"])
    cache.invalidate(tag="t")
    cache[8] = "i"
    cache.shrink(fraction=1.0)
    cache[9] = "j"
    clock.now += 10
    assert cache.get(9) is None
    cache[10] = "k"
    cache.clear()
    assert log == [
        (1, "a", "size"), (2, "b", "size"), (3, "c", "bytes"), (5, "e", "replaced"), (6, "g", "rejected"),
        (5, "f", "deleted"), (7, "h", "invalidated"), (4, "d", "pressure"), (8, "i", "pressure"), (9, "j", "expired"), (10, "k",
        "cleared"),
    ]  # fmt: skip
    assert {cause.was_evicted for _, _, cause in log if cause in ("size", "bytes", "pressure", "expired")} == {True}
    assert not any(
        cause.was_evicted for _, _, cause in log if cause in ("deleted", "replaced", "cleared", "invalidated", "rejected")
    )


def test_a_value_too_large_is_refused_and_takes_its_predecessor_with_it() -> None:
    cache: Any = LRUCache(10, max_bytes="1KiB")
    cache["k"] = "old"
    cache["k"] = "x" * 2000
    assert "k" not in cache and cache.stats().removals == {"replaced": 1, "rejected": 1}
    strict: Any = LRUCache(10, max_bytes="1KiB", oversize="raise")
    strict["k"] = "old"
    with pytest.raises(ValueError, match=r"value too large: 2\d\d\d bytes with its key, max_bytes is 1024"):
        strict["k"] = "x" * 2000
    assert strict["k"] == "old"


def test_clock_gives_what_was_read_a_second_chance_and_evicts_the_rest_first() -> None:
    cache: Any = LRUCache(3, policy="clock")
    cache.update({1: 1, 2: 2, 3: 3})
    assert cache[1] == 1
    cache[4] = 4
    assert sorted(cache) == [1, 3, 4]
    for key in (1, 3, 4):
        cache[key]
    cache[5] = 5
    assert 5 in cache and len(cache) == 3


def test_times_to_live_may_be_per_item_computed_jittered_and_dates() -> None:
    clock = Clock()
    cache: Any = LRUCache(10, ttl=lambda value: value, timer=clock)
    cache["short"], cache["never"] = 1, None
    cache.set("long", 0, ttl=100)
    assert cache.set("already over", 1, ttl=0) is False
    clock.now += 1
    assert sorted(cache) == ["long", "never"]

    jittered: Any = LRUCache(1000, ttl=100, jitter=0.5, timer=clock)
    for number in range(500):
        jittered[number] = number
    clock.now += 50
    assert len(jittered) == 500
    clock.now += 25
    assert 150 < len(jittered) < 350
    clock.now += 25
    assert len(jittered) == 0

    now = datetime(2026, 1, 1)
    dated: Any = TTLCache(5, timedelta(days=1), timer=lambda: now)
    dated["a"] = 1
    now += timedelta(hours=23)
    assert dated["a"] == 1
    now += timedelta(hours=1)
    assert "a" not in dated and len(dated) == 0


def test_named_lifetimes_are_times_to_live() -> None:
    clock = Clock()
    cache: Any = LRUCache(10, tier="hot", timer=clock)
    cache["hot"] = 1
    cache.set("cold", 1, tier=caches.COLD)
    cache.set("permanent", 1, tier="PERMANENT")
    clock.now += 301
    assert sorted(cache) == ["cold", "permanent"]
    clock.now += 86400
    assert list(cache) == ["permanent"]
    cache.shrink(fraction=1.0, permanent=False)
    assert list(cache) == ["permanent"]


def test_tags_cascade_and_prefix_and_pattern_invalidate_what_they_say() -> None:
    cache: Any = LRUCache(100, cascade={"org:1": ["user:1", "user:2"], "user:1": "org:1"})
    cache.set("u:1:feed", 1, tags="user:1")
    cache.set("u:2:feed", 2, tags=["user:2", "feeds"])
    cache.set("u:3:feed", 3, tags=["user:3", "feeds"])
    cache[("not", "text")] = 4
    assert cache.invalidate(tag="user:1") == 2
    assert sorted(map(str, cache)) == ["('not', 'text')", "u:3:feed"]
    assert cache.invalidate(tag="feeds") == 1
    cache.update({"u:1:a": 1, "u:1:b": 2, "v:1:a": 3})
    assert cache.invalidate(pattern="?:1:a") == 2
    assert cache.invalidate(prefix="u:") == 1
    assert not cache._tags
    with pytest.raises(TypeError, match="exactly one of"):
        cache.invalidate()


def test_bounds_move_and_a_changed_value_can_be_measured_again() -> None:
    cache: Any = LRUCache(10)
    cache.update(dict.fromkeys(range(10), "x" * 1000))
    cache.resize(5)
    assert list(cache) == [5, 6, 7, 8, 9] and cache.stats().is_estimated
    cache.resize(max_bytes=3 * 1400)
    assert list(cache) == [7, 8, 9] and cache.bytes == pytest.approx(3 * 1300, rel=0.05)
    cache.clear()
    cache["list"] = content = []
    content.extend("x" * 500 for _ in range(5))
    cache.resize_entry("list")
    assert 300 < cache.bytes < 4200


def test_what_pressure_took_is_not_filled_up_again_until_it_is_over() -> None:
    cache: Any = LRUCache(1000, max_bytes=1_000_000, sizeof=lambda value: 1000, name="c")
    for number in range(2000):
        cache[number] = number
    cache.give_back(0.5)
    held = cache.bytes
    for number in range(2000):
        cache[number] = number
    assert cache.bytes <= held * 1.01 and 0.3 < cache.room < 0.5
    while not cache.raise_room(0.05):
        pass
    for number in range(2000):
        cache[number] = number
    assert cache.bytes > 1.8 * held and cache.room == 1.0


def test_many_at_once_and_warming_stop_at_the_bound() -> None:
    cache: Any = LRUCache(5)
    assert cache.set_many({1: 1, 2: 2}) == 2
    assert cache.get_many([1, 2, 3]) == {1: 1, 2: 2}
    assert cache.delete_many([2, 3]) == 1
    assert cache.warm(lambda key: key * 10, range(10)) == 4
    assert cache[1] == 1 and len(cache) == 5 and cache.stats().removals == {"deleted": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maxsize": None}, "maxsize=None needs max_bytes="),
        ({"maxsize": -1}, "maxsize: -1 is not"),
        ({"max_bytes": "lots"}, "'lots' is not a number with a unit of bytes"),
        ({"max_bytes": 0}, "max_bytes: 0 is not"),
        ({"ttl": "soon"}, "'soon' is not a number with a unit of time"),
        ({"jitter": 2}, "jitter: 2 is not"),
        ({"policy": "lfu"}, "policy: 'lfu' is none of lru, clock"),
        ({"oversize": "keep"}, "oversize: 'keep' is none of"),
        ({"tier": "tepid"}, "tier: 'tepid' is none of HOT"),
    ],
)
def test_an_argument_that_cannot_be_is_named_with_what_is_accepted(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRUCache(**arguments)


def test_statistics_tell_hits_misses_bytes_and_who_it_is() -> None:
    cache: Any = LRUCache(5, max_bytes=10_000)
    cache["a"] = "x"
    cache["a"], cache.get("b"), cache.get("a")
    told = caches.stats()[cache.name].to_dict()
    assert "test_caches_engine:" in cache.name
    assert (told["hits"], told["misses"], told["hit_ratio"], told["entries"]) == (2, 1, 2 / 3, 1)
    assert told["bytes"] == cache.bytes > ENTRY_BYTES and not told["is_estimated"] and told["removals"] == {}


def test_a_subclass_that_overrides_popitem_is_asked_what_has_to_go() -> None:
    class Noisy(LRUCache[Any, Any]):
        def popitem(self) -> tuple[Any, Any]:
            pair = super().popitem()
            gone.append(pair)
            return pair

    gone: list[Any] = []
    cache = Noisy(2)
    cache.update({1: 1, 2: 2, 3: 3})
    assert gone == [(1, 1)]
    assert isinstance(cache, Cache) and isinstance(TLRUCache(1, lambda key, value, now: now), Cache) and FakeClock is not None


def test_a_refused_value_is_told_at_once_and_not_kept_and_oversize_raises_for_new_keys_too() -> None:
    class Blob:
        pass

    log = Log()
    cache: Any = LRUCache(10, max_bytes=1000, on_remove=log, sizeof=lambda value: 5000)
    blob = Blob()
    gone = weakref.ref(blob)
    cache["k"] = blob
    assert log == [("k", blob, "rejected")] and len(cache) == 0
    log.clear()
    del blob
    assert gone() is None
    strict: Any = LRUCache(10, max_bytes=1000, oversize="raise")
    with pytest.raises(ValueError, match="value too large"):
        strict["new"] = b"x" * 5000
    with pytest.raises(ValueError, match="value too large"):
        strict.set("new", b"x" * 5000)
    odd: Any = LRUCache(None, max_bytes=1000, sizeof=lambda value: float("nan"))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="NaN"):
        odd["k"] = 1


def test_a_cache_that_holds_little_is_not_shut_by_pressure_and_levels_that_flap_do_not_add_up() -> None:
    cache: Any = LRUCache(1000, max_bytes="64MB", oversize="raise")
    cache["one"] = 1
    cache.give_back(0.7)
    cache["two"] = "x" * 1000
    assert len(cache) == 2
    cache.lift()
    cache.update(dict.fromkeys(range(1000), "x" * 10000))
    held = cache.bytes
    for _ in range(6):
        cache.give_back(0.7)
        cache.give_back(0.4)
    assert cache.bytes == pytest.approx(0.4 * held, rel=0.05)
    empty: Any = LRUCache(1000)
    empty.give_back(0.4)
    empty.update(dict.fromkeys(range(40)))
    assert len(empty) == 40


def test_a_clock_that_several_hold_goes_on_when_the_last_has_let_go() -> None:
    clock = Clock()
    cache: Any = TTLCache(5, 10, timer=clock)
    first, second = cache.timer, cache.timer
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    clock.now += 5
    assert cache.timer() == 1000
    second.__exit__(None, None, None)
    assert cache.timer() == 1005


def test_signals_that_interrupt_it_leave_no_lock_held() -> None:
    program = """
import signal, sys, threading
from memwatch.caches import LRUCache
cache = LRUCache(50, max_bytes=20_000, ttl=5)
class Interrupted(BaseException): pass
kept = []
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGALRM, interrupt)
interrupts = number = 0
while interrupts < 1500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0007)  # once: not while the exception is handled
        while True:
            number += 1
            cache.set(number % 90, number, tags=("t",))
            cache.pop(number % 70, None)
            cache.get_or_set(number % 30, int)
            if number % 500 == 0:
                cache.invalidate(tag="t"); cache.shrink(fraction=0.5)
                # Again, where the signal came in a callback of the interpreter, which says so on stderr and goes on.
                signal.setitimer(signal.ITIMER_REAL, 0.0007)
    except Interrupted as error:
        interrupts += 1
        kept.append(error)  # with its traceback, as an error tracker would
        del kept[:-20]
signal.setitimer(signal.ITIMER_REAL, 0)
done = []
def other():
    for key in range(90): cache.set(key, key); cache.get_or_set(key, int)
    done.append(cache.entries <= 50 and cache.bytes == sum(entry.size for entry in cache._entries.values()))
thread = threading.Thread(target=other, daemon=True)
thread.start(); thread.join(20)
print(done, cache.stats().loading)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["[True]", "0"], done.stdout + done.stderr


# --- durations as text, and who is kept


def test_a_time_to_live_may_be_text_wherever_one_is_given() -> None:
    clock = Clock()
    cache = LRUCache(100, timer=clock)
    cache.set("set", 1, ttl="5m")
    cache.get_or_set("loaded", lambda: 2, ttl="5m")
    caches.cached(cache, key=lambda: "called", ttl="5m")(lambda: 3)()
    computed = LRUCache(100, ttl=lambda value: "5m", jitter=0.0, timer=clock)
    computed["computed"] = 4
    clock.now += 299
    assert (set(cache), set(computed)) == ({"set", "loaded", "called"}, {"computed"})
    clock.now += 2
    assert (set(cache), set(computed)) == (set(), set())


@pytest.mark.parametrize(("argument", "value"), [("ttl", "10"), ("stale_ttl", "soon"), ("max_bytes", "64"), ("max_bytes", "lots")])
def test_a_malformed_text_is_refused_with_the_name_of_the_argument(argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: .*{value}"):
        LRUCache(10, **{argument: value})


def test_a_malformed_time_to_live_of_one_value_is_refused_and_nothing_is_stored() -> None:
    cache = LRUCache(10)
    with pytest.raises(ValueError, match=r"^ttl: '10'"):
        cache.set("a", 1, ttl="10")
    assert "a" not in cache


def test_a_cached_coroutine_method_does_not_keep_its_object_whatever_it_calls_it() -> None:
    import asyncio

    cache: Any = LRUCache(100)

    class Client:
        @caches.cached(cache)
        async def usual(self, n: int) -> int:
            return n

        @caches.cached(cache)
        async def unusual(this, n: int) -> int:
            return n

        @staticmethod
        @caches.cached(cache)
        async def static(key: tuple[int, ...]) -> tuple[int, ...]:
            return key

    async def main(client: Client) -> None:
        assert [await client.usual(1), await client.unusual(1)] == [1, 1]
        first = await client.static((1, 2))
        assert await client.static((1, *[2])) is first  # an equal argument is the same call

    client = Client()
    asyncio.run(main(client))
    alive = weakref.ref(client)
    del client
    gc.collect()
    assert alive() is None
