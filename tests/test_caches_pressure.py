"""Caches under memory pressure: what each level takes, in which order, what is told of it, and how they grow back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memwatch
from memwatch import caches
from memwatch.caches import COLD, HOT, PERMANENT, LRUCache, RemovalCause, registry
from memwatch.model import Event
from memwatch.record import find_records, read_report
from memwatch.testing import FakeClock
from memwatch.watcher import Watcher

MIB = 2.0**20


@pytest.fixture(autouse=True)
def only_these_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_caches", {})  # what other tests have left alive would be shrunk, and counted


def cache_of(name: str, **more: Any) -> Any:
    """100 entries of 10,000 bytes."""
    cache = LRUCache[int, int](100, max_bytes=2_000_000, sizeof=lambda value: 10_000, name=name, **more)
    cache.update({number: number for number in range(100)})
    return cache


class Process:
    """A source of vitals that shows one RSS per tick, however often it is read in between."""

    def __init__(self, rss_mib: list[float], clock: FakeClock) -> None:
        self._rss_mib, self._clock, self._began_s = rss_mib, clock, clock.monotonic()

    def read(self, on_error: object = None) -> dict[str, float]:
        number = int((self._clock.monotonic() - self._began_s) / 10)
        return {"rss": self._rss_mib[number] * MIB, "heap": 50 * MIB, "cpu": 1.0}


def watched(rss_mib: list[float], tmp_path: Path | None = None) -> tuple[Watcher, FakeClock]:
    clock = FakeClock()
    source = Process(rss_mib, clock)
    directory = False if tmp_path is None else tmp_path
    return Watcher(interval="10s", memory_limit="100MiB", directory=directory, clock=clock, source=source), clock


def ticks(watcher: Watcher, clock: FakeClock, count: int = 1) -> list[Event]:
    before = len(watcher.report().events)
    for _ in range(count):
        watcher.tick()
        clock.advance(10)
    return list(watcher.report().events[before:])


def test_each_level_shrinks_every_cache_once_the_coldest_first_and_permanent_ones_at_critical_only() -> None:
    order: list[str] = []
    made = {
        name: cache_of(name, tier=tier, on_remove=lambda key, value, cause, name=name: order.append(name))
        for name, tier in {"hot": HOT, "permanent": PERMANENT, "cold": COLD}.items()
    }
    held = made["hot"].bytes
    watcher, clock = watched([50, 71, 71, 71, 86, 86])
    ticks(watcher, clock)
    events = ticks(watcher, clock)
    assert [round(cache.bytes / held, 1) for cache in made.values()] == [0.7, 1.0, 0.7]
    assert order == ["cold"] * 30 + ["hot"] * 30
    steps = {event.details["step"]: event.details for event in events if event.what == "relief"}
    assert list(steps)[:2] == ["caches expired", "caches shrunk to 70 %"]
    assert steps["caches shrunk to 70 %"]["freed"] == pytest.approx(0.6 * held, rel=0.02)
    assert steps["caches shrunk to 70 %"]["entries"] == 60
    ticks(watcher, clock, 2)
    assert len(order) == 60  # once per level, however long it lasts
    ticks(watcher, clock)
    assert [round(cache.bytes / held, 2) for cache in made.values()] == [0.4, 0.4, 0.4]
    assert made["hot"].stats().removals == {RemovalCause.PRESSURE: 60}


def test_a_shrunk_cache_stays_small_while_the_level_lasts_and_grows_back_in_steps_after_it() -> None:
    cache = cache_of("c")
    watcher, clock = watched([50, 72, 72, 68, 50, 50] + [50] * 30)
    ticks(watcher, clock, 3)
    for number in range(1000):
        cache[number] = number
    assert cache.entries == 70 and cache.room < 0.72
    ticks(watcher, clock)  # 68 is above 70 less the margin: the level lasts
    for number in range(1000):
        cache[number] = number
    assert cache.entries == 70
    ticks(watcher, clock, 2)
    for number in range(1000):
        cache[number] = number
    assert 70 < cache.entries < 100
    ticks(watcher, clock, 25)
    for number in range(1000):
        cache[number] = number
    assert cache.entries == 100 and cache.room == 1.0


def test_a_cache_without_a_bound_in_bytes_gives_entries_back() -> None:
    cache: Any = LRUCache(1000, name="plain")
    cache.update(dict.fromkeys(range(500), "x" * 1000))
    watcher, clock = watched([50, 71])
    events = ticks(watcher, clock, 2)
    assert cache.entries == 350
    freed = next(event.details["freed"] for event in events if event.details.get("step") == "caches shrunk to 70 %")
    assert freed == pytest.approx(150 * 1260, rel=0.1)  # estimated
    cache.update(dict.fromkeys(range(2000), "x"))
    assert cache.entries == 350


def test_the_report_says_when_rss_cannot_follow_what_the_caches_freed() -> None:
    big: Any = LRUCache(100, max_bytes="1GiB", sizeof=lambda value: 10_000_000)
    big.update({number: number for number in range(100)})
    watcher, clock = watched([50, 71])
    notes = [event.details["note"] for event in ticks(watcher, clock, 2) if event.what == "note"]
    assert len(notes) == 1 and notes[0].startswith("RSS cannot follow: 286 MiB of the 286 MiB that the caches freed stays resident")


def test_what_nobody_reads_is_dropped_by_the_periodic_clean_up() -> None:
    now = [0.0]
    gone: list[int] = []
    cache = cache_of("c", ttl=60, timer=lambda: now[0], on_remove=lambda key, value, cause: gone.append(key))
    watcher, clock = watched([50] * 40)
    ticks(watcher, clock)
    now[0] = 100.0
    events = ticks(watcher, clock, 31)  # 5 minutes
    assert len(gone) == 100 and cache.bytes == 0
    assert [event.details["entries"] for event in events if event.details.get("step") == "caches expired"] == [100]


def test_a_report_and_the_record_tell_what_each_cache_holds_and_did(tmp_path: Path) -> None:
    cache = cache_of("sessions", tier=HOT)
    cache[1], cache.get("absent")
    plain: Any = LRUCache(50, name="plain")
    plain["k"] = "v" * 1000
    watcher, clock = watched([50, 50], tmp_path)
    ticks(watcher, clock, 2)
    report = watcher.report()
    rows = {row["name"]: row for row in report.caches}
    assert rows["sessions"]["entries"] == 100 and rows["sessions"]["hit_ratio"] == 0.5
    assert rows["plain"]["is_estimated"] and rows["plain"]["bytes"] == pytest.approx(1260, rel=0.1)
    assert report.statistics.channels["caches"].current == cache.bytes
    text = report.render()
    assert "sessions  " in text and "50 % hits" in text and "100 entries of 100" in text and "plain" in text
    assert "sessions" in report.render("markdown")
    watcher.stop()
    recorded = read_report(next(iter(find_records(tmp_path))))
    assert {row["name"] for row in recorded.caches} == {"sessions", "plain"}
    json.dumps(report.to_dict())


def test_all_caches_can_be_seen_shrunk_expired_and_emptied_and_are_not_kept() -> None:
    first, second = cache_of("c"), cache_of("c")
    assert caches.all() == [first, second] and set(caches.stats()) == {"c", "c (2)"}
    held = first.bytes
    assert caches.shrink(bytes=held) == pytest.approx(held, rel=0.03) and first.bytes == second.bytes
    assert caches.expire() == 0
    caches.clear()
    assert first.entries == second.entries == 0
    del first, second
    assert caches.all() == []


def test_a_cache_that_fails_does_not_spare_the_others_and_the_watch_goes_on() -> None:
    class Proxy:
        @property
        def __class__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("working outside of request context")

    proxies: Any = LRUCache(10, name="proxies")
    proxies["p"] = Proxy()

    def broken() -> float:
        raise OSError("no clock")

    clockless: Any = LRUCache(10, name="clockless", ttl=5)
    clockless["k"] = 1
    clockless._now = broken
    good = cache_of("good")
    watcher, clock = watched([50, 86, 86])
    ticks(watcher, clock, 3)
    assert good.entries == 40 and watcher.failures == {}


def test_when_the_watch_ends_bounds_are_whole_and_paused_jobs_go_on() -> None:
    cache = cache_of("c")
    watcher, clock = watched([50, 86])
    ticks(watcher, clock, 2)
    assert cache.room < 1 and registry.is_under_pressure()
    watcher.stop()
    assert cache.room == 1 and not registry.is_under_pressure()


SERVICE = """
import functools, gc, json, random, sys, time
import memwatch
from memwatch.caches import LRUCache

kind, limit_mib = sys.argv[1], float(sys.argv[2])
watcher = memwatch.start(interval="0.05s", memory_limit=f"{limit_mib:.0f}MiB", directory=False, evidence="off")
if kind == "memwatch":
    cache = LRUCache(10**9, max_bytes="2GiB")
    get = lambda key: cache.get_or_set(key, lambda: bytes(10_000))
else:
    get = functools.lru_cache(10**9)(lambda key: bytes(10_000))
chance = random.Random(1)
began, peak = time.monotonic(), 0.0
for number in range(60_000):
    get(int(60_000 * chance.random() ** 3))
    if number % 50 == 0:
        time.sleep(0.002)
        # Not ru_maxrss: that begins with the size of whoever started this program.
        peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) / 1024
hits = cache.stats().hit_ratio if kind == "memwatch" else get.cache_info().hits / 60_000
print(json.dumps({"peak_mib": peak, "hits": hits}))
"""


def test_a_service_whose_caches_want_several_times_its_limit_stays_under_it() -> None:
    def run(kind: str) -> Any:
        done = subprocess.run([sys.executable, "-c", SERVICE, kind, "160"], capture_output=True, text=True, timeout=180, check=True)
        return json.loads(done.stdout)

    bounded, unbounded = run("memwatch"), run("functools")
    assert unbounded["peak_mib"] > 250  # the contrast: it takes what it wants
    assert bounded["peak_mib"] < 160
    assert bounded["hits"] > 0.3 and memwatch.__version__
