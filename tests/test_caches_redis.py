"""The tier below memory against a real Redis that is stopped, frozen, filled, restarted and lied to."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from memwatch.caches import Breaker, Cache, Compress, LRUCache, RedisTier, TieredCache, TLRUCache, TTLCache, cached
from memwatch.caches.codec import Codec, ForeignError
from memwatch.caches.redis_tier import Budget, _is_away
from memwatch.caches.tiered import _Listener

redis = pytest.importorskip("redis")
SERVER = shutil.which("redis-server")
if SERVER is None and not os.environ.get("CI"):
    pytest.skip("elsewhere: redis-server is not installed", allow_module_level=True)


class Server:
    """A redis-server on a free loopback port, and what may become of it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        command = [str(SERVER), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                self.client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)  # it tells nobody when it is ready
        raise AssertionError("redis-server does not answer")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.thaw()
    started.stop()
    started.client.close()


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., TieredCache[Any, Any]]]:
    """Tiered caches on that server, each as another process would have it."""
    made: list[TieredCache[Any, Any]] = []

    def one(*, ttl: float | None = 60, listen: bool = False, **more: Any) -> TieredCache[Any, Any]:
        settings = {"timeout_s": 1.0, "breaker": Breaker(3, 0.2, 0.5)} | more
        cache = TieredCache[Any, Any](LRUCache(100, ttl=ttl), RedisTier(server.url, **settings), listen=listen)
        made.append(cache)
        return cache

    yield one
    for cache in made:
        cache.close()


def wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.01)


def test_what_one_process_stores_another_finds_with_what_is_left_of_its_time(make: Any) -> None:
    one, other = make(), make(ttl=None)
    assert one.set("k", {"a": [1, 2.5, None, "ü"]}, ttl=30)
    assert other["k"] == {"a": [1, 2.5, None, "ü"]}
    assert other.cache.stats().entries == 1 and other.get("k") == one.get("k")
    expires = other.cache._entries["k"].expires - time.monotonic()
    assert 25 < expires <= 30
    assert other.stats()["store"]["hits"] == 1  # the second read was from memory
    assert other.get("absent", "default") == "default"
    with pytest.raises(KeyError):
        other["absent"]


def test_keys_of_many_kinds_are_one_key_in_every_process(make: Any, server: Server) -> None:
    one, other = make(), make()
    keys: list[Any] = ["text", 7, ("user", 7, None, 2.5), "x" * 5000, "with:colon*and[glob]", ("nested", ("a", 1))]
    assert one.set_many({key: index for index, key in enumerate(keys)}) == len(keys)
    assert other.get_many([*keys, "absent"]) == {key: index for index, key in enumerate(keys)}
    assert max(len(name) for name in server.client.keys("*")) < 300
    assert 7 in one.cache and other.get(7.0) == 1 and other.get("7") is None
    unshareable = frozenset({1})
    one[unshareable] = "here only"
    assert one[unshareable] == "here only" and other.get(unshareable) is None


def test_pickle_is_never_read_unless_asked_for_and_each_serializer_gives_back_what_it_got(make: Any, server: Server) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, ("pwned",))

    values = {"json": [1, {"a": None}], "msgpack": [1, b"bytes", {"a": 1}], "pickle": {(1, 2): {3}}}
    for name, value in values.items():
        cache, other = (make(serializer=name, namespace=name) for _ in range(2))
        cache.set("k", value)
        assert other["k"] == value
    evil = make(serializer="pickle", namespace="json")
    evil.set("k", Bomb())
    victim = make(serializer="json", namespace="json")
    assert victim.get("k") is None and not Path("pwned").exists()
    assert victim.stats()["store"]["foreign"] == 1

    json_only = make(namespace="j")
    json_only.set("k", "first")
    assert json_only.set("k", (1, 2)) is False and json_only["k"] == (1, 2)  # a tuple would come back a list
    assert make(namespace="j").get("k") is None and json_only.stats()["store"]["unserialisable"] == 1


def test_large_values_are_compressed_where_that_helps(make: Any, server: Server) -> None:
    plain, packed = make(compress=None, namespace="plain"), make(compress=Compress(min_bytes=1000), namespace="packed")
    text, noise = "the same words again and again " * 500, os.urandom(3000).hex()
    for cache in (plain, packed):
        cache.set("text", text)
        cache.set("noise", noise)
    size = {name.decode(): server.client.strlen(name) for name in server.client.keys("*s:*")}
    assert size["packed:1:s:text"] < 0.1 * size["plain:1:s:text"]
    assert size["packed:1:s:noise"] <= size["plain:1:s:noise"]
    assert make(compress=None, namespace="packed")["text"] == text
    for method in ("zlib", "zstd"):
        codec = Codec("json", Compress(10, 0.9, method))  # type: ignore[arg-type]
        assert codec.decode(codec.encode(text, {"t": "1"})) == (text, {"t": "1"})


@pytest.mark.parametrize(
    "data", [b"", b"mw1", b"mw1j-\x00\x00\xff\xff{}", b"mw1jz\x00\x00\x00\x02{}not zlib", b"mw1p-\x00\x00\x00\x02{}x", b"\x80\x04."]
)
def test_bytes_that_are_none_of_ours_are_refused_whatever_they_are(data: bytes) -> None:
    with pytest.raises(ForeignError):
        Codec().decode(data)


def test_a_foreign_value_under_our_key_is_a_miss_and_is_overwritten(make: Any, server: Server) -> None:
    cache = make()
    name = cache.tier.name_of("k")
    cache.set("other", 1)  # from here on values count
    server.client.set(name, b"somebody else's")
    assert cache.get("k") is None
    server.client.delete(name)
    server.client.rpush(name, "a list")
    assert cache.get("k") is None and cache.get_or_set("k", lambda: "mine") == "mine"
    assert make().get("k") == "mine" and cache.stats()["store"]["foreign"] >= 2


@pytest.mark.parametrize("how", ["key", "tag", "prefix", "pattern", "clear", "set"])
def test_a_removal_reaches_the_memory_of_every_process_and_the_store(make: Any, how: str) -> None:
    one, other = make(listen=True), make(listen=True)
    wait_until(lambda: one.tier._blocking().pubsub_numsub(one.tier.channel)[0][1] == 2)
    one.set("user:1", "old", tags=["users"])
    one.set("page", "stays" if how != "clear" else "goes")
    assert other["user:1"] == "old" and other["page"]
    {
        "key": lambda: one.delete("user:1"),
        "tag": lambda: one.invalidate(tag="users"),
        "prefix": lambda: one.invalidate(prefix="user:"),
        "pattern": lambda: one.invalidate(pattern="use?:*"),
        "clear": one.clear,
        "set": lambda: one.set("user:1", "new"),
    }[how]()
    wait_until(lambda: "user:1" not in other.cache)
    assert other.get("user:1") == make().get("user:1") == ("new" if how == "set" else None)
    assert other.get("page") == (None if how == "clear" else "stays")


@pytest.mark.parametrize("how", ["tag", "delete", "set", "clear"])
def test_what_was_loaded_before_a_removal_is_not_stored_after_it(make: Any, how: str) -> None:
    one, other = make(), make()
    one.set("warm", 1)

    def load() -> str:
        {
            "tag": lambda: other.invalidate(tag="t"),
            "delete": lambda: other.delete("k"),
            "set": lambda: other.set("k", "current"),
            "clear": other.clear,
        }[how]()
        return "outdated"

    assert one.get_or_set("k", load, tags=["t"]) == "outdated"
    assert make().get("k") == ("current" if how == "set" else None)


def test_a_key_is_loaded_once_among_processes(server: Server, tmp_path: Path) -> None:
    program = """
import sys, os, time
from memwatch.caches import LRUCache, RedisTier, TieredCache
cache = TieredCache(LRUCache(10, ttl=60), RedisTier(sys.argv[1], timeout_s=5.0, lock_s=10.0), listen=False)
def load():
    open(os.path.join(sys.argv[2], str(os.getpid())), "w").close()
    time.sleep(0.5)
    return os.getpid()
print(cache.get_or_set("k", load))
"""
    loads = tmp_path / "loads"
    loads.mkdir()
    running = [
        subprocess.Popen([sys.executable, "-c", program, server.url, str(loads)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(answers) == 1 and [path.name for path in loads.iterdir()] == list(answers)


def test_a_process_that_dies_while_it_loads_keeps_nobody_waiting(make: Any, server: Server) -> None:
    cache = make(lock_s=0.5)
    server.client.set("{" + cache.tier.name_of("k") + "}:lock", "the dead one's", px=500)
    began_s = time.monotonic()
    assert cache.get_or_set("k", lambda: "mine") == "mine"
    assert time.monotonic() - began_s < 5
    assert server.client.exists("{" + cache.tier.name_of("k") + "}:lock") == 0


def longest(calls: list[Callable[[], Any]]) -> float:
    worst = 0.0
    for call in calls:
        began_s = time.perf_counter()
        call()
        worst = max(worst, time.perf_counter() - began_s)
    return worst


@pytest.mark.parametrize("trouble", ["stopped", "frozen", "full"])
def test_with_redis_in_trouble_every_call_is_answered_in_time_and_hits_resume_when_it_is_back(
    server: Server, make: Any, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(timeout_s=0.3, lock_s=0.2)
    cache.set("k", "before", tags=["t"])
    if trouble == "full":
        server.client.config_set("maxmemory", "1mb")
        server.client.config_set("maxmemory-policy", "noeviction")
    elif trouble == "frozen":
        server.freeze()
    else:
        server.stop()
    reader = make(timeout_s=0.3, lock_s=0.2)
    answers: list[Any] = []
    calls: list[Callable[[], Any]] = []
    for number in range(20):
        calls += [
            lambda number=number: answers.append(reader.get_or_set(number, lambda: number * 10)),  # type: ignore[misc]
            lambda number=number: reader.get(("absent", number)),  # type: ignore[misc]
            lambda number=number: reader.set(f"s{number}", number),  # type: ignore[misc]
            lambda: reader.get_many(["a", "b", "c"]),
        ]
    calls += [lambda: reader.delete("k"), lambda: reader.invalidate(tag="t")]
    assert longest(calls) < 0.3 + 1.0  # a machine under load adds its own; redis-py by itself takes 4 s
    assert answers == [number * 10 for number in range(20)]
    store = reader.stats()["store"]
    if trouble == "full":
        assert store["refused"] > 0 and store["state"] == "closed" and "OutOfMemory" in store["last_error"]
        server.client.config_set("maxmemory", "0")
    else:
        assert store["failures"] >= 3 and store["skipped"] > 10 and store["pending"] > 0
        assert "going on in memory alone" in caplog.text
        server.thaw()
        if trouble == "stopped":
            server.start()
    wait_until(lambda: bool(reader.set("back", 1)), 10)
    assert make().get("back") == 1
    if trouble != "full":
        assert "is back" in caplog.text and reader.stats()["store"]["pending"] == 0
    assert make().get("k") is None  # it was removed while Redis was away


def test_a_service_under_load_loses_no_request_while_redis_is_pulled_away_and_put_back(server: Server, make: Any) -> None:
    cache = make(timeout_s=0.3, lock_s=0.2)
    stop, failures, slowest = threading.Event(), [], [0.0] * 4
    served = [0] * 4

    def work(index: int) -> None:
        number = index
        while not stop.is_set():
            number += 1
            key = number % 200  # more than memory holds
            began_s = time.perf_counter()
            try:
                if cache.get_or_set(key, lambda key=key: key * 2) != key * 2:  # type: ignore[misc]
                    failures.append("a wrong answer")
            except Exception as error:
                failures.append(repr(error))
            slowest[index] = max(slowest[index], time.perf_counter() - began_s)
            served[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()

    def hits() -> int:
        return int(cache.stats()["store"]["hits"])

    def go_on() -> None:
        before, count = hits(), sum(served)
        wait_until(lambda: hits() > before and sum(served) > count + 50, 20)

    go_on()
    server.freeze()
    wait_until(lambda: cache.stats()["store"]["state"] != "closed")
    server.thaw()
    go_on()
    server.stop()
    wait_until(lambda: cache.stats()["store"]["state"] != "closed")
    server.start()
    go_on()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == [] and sum(served) > 200
    assert max(slowest) < 0.3 + 2.0


def test_what_could_not_be_removed_is_removed_before_anything_is_read_again(server: Server, make: Any) -> None:
    cache = make(timeout_s=0.3)
    cache.set_many({f"k{number}": number for number in range(5)}, tags=["t"])
    cache.set("kept", 1)
    server.freeze()
    cache.delete("k1")
    cache.invalidate(prefix="k")  # nobody knows which keys: all count as removed
    server.thaw()
    wait_until(lambda: cache.stats()["store"]["state"] != "open")
    assert cache.get("k1") is None and make().get("kept") is None


def test_a_listener_that_was_cut_off_forgets_what_may_be_out_of_date(server: Server, make: Any) -> None:
    one, other = make(listen=True), make(listen=False)
    wait_until(lambda: one.tier._blocking().pubsub_numsub(one.tier.channel)[0][1] == 1)
    one.set("k", "old")
    server.client.client_kill_filter(_type="pubsub")
    wait_until(lambda: len(one.cache) == 0)
    wait_until(lambda: one.tier._blocking().pubsub_numsub(one.tier.channel)[0][1] == 1)
    assert one.get("k") == "old"
    other.delete("k")
    wait_until(lambda: "k" not in one.cache)


def test_coroutines_use_the_store_too_and_are_never_blocked_by_it(server: Server, make: Any) -> None:
    cache, other = make(timeout_s=0.3, lock_s=0.2), make()
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.01)

    async def main() -> None:
        calls = []

        async def load() -> str:
            calls.append(1)
            return "loaded"

        assert (
            await asyncio.gather(*(cache.aget_or_set("k", load, tags=["t"]) for _ in range(5))) == ["loaded"] * 5
            and len(calls) == 1
        )
        assert (
            await cache.aset("s", 1) and await cache.aget("s") == 1 and await cache.aget_many(["s", "k"]) == {"s": 1, "k": "loaded"}
        )
        await cache.ainvalidate(tag="t")
        await cache.adelete_many(["s"])
        assert await cache.aget("k") is None and await cache.aget("s") is None
        server.freeze()
        ticking = asyncio.create_task(tick())
        assert await cache.aget_or_set("during", load) == "loaded"
        assert [await cache.aget(f"absent{number}") for number in range(10)] == [None] * 10
        server.thaw()
        ticking.cancel()
        await cache.tier.aclose()

    other.set("k2", 2)
    asyncio.run(main())
    assert max(later - before for before, later in pairwise(ticks)) < 0.25
    assert cache.stats()["store"]["failures"] > 0


def test_a_store_that_cannot_be_is_told_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="takes a url, or client="):
        RedisTier()
    with pytest.raises(ValueError, match="serializer: 'yaml' is none of json, msgpack, pickle"):
        RedisTier("redis://127.0.0.1:1", serializer="yaml")
    with pytest.raises(ValueError, match="timeout_s=0"):
        RedisTier("redis://127.0.0.1:1", timeout_s=0)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try_at_growing_intervals(failures: int) -> None:
    breaker = Breaker(failures, 1.0, 4.0)
    for _ in range(failures - 1):
        assert not breaker.failed(0.0)
    assert breaker.allows(0.0) and breaker.failed(0.0)
    assert breaker.state(0.5) == "open" and not breaker.allows(0.5)
    assert breaker.allows(1.0) and not breaker.allows(1.0)  # one tries
    assert not breaker.failed(1.1)
    assert not breaker.allows(3.0) and breaker.allows(3.2)  # twice as long
    assert breaker.succeeded() and breaker.state(3.3) == "closed" and not breaker.succeeded()


def test_a_removal_that_redis_refuses_is_remembered_and_made_when_it_is_taken(server: Server, make: Any) -> None:
    cache = make()
    cache.set_many({"k": "old", "written": "old", "kept": 1})
    cache.set("tagged", "old", tags=["t"])
    server.client.execute_command("REPLICAOF", "127.0.0.1", "1")  # a failover: the node that we know is a replica now
    cache.delete("k")
    cache.invalidate(tag="t")
    assert cache.set("written", "new") is False
    store = cache.stats()["store"]
    assert store["pending"] == 3 and store["refused"] == 3 and "read only" in store["last_error"]
    cache.cache.clear()
    assert cache.get_many(["k", "tagged", "written", "kept"]) == {"kept": 1}  # the replica still has the old ones
    server.client.execute_command("REPLICAOF", "NO", "ONE")
    wait_until(lambda: cache.get("absent") is None and cache.stats()["store"]["pending"] == 0)
    assert make().get_many(["k", "tagged", "written", "kept"]) == {"kept": 1}


def test_a_removal_that_was_cancelled_is_made_by_the_next_call(server: Server, make: Any) -> None:
    cache = make()

    async def main() -> None:
        await cache.aset("k", "old")
        await cache.aset("written", "old")
        await cache.aset("tagged", "old", tags=["t"])
        server.freeze()
        for call in (cache.adelete_many(["k"]), cache.ainvalidate(tag="t"), cache.aset("written", "new")):
            task = asyncio.create_task(call)
            await asyncio.sleep(0)
            await asyncio.sleep(0.02)  # sent, and not answered
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert cache.stats()["store"]["pending"] == 3
        server.client.connection_pool.disconnect()
        server.thaw()
        cache.cache.clear()
        assert await cache.aget_many(["k", "tagged", "written"]) == {}
        await cache.tier.aclose()

    asyncio.run(main())
    assert make().get_many(["k", "tagged", "written"]) == {} and cache.stats()["store"]["pending"] == 0


def test_a_key_that_is_no_text_of_utf_8_is_a_key_like_any_other(make: Any) -> None:
    cache, other = make(namespace="n\udce9"), make(namespace="n\udce9", listen=True)
    key = os.fsdecode(b"caf\xe9")
    wait_until(lambda: cache.set(key, 1, tags=[key]) and other.get(key) == 1)
    wait_until(lambda: cache.tier._blocking().pubsub_numsub(cache.tier.channel.encode("utf-8", "surrogatepass"))[0][1] == 1)
    assert cache.set((key, 1), key) and other.get((key, 1)) == key
    cache.invalidate(tag=key)
    wait_until(lambda: key not in other.cache)
    assert other.get(key) is None
    cache.delete((key, 1))
    wait_until(lambda: (key, 1) not in other.cache)
    store = cache.stats()["store"]
    assert store["failures"] == store["pending"] == 0 and store["state"] == "closed"


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


def test_keys_that_are_equal_are_one_key_in_the_store(make: Any) -> None:
    cache, other = make(), make()
    for key, equal in ((Colour.RED, "red"), (Number.ONE, 1), (True, 1.0), ((Colour.RED, Number.ONE, False), ("red", 1, 0))):
        assert cache.tier.name_of(key) == cache.tier.name_of(equal)
        cache[key] = "old"
        assert other[equal] == "old"
        other.delete(equal)
        assert make().get(key) is None


@pytest.mark.parametrize("where", ["prefix", "pattern"])
def test_what_a_removal_takes_from_memory_it_takes_from_the_store(make: Any, where: str) -> None:
    cache, other = make(), make(listen=True)
    wait_until(lambda: cache.tier._blocking().pubsub_numsub(cache.tier.channel)[0][1] == 1)
    keys = [
        "u:a",
        "u:1",
        "u:!",
        "u:^",
        "u:ü",
        "u:\udce9",
        "u\\a",
        "u:a*",
        "u:[x]",
        "u:7:" + "x" * 300,
        "u:7:" + "x" * 299 + "y",
        "v:*",
        "}:lock",
    ]
    beginnings = ["u:", "u:[", "u\\", "u:a*", "v", "u:7:" + "x" * 299, "u:7:xx", "", "absent"]
    patterns = ["u:[!0-9]", "u:[^1]", "u:?", "u\\a", "u:[[]x]", "*", "u:*x", "u:a*", "v:[*]", "u:7:" + "x" * 300, "absent*"]
    for one in beginnings if where == "prefix" else patterns:
        cache.set_many(dict.fromkeys(keys, 1))
        other.get_many(keys)
        cache.invalidate(**{where: one})
        kept = set(cache.cache)
        wait_until(lambda kept=kept: set(other.cache) <= kept)  # type: ignore[misc]
        stored = set(make().get_many(keys))
        # Of long keys the store knows the beginning alone, and rather removes too many.
        assert {key for key in kept if len(key) < 198} <= stored <= kept, one


class Hooked:
    """JSON that calls a hook once, between the answer of the store and the memory."""

    def __init__(self) -> None:
        self.hook: Callable[[], Any] | None = None

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        hook, self.hook = self.hook, None
        if hook is not None:
            in_another_thread(hook)
        return json.loads(data)


def in_another_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


async def read_and_close(cache: TieredCache[Any, Any], key: Any) -> Any:
    try:
        return await cache.aget(key)
    finally:
        await cache.tier.aclose()


@pytest.mark.parametrize("read", ["get", "get_many", "get_or_set", "aget"])
@pytest.mark.parametrize("change", ["delete", "set", "tag", "prefix", "clear", "heard"])
def test_what_was_read_before_a_change_is_not_kept_in_memory_after_it(make: Any, read: str, change: str) -> None:
    serializer = Hooked()
    cache, other = make(serializer=serializer), make(serializer=Hooked())
    cache.set("k", "old", tags=["t"])
    cache.cache.clear()

    def hear() -> None:
        other.delete("k")
        listener = _Listener(cache.cache, cache.tier, cache._changes)
        listener._hear(json.dumps({"from": "another", "keys": [cache.tier.name_of("k")]}).encode())

    serializer.hook = {
        "delete": lambda: cache.delete("k"),
        "set": lambda: cache.set("k", "new"),
        "tag": lambda: cache.invalidate(tag="t"),
        "prefix": lambda: cache.invalidate(prefix="k"),
        "clear": cache.clear,
        "heard": hear,
    }[change]
    {
        "get": lambda: cache.get("k"),
        "get_many": lambda: cache.get_many(["k"]),
        "get_or_set": lambda: cache.get_or_set("k", lambda: "loaded"),
        "aget": lambda: asyncio.run(read_and_close(cache, "k")),
    }[read]()
    assert serializer.hook is None
    # Tokens of tags are read after the value: a removal by tag was seen, and the key loaded anew.
    then = {"set": "new", "tag": "loaded" if read == "get_or_set" else None}.get(change)
    assert cache.get("k") == make(serializer=Hooked()).get("k") == then


def test_what_is_read_while_a_removal_is_under_way_is_not_kept(make: Any) -> None:
    serializer = Hooked()
    cache = make(serializer=serializer)
    cache.set("k", "old")
    cache.cache.clear()
    reached, go_on = threading.Event(), threading.Event()
    run = cache.tier.run

    def slow(*args: Any, **more: Any) -> Any:
        if more.get("keys"):
            reached.set()
            assert go_on.wait(20)
        return run(*args, **more)

    cache.tier.run = slow
    thread = threading.Thread(target=cache.delete, args=("k",))
    thread.start()
    assert reached.wait(20)
    assert cache.get("k") == "old"  # Redis still has it
    go_on.set()
    thread.join(20)
    assert cache.get("k") is None


@pytest.mark.parametrize("lock_s", [0, 2.0])
@pytest.mark.parametrize("how", ["prefix", "pattern", "delete", "set", "own set"])
def test_a_load_is_void_when_its_key_is_changed_meanwhile_whether_it_holds_a_lock_or_not(
    make: Any, how: str, lock_s: float
) -> None:
    cache, other = make(lock_s=lock_s), make()
    cache.set("warm", 1)

    def load() -> str:
        {
            "prefix": lambda: other.invalidate(prefix="u:"),
            "pattern": lambda: other.invalidate(pattern="?:[!2]"),
            "delete": lambda: other.delete("u:1"),
            "set": lambda: other.set("u:1", "new"),
            "own set": lambda: in_another_thread(lambda: cache.set("u:1", "new")),
        }[how]()
        return "old"

    assert cache.get_or_set("u:1", load) == "old"
    assert make().get("u:1") == ("new" if "set" in how else None)
    assert cache.stats()["store"]["void"] == 1 and cache.stats()["store"]["stored"] == 1 + (how == "own set")
    if how == "own set":
        assert cache.get("u:1") == "new"


def test_a_load_that_outlasts_its_lock_is_stored_and_counted(make: Any, server: Server) -> None:
    cache, other = make(), make(lock_s=0.2)

    def load() -> str:
        server.client.delete("{" + cache.tier.name_of("k") + "}:lock")  # it expires
        assert other.get_or_set("k", lambda: "another's") == "another's"
        return "mine"

    assert cache.get_or_set("k", load) == "mine"
    assert make().get("k") == "another's"  # it was there first
    assert cache.stats()["store"]["void"] == 1
    assert cache.get_or_set("j", lambda: server.client.delete("{" + cache.tier.name_of("j") + "}:lock")) == 1
    assert make().get("j") == 1 and cache.stats()["store"]["late"] == 1
    assert server.client.keys("*}:lo*") == []


def test_lifetimes_that_a_cache_computes_are_those_of_the_store_too(server: Server) -> None:
    rules: dict[str, Callable[[], Any]] = {
        "callable": lambda: Cache(100, ttl=lambda value: 0.4),
        "ttu": lambda: TLRUCache(100, lambda key, value, now: now + 0.4),
        "inf": lambda: TTLCache(100, float("inf")),
        "long": lambda: TTLCache(100, 1e12),
    }
    for name, rule in rules.items():
        cache, other = (
            TieredCache[Any, Any](rule(), RedisTier(server.url, timeout_s=1.0, namespace=name), listen=False) for _ in "12"
        )
        assert cache.set("set", 1) and cache.get_or_set("loaded", lambda: 1) == 1
        for key in ("set", "loaded"):
            left_ms = server.client.pttl(cache.tier.name_of(key))
            assert 0 < left_ms <= {"inf": 86_400_000, "long": 100 * 365 * 86_400_000}.get(name, 400)
            assert other.get(key) == 1
        if name in ("callable", "ttu"):
            began_s = time.monotonic()
            wait_until(lambda: other.get("set") is other.get("loaded") is None)  # noqa: B023
            assert time.monotonic() - began_s < 0.4 + 0.3
    own = TieredCache[Any, Any](LRUCache(100), RedisTier(server.url, timeout_s=1.0), listen=False)
    assert own.set("k", 1, ttl=float("inf")) and own.set("j", 1)
    assert not own.set("k", 2, ttl=0) and own.get("k") is None  # it has expired already
    own.set("by value", 3, ttl=lambda value: value)  # type: ignore[arg-type]
    assert 2000 < server.client.pttl(own.tier.name_of("by value")) <= 3000


def test_a_value_that_expires_between_two_commands_is_a_miss(make: Any) -> None:
    cache = make(ttl=None)
    cache.set("k", 1)
    plan = cache.tier.plan_get([cache.tier.name_of("k")])
    with (budget := Budget(1.0)):
        token, data, _ = cache.tier._execute(next(plan), budget)
    with pytest.raises(StopIteration) as ended:
        plan.send([token, data, -2])
    assert ended.value.value == {}


def test_a_process_that_forks_and_its_children_hear_of_each_other(server: Server, tmp_path: Path) -> None:
    program = """
import os, sys, time
from memwatch.caches import LRUCache, RedisTier, TieredCache
cache = TieredCache(LRUCache(10, ttl=60), RedisTier(sys.argv[1], timeout_s=5.0))

def wait_until(condition):
    until_s = time.monotonic() + 20
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.01)
    return condition()

def listeners():
    return cache.tier._blocking().pubsub_numsub(cache.tier.channel)[0][1]

wait_until(lambda: listeners() == 1)
cache.set("k", "old")
cache.set("j", "old")
heard, written = os.pipe()
child = os.fork()
if child == 0:
    cache.set("k", "new")
    wait_until(lambda: "j" not in cache.cache)     # it listens
    cache.get("j")
    os.write(written, b"x")
    os._exit(0 if wait_until(lambda: cache.get("j") == "new") else 1)
print(wait_until(lambda: cache.get("k") == "new"))
os.read(heard, 1)
cache.set("j", "new")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["True", "0"], ran.stderr


@pytest.mark.parametrize("drip_s, late_s", [(0.05, 0.0), (0.0, 0.06)], ids=["byte by byte", "answer by answer"])
def test_a_server_that_answers_too_slowly_holds_a_call_no_longer_than_one_that_does_not(drip_s: float, late_s: float) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    for command in data.split(b"*")[1:]:
                        if b"HELLO" in command or b"CLIENT" in command:
                            connection.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n" if b"HELLO" in command else b"+OK\r\n")
                            continue
                        time.sleep(late_s)
                        for letter in b"$40\r\n" + b"x" * 40 + b"\r\n":
                            connection.sendall(bytes([letter]))
                            time.sleep(drip_s)
            except OSError:
                pass  # it was hung up

    def accept() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    tier = RedisTier(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.3)
    cache = TieredCache[Any, Any](LRUCache(10), tier, listen=False)
    assert longest([lambda: cache.get("k"), lambda: cache.get_many(range(50))]) < 0.3 + 0.5
    assert tier.statistics().failures >= 1
    cache.close()
    listening.close()


def test_loops_that_have_ended_leave_no_connection(server: Server) -> None:
    program = """
import asyncio, gc, os, sys
from memwatch.caches import LRUCache, RedisTier, TieredCache
cache = TieredCache(LRUCache(10), RedisTier(sys.argv[1], timeout_s=5.0), listen=False)
asyncio.run(cache.aget("first"))
before = len(os.listdir("/proc/self/fd"))
for number in range(20):
    asyncio.run(cache.aget(number))
gc.collect()
print(len(os.listdir("/proc/self/fd")) - before, cache.stats()["store"]["failures"])
"""
    ran = subprocess.run([sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["0", "0"], ran.stdout + ran.stderr


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_a_value_that_unpacks_to_more_than_may_be_is_refused_before_it_has(method: Any) -> None:
    large = Codec("json", Compress(10, 0.9, method)).encode("a" * 50_000_000, {})
    small = Codec("json", Compress(10, 0.9, method), 100_000)
    tracemalloc.start()
    try:
        with pytest.raises(ForeignError, match="more than 100000 bytes"):
            small.decode(large)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    fits = "a" * 99_998  # and its quotation marks
    assert small.decode(small.encode(fits, {})).value == fits
    with pytest.raises(ForeignError):
        small.decode(small.encode(fits, {})[:-4])


def test_a_client_that_answers_with_text_is_refused_with_what_to_do(server: Server) -> None:
    match = "give a client that answers with bytes"
    with redis.Redis(port=server.port, decode_responses=True) as client, pytest.raises(ValueError, match=match):
        RedisTier(client=client)


def test_a_cached_function_and_coroutine_share_their_results_between_processes(make: Any) -> None:
    calls: list[Any] = []

    def decorated(cache: Any) -> tuple[Any, Any]:
        @cached(cache, info=True, tags="t")
        def compute(number: int, *, scale: int = 1) -> int:
            calls.append(number)
            return number * scale

        @cached(cache)
        async def fetch(name: str) -> str:
            calls.append(name)
            return name.upper()

        return compute, fetch

    (one, one_async), (other, other_async) = decorated(make()), decorated(make())
    assert one(2, scale=3) == other(2, scale=3) == other(2, scale=3) == 6 and calls == [2]
    assert other.cache_info().hits == 1

    async def main() -> None:
        assert await one_async("a") == await other_async("a") == "A" and calls == [2, "a"]
        for function in (one_async, other_async):
            await function.cache.tier.aclose()

    asyncio.run(main())
    one.cache.invalidate(tag="t")
    assert make().get((2, "\0keywords", ("scale", 3))) is None


@pytest.mark.parametrize("code", ["LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH", "TRYAGAIN"])
def test_an_answer_that_says_it_cannot_work_now_is_a_failure_as_redis_py_tells_it(code: str) -> None:
    answer = redis._parsers.base.BaseParser.parse_error(f"{code} for a while")
    assert _is_away(answer) and not _is_away(redis._parsers.base.BaseParser.parse_error("WRONGTYPE of a key"))


def test_what_cannot_be_serialised_is_said_with_its_type_and_kept_in_memory(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    users: Any = TieredCache(LRUCache(100), RedisTier(server.url))
    assert users.set("u:1", (1, 2)) is False
    assert users["u:1"] == (1, 2)
    assert "a value of type builtins.tuple is kept in memory alone" in caplog.text
    assert "JSON gives tuples back as lists" in caplog.text


def test_membership_asks_memory_and_the_store_and_iterating_is_refused(server: Server) -> None:
    users: Any = TieredCache(LRUCache(100), RedisTier(server.url))
    users.set("u:8", "one")
    users.set(0, "zero")
    other: Any = TieredCache(LRUCache(100), RedisTier(server.url))
    assert "u:8" in users
    assert "u:8" in other
    assert "u:9" not in users
    assert "zero" not in users
    with pytest.raises(TypeError, match="not iterable"):
        iter(users)


@pytest.mark.parametrize("argument", ["timeout_s", "ttl_s", "lock_s"])
def test_seconds_that_are_no_number_are_refused_by_name(argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: '1d' is not a number of seconds"):
        RedisTier("redis://127.0.0.1:1", **{argument: "1d"})  # type: ignore[arg-type]
