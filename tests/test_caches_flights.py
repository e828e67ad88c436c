"""Loading once: threads, coroutines, stale values, invalidation meanwhile, and the decorators on top."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from memwatch.caches import LRUCache, TTLCache, cached, cachedmethod


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Results or exceptions of functions that run at the same time."""
    results: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread waits for ever"
    return results


class Load:
    """A load that begins, waits to be let go, and counts."""

    def __init__(self, result: Any = "value") -> None:
        self.result, self.calls = result, 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(20)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_however_many_threads_ask_a_key_is_loaded_once() -> None:
    cache: Any = LRUCache(10)
    load = Load()
    gate = threading.Barrier(9)

    def ask() -> Any:
        gate.wait(20)
        return cache.get_or_set("k", load)

    def let_go() -> None:
        gate.wait(20)
        load.begun.wait(20)
        load.go.set()

    assert together(*[ask] * 8, let_go)[:8] == ["value"] * 8
    stats = cache.stats()
    assert load.calls == 1 and (stats.loads, stats.load_errors, stats.loading) == (1, 0, 0)
    assert stats.load_time_s > 0


def test_an_exception_goes_to_all_who_wait_and_is_not_remembered() -> None:
    cache: Any = LRUCache(10)
    load = Load(LookupError("no such row"))

    def wait() -> Any:
        load.begun.wait(20)
        threading.Timer(0.05, load.go.set).start()
        return cache.get_or_set("k", load)

    results = together(lambda: cache.get_or_set("k", load), wait, wait)
    assert all(isinstance(result, LookupError) for result in results)
    load.result = "found"
    assert cache.get_or_set("k", load) == "found" and cache.stats().load_errors >= 1


def test_a_thread_that_is_stopped_while_it_loads_takes_nobody_with_it() -> None:
    cache: Any = LRUCache(10)
    stopped = Load(KeyboardInterrupt())

    def wait() -> Any:
        stopped.begun.wait(20)
        threading.Timer(0.05, stopped.go.set).start()
        return cache.get_or_set("k", lambda: "mine")

    results = together(lambda: cache.get_or_set("k", stopped), wait, wait)
    assert isinstance(results[0], KeyboardInterrupt) and results[1:] == ["mine", "mine"]


def test_a_load_that_asks_for_its_own_key_is_answered() -> None:
    cache: Any = LRUCache(10)
    depth = []

    def load() -> int:
        depth.append(1)
        return 1 + cache.get_or_set("k", load) if len(depth) < 5 else 1

    assert together(lambda: cache.get_or_set("k", load)) == [5]


def test_two_threads_that_load_what_the_other_waits_for_both_get_an_answer() -> None:
    cache: Any = LRUCache(10)
    meet = threading.Barrier(2)

    def crossing(own: str, other: str) -> Callable[[], str]:
        def load() -> str:
            try:
                meet.wait(5)
            except threading.BrokenBarrierError:
                pass  # the second load of the same key meets nobody
            return own + cache.get_or_set(other, lambda: other)

        return lambda: cache.get_or_set(own, load)

    results = together(crossing("a", "b"), crossing("b", "a"))
    assert {result[0] for result in results} == {"a", "b"} and all(len(result) <= 3 for result in results)


def test_who_waits_too_long_for_another_load_loads_by_itself() -> None:
    cache: Any = LRUCache(10)
    slow = Load("slow")

    def impatient() -> Any:
        slow.begun.wait(20)
        found = cache.get_or_set("k", lambda: "quick", timeout_s=0.05)
        slow.go.set()
        return found

    assert together(lambda: cache.get_or_set("k", slow), impatient) == ["slow", "quick"]


def test_a_stale_value_is_answered_at_once_and_loaded_anew_behind_once() -> None:
    clock = Clock()
    cache: Any = LRUCache(10, ttl=10, stale_ttl=20, timer=clock)
    cache["k"] = "old"
    clock.now = 15
    assert "k" not in cache and cache.get("k") is None  # as a mapping it has expired
    load = Load("new")
    assert [cache.get_or_set("k", load) for _ in range(5)] == ["old"] * 5
    assert load.begun.wait(20) and load.calls == 1
    load.go.set()
    wait_until(lambda: cache.peek("k") == "new")
    assert cache.get_or_set("k", load) == "new" and cache.stats().stale_hits == 5


def test_staleness_is_bounded_and_a_refresh_that_fails_is_tried_again() -> None:
    clock = Clock()
    cache: Any = LRUCache(10, ttl=10, stale_ttl=20, timer=clock)
    cache["k"] = "old"
    clock.now = 15
    failed = threading.Event()

    def fail() -> Any:
        failed.set()
        raise OSError("down")

    assert cache.get_or_set("k", fail) == "old"
    assert failed.wait(20)
    wait_until(lambda: cache.stats().loading == 0)
    assert cache.get_or_set("k", fail) == "old"
    wait_until(lambda: cache.stats().loads == 2 and cache.stats().loading == 0)
    clock.now = 30
    with pytest.raises(OSError, match="down"):
        cache.get_or_set("k", fail)
    assert len(cache) == 0


@pytest.mark.parametrize("invalidate", ["key", "tag", "prefix", "clear"])
def test_what_was_invalidated_while_it_was_loaded_is_answered_but_not_stored(invalidate: str) -> None:
    cache: Any = LRUCache(10)
    load = Load("outdated")

    def spoil() -> Any:
        load.begun.wait(20)
        {
            "key": lambda: cache.pop("user:1", None),
            "tag": lambda: cache.invalidate(tag="user"),
            "prefix": lambda: cache.invalidate(prefix="user:"),
            "clear": cache.clear,
        }[invalidate]()
        found = cache.get_or_set("user:1", lambda: "current")  # who asks after the invalidation does not wait for what was before
        load.go.set()
        return found

    assert together(lambda: cache.get_or_set("user:1", load, tags="user"), spoil) == ["outdated", "current"]
    assert cache["user:1"] == "current"


def wait_until(condition: Callable[[], bool]) -> None:
    """Until a thread of the library has done its work; it tells nobody when."""
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("it did not happen within 10 s")


# --- coroutines


def test_coroutines_share_one_load_and_its_exception() -> None:
    cache: Any = LRUCache(10)
    calls = []

    async def load() -> str:
        calls.append(1)
        await asyncio.sleep(0.01)
        if len(calls) == 1:
            raise LookupError("no such row")
        return "value"

    async def main() -> None:
        asked = await asyncio.gather(*(cache.aget_or_set("k", load) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(one, LookupError) for one in asked) and len(calls) == 1
        assert await asyncio.gather(*(cache.aget_or_set("k", load) for _ in range(5))) == ["value"] * 5
        assert len(calls) == 2 and cache["k"] == "value"

    asyncio.run(main())


def test_a_cancelled_caller_leaves_and_the_last_takes_the_load_with_it() -> None:
    cache: Any = LRUCache(10)
    ended: list[str] = []

    async def load() -> str:
        try:
            await asyncio.sleep(0.05)
            ended.append("loaded")
            return "value"
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main() -> None:
        first, second = (asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == "value" and first.cancelled() and ended == ["loaded"]
        cache.clear()
        only = asyncio.create_task(cache.aget_or_set("k", load))
        await asyncio.sleep(0.01)
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        await asyncio.sleep(0)
        assert ended == ["loaded", "cancelled"] and cache.stats().loading == 0
        assert await cache.aget_or_set("k", load) == "value"

    asyncio.run(main())


class Step:
    """Suspends once; a stand-in for any await."""

    def __await__(self) -> Any:
        yield


def test_a_cancellation_at_every_await_leaves_no_flight_and_no_wrong_value() -> None:
    async def one(cancelled_after: int) -> bool:
        cache: Any = LRUCache(10, ttl=100)

        async def load() -> int:
            for _ in range(4):
                await Step()
            return 7

        task = asyncio.ensure_future(cache.aget_or_set("k", load))
        bystander = asyncio.ensure_future(cache.aget_or_set("k", load)) if cancelled_after % 2 else None
        for _ in range(cancelled_after):
            await asyncio.sleep(0)
        finished = not task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if bystander is not None:
            assert await bystander == 7
        assert await cache.aget_or_set("k", load) == 7
        await asyncio.sleep(0)
        assert cache.stats().loading == 0 and cache["k"] == 7
        return finished

    after = 0
    while not asyncio.run(one(after)):
        after += 1
    assert after >= 5


def test_a_load_of_one_event_loop_is_not_waited_for_in_another() -> None:
    cache: Any = LRUCache(10)
    meet = threading.Barrier(2)

    async def load() -> str:
        await asyncio.to_thread(meet.wait, 20)  # both loops are loading now
        return threading.current_thread().name

    results = together(*[lambda: asyncio.run(cache.aget_or_set("k", load))] * 2)
    assert len(set(results)) == 2 and not any(isinstance(result, BaseException) for result in results)


def test_a_coroutine_that_asks_for_its_own_key_is_answered() -> None:
    cache: Any = LRUCache(10)

    async def load() -> int:
        return 1 + await cache.aget_or_set("k", inner)

    async def inner() -> int:
        return 1

    assert asyncio.run(asyncio.wait_for(cache.aget_or_set("k", load), 5)) == 2


def test_a_stale_value_is_answered_at_once_in_a_coroutine_too() -> None:
    clock = Clock()
    cache: Any = LRUCache(10, ttl=10, stale_ttl=20, timer=clock)
    cache["k"] = "old"
    clock.now = 15

    async def load() -> str:
        await asyncio.sleep(0.01)
        return "new"

    async def main() -> None:
        assert await cache.aget_or_set("k", load) == "old"
        await asyncio.sleep(0.05)
        assert cache["k"] == "new"

    asyncio.run(main())


# --- decorators


def test_a_cached_function_is_called_once_per_arguments_also_by_threads() -> None:
    calls: list[Any] = []
    load = Load()

    @cached(LRUCache(10), info=True)
    def compute(number: int, *, scale: int = 1) -> int:
        calls.append((number, scale))
        load.begun.set()
        load.go.wait(20)
        return number * scale

    threading.Timer(0.1, load.go.set).start()
    assert together(*[lambda: compute(2, scale=3)] * 4) == [6] * 4
    assert calls == [(2, 3)] and compute.cache_info().currsize == 1
    compute.cache_clear()
    assert compute(2, scale=3) == 6 and len(calls) == 2


def test_a_cached_method_does_not_keep_its_object_and_forgets_it_when_it_is_gone() -> None:
    cache: Any = LRUCache(10)

    class Service:
        def __init__(self, name: str) -> None:
            self.name = name

        @cached(cache)
        def greet(self, other: str) -> str:
            return f"{self.name} greets {other}"

    first, second = Service("a"), Service("b")
    assert first.greet("x") == first.greet("x") == "a greets x" and second.greet("x") == "b greets x"
    assert len(cache) == 2
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert second.greet("x") == "b greets x" and len(cache) == 1


def test_a_cached_coroutine_function_is_one_still_and_runs_once() -> None:
    calls = []

    @cached(TTLCache(10, 60), tags=lambda number: f"n:{number}")
    async def fetch(number: int) -> int:
        calls.append(number)
        await asyncio.sleep(0.01)
        return number * 2

    async def main() -> None:
        assert await asyncio.gather(*(fetch(4) for _ in range(5))) == [8] * 5
        assert calls == [4]
        assert fetch.cache.invalidate(tag="n:4") == 1
        assert await fetch(4) == 8 and calls == [4, 4]

    asyncio.run(main())
    waiting: Awaitable[int] = fetch(5)
    assert asyncio.iscoroutine(waiting)
    waiting.close()


def test_a_cached_method_of_its_own_cache_is_loaded_once_too() -> None:
    class Repository:
        def __init__(self) -> None:
            self.rows: Any = LRUCache(10)
            self.calls = 0

        @cachedmethod(lambda self: self.rows)
        def row(self, number: int) -> int:
            self.calls += 1
            return number

    repository = Repository()
    assert [repository.row(1), repository.row(1), repository.row(2)] == [1, 1, 2] and repository.calls == 2
    assert list(repository.rows) == [(1,), (2,)]


def test_refreshes_that_hang_or_end_their_thread_keep_nobody_waiting() -> None:
    clock = Clock()
    cache, other = (LRUCache[Any, Any](100, ttl=10, stale_ttl=20, timer=clock) for _ in range(2))
    cache.update(dict.fromkeys(range(8), "old"))
    other["k"] = "old"
    clock.now = 15

    def ends() -> Any:
        raise SystemExit

    for key in range(4):
        assert cache.get_or_set(key, ends) == "old"
    wait_until(lambda: cache.stats().loading == 0)
    hang = threading.Event()
    try:
        for key in range(4, 8):
            assert cache.get_or_set(key, lambda: hang.wait(60)) == "old"
        assert other.get_or_set("k", lambda: "new") == "old"  # its refresh waits in the queue
        clock.now = 100
        assert together(lambda: other.get_or_set("k", lambda: "new")) == ["new"]
    finally:
        hang.set()


def test_a_finalizer_and_a_key_that_use_the_cache_while_a_load_begins_do_not_hang() -> None:
    cache: Any = LRUCache(10**6)

    class Node:
        def __del__(self) -> None:
            cache.get_or_set(("dead", id(self)), int)

    class Key:
        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            cache.peek("from eq")
            return self is other

    def use() -> str:
        thresholds = gc.get_threshold()
        try:
            for number in range(2000):
                node = Node()
                node.me = node  # type: ignore[attr-defined]
                del node
                gc.set_threshold(2 + number % 40)
                cache.get_or_set(number, int)
                if number % 100 == 0:
                    cache.get_or_set(Key(), int)
        finally:
            gc.set_threshold(*thresholds)
        return "done"

    assert together(use) == ["done"]


def test_what_is_stored_while_a_load_is_under_way_is_not_overwritten_by_it() -> None:
    cache: Any = LRUCache(10)
    for store in (lambda: cache.__setitem__("k", "new"), lambda: cache.set("k", "new")):
        cache.clear()
        load = Load("old")

        def replace(store: Callable[[], Any] = store, load: Load = load) -> None:
            load.begun.wait(20)
            store()
            load.go.set()

        together(lambda load=load: cache.get_or_set("k", load), replace)
        assert cache["k"] == "new"


def test_an_error_of_a_load_holds_nothing_when_it_has_been_handled() -> None:
    cache: Any = LRUCache(10)

    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)

    def load(big: Big) -> Any:
        raise LookupError

    gc.disable()
    try:
        try:
            cache.get_or_set("k", lambda big=big: load(big))
        except LookupError:
            pass
        del big
        assert gone() is None
    finally:
        gc.enable()


def test_an_error_of_a_computed_time_to_live_is_not_taken_for_a_large_value() -> None:
    def ttl(value: Any) -> float:
        raise ValueError("no expiry in it")

    with pytest.raises(ValueError, match="no expiry in it"):
        LRUCache[Any, Any](10).get_or_set("k", lambda: 1, ttl=ttl)


def test_coroutines_that_load_what_the_other_waits_for_both_get_an_answer() -> None:
    cache: Any = LRUCache(10)

    def crossing(own: str, other: str) -> Any:
        async def one() -> str:
            return "one"

        async def load() -> str:
            await asyncio.sleep(0.02)
            return own + str(await cache.aget_or_set(other, one))

        return cache.aget_or_set(own, load)

    async def main() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(crossing("a", "b"), crossing("b", "a")), 10)

    first, second = asyncio.run(main())
    assert first.startswith("a") and second.startswith("b")


def test_a_task_that_a_load_has_started_uses_the_cache_like_any_other_when_the_load_has_ended() -> None:
    cache: Any = LRUCache(10)
    calls = []

    async def load() -> str:
        calls.append(1)
        return "value"

    async def main() -> None:
        go = asyncio.Event()

        async def worker() -> None:
            await go.wait()
            for _ in range(5):
                await cache.aget_or_set("k", load)

        async def connect() -> Any:
            return asyncio.create_task(worker())

        task = await cache.aget_or_set("k", connect)
        del cache["k"]
        go.set()
        await task

    asyncio.run(main())
    assert len(calls) == 1


def test_a_cached_coroutine_method_keeps_no_object_and_knows_objects_apart() -> None:
    @dataclass
    class Service:  # equal to another, and without a hash
        name: str

        @cached(LRUCache(10))
        async def greet(self) -> int:
            return id(self)

    async def main() -> Any:
        first, second = Service("a"), Service("a")
        assert await first.greet() == await first.greet() != await second.greet()
        return weakref.ref(first)

    gone = asyncio.run(main())
    gc.collect()
    assert gone() is None
