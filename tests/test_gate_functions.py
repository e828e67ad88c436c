"""`limit`, `assert_no_leak`, `assert_collected` and `checkpoint`, outside pytest's plugin."""

# ruff: noqa: SIM115 - files are left open on purpose

from __future__ import annotations

import functools
import gc
import socket
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memwatch
from memwatch import MemoryGrowth
from memwatch.gate.limits import LimitError
from memwatch.gate.peaks import EngineMissing, PeakMeter, has_memray

KEPT: list[Any] = []
Run = Callable[..., Any]


class Thing:
    """Can be weakly referenced."""

    def __init__(self) -> None:
        self.me: Thing | None = None


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    KEPT.clear()


def test_a_block_over_its_limit_fails_and_says_how_it_was_measured() -> None:
    with (
        pytest.raises(
            MemoryGrowth, match=r"the block keeps 4.7\d MiB \(small Python blocks .*malloc 4.77 MiB.*limit 1.00 MiB; measured once"
        ),
        memwatch.limit(growth="1MiB"),
    ):
        KEPT.append(bytearray(5_000_000))


def test_a_block_within_its_limit_tells_its_numbers() -> None:
    with memwatch.limit(growth="10MB") as measured:
        KEPT.append(bytearray(5_000_000))
    assert measured.growth is not None and abs(measured.growth - 5_000_000) < 100_000
    assert measured.peak is None and measured.resources == ()


def test_garbage_does_not_count_as_kept() -> None:
    with memwatch.limit(growth="100kB"):
        pair: list[Any] = [bytearray(5_000_000)]
        pair.append(pair)
        del pair


def test_a_block_that_raises_is_not_judged() -> None:
    with pytest.raises(KeyError), memwatch.limit(growth=0):
        KEPT.append(bytearray(5_000_000))
        raise KeyError


@pytest.mark.parametrize("engine", ["auto", "tracemalloc", "rss"])
def test_a_peak_is_measured_by_every_engine(engine: str) -> None:
    with memwatch.limit(measure_peak=True, engine=engine) as measured:
        bytearray(b"x") * 40_000_000
    assert measured.peak is not None and 39_000_000 < measured.peak < 48_000_000
    with pytest.raises(MemoryGrowth, match="the block peaked at 3"), memwatch.limit(peak="20MB", engine=engine):
        bytearray(b"x") * 40_000_000


@pytest.mark.skipif(not has_memray(), reason="memray knows the lines of a peak")
def test_a_peak_is_told_with_the_line_that_allocated_it() -> None:
    with (
        pytest.raises(
            MemoryGrowth, match=r"the block peaked at .*\n  allocated at  test_gate_functions.py:\d+ .* 38.1 MiB"
        ) as caught,
        memwatch.limit(peak="20MB", engine="memray"),
    ):
        bytearray(b"x") * 40_000_000
    assert caught.value.finding["exceeded"] == ["peak"] and caught.value.finding["sites"][0]["bytes"] >= 40_000_000


def test_native_memory_that_no_engine_sees_shows_in_the_peak(python: Run) -> None:
    done = python("""
        import ctypes, memwatch
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        with memwatch.limit(measure_peak=True, engine="tracemalloc") as measured:
            block = libc.malloc(60_000_000)
            ctypes.memset(block, 1, 60_000_000)
            libc.free(block)
        print(measured.peak_engine, measured.peak > 55_000_000)
    """)  # fmt: skip
    assert done.stdout.split() == ["rss", "True"]


def test_resources_of_a_block_are_counted_where_a_limit_is_given() -> None:
    with pytest.raises(MemoryGrowth, match="the block leaves 1 open descriptor: file"), memwatch.limit(fds=0):
        KEPT.append(Path(__file__).open())
    KEPT.pop().close()
    with memwatch.limit(fds=1, threads=0):
        KEPT.append(Path(__file__).open())
    KEPT.pop().close()


@pytest.mark.parametrize("given", [{"growth": "lots"}, {"peak": -1}, {"fds": "many"}, {"threads": -1}, {"growth": 1.5}])
def test_a_malformed_limit_is_refused_before_the_block(given: dict[str, Any]) -> None:
    with pytest.raises(LimitError):
        memwatch.limit(**given)


def test_an_engine_that_is_asked_for_and_missing_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "memray", None)
    assert not _finds_memray()
    with pytest.raises(EngineMissing, match="pip install memray"):
        PeakMeter("memray")


def _finds_memray() -> bool:
    try:
        return has_memray()
    except ValueError:
        return False


# -- assert_no_leak --------------------------------------------------------------------------------------------------------------


def test_a_function_that_leaks_is_told_with_its_rate_its_line_and_its_holder() -> None:
    with pytest.raises(MemoryGrowth) as caught:
        memwatch.assert_no_leak(lambda: KEPT.append(bytearray(1000)), times=100)
    assert 1000 <= caught.value.finding["per_call"] < 1300
    message = str(caught.value)
    assert "of Python memory" in message and "test_gate_functions.py" in message and "KEPT (list" in message


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda: [bytearray(10_000) for _ in range(10)],
        lambda: [].append([]),
        lambda: threading.Thread(target=int).start(),
        lambda: socket.socket().close(),
    ],
    ids=["nothing", "freed", "lists", "threads", "sockets"],
)
def test_a_function_that_does_not_leak_passes(function: Callable[[], object]) -> None:
    assert memwatch.assert_no_leak(function, times=50) <= 1


def test_garbage_cycles_and_caches_that_fill_are_no_leak() -> None:
    @functools.lru_cache(maxsize=64)
    def cached(number: int) -> bytes:
        return bytes(2000)

    numbers = iter(range(10**9))

    def call() -> None:
        thing = Thing()
        thing.me = thing
        cached(next(numbers))

    memwatch.assert_no_leak(call, times=100)


def test_a_leak_of_sixteen_bytes_in_c_is_found(python: Run) -> None:
    done = python("""
        import ctypes, memwatch
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p

        def leaks():
            libc.malloc(16)

        try:
            memwatch.assert_no_leak(leaks)
        except memwatch.MemoryGrowth as error:
            print(error)
    """)  # fmt: skip
    assert "of native memory" in done.stdout and "program.py:7 leaks" in done.stdout


def test_a_file_left_by_every_call_is_found() -> None:
    with pytest.raises(MemoryGrowth, match=r"each round leaves more: 1\d open descriptors after 1\d calls: file"):
        memwatch.assert_no_leak(lambda: KEPT.append(Path(__file__).open()), times=10, per_call="1MB", warmup=1)
    for file in KEPT:
        file.close()


def test_the_arguments_of_assert_no_leak_are_checked() -> None:
    with pytest.raises(ValueError, match="times is at least 1"):
        memwatch.assert_no_leak(int, times=0)
    with pytest.raises(LimitError):
        memwatch.assert_no_leak(int, per_call="lots")


# -- assert_collected ------------------------------------------------------------------------------------------------------------


def test_an_object_that_is_held_is_told_with_its_holder() -> None:
    thing = Thing()
    KEPT.append({"session": thing})
    with pytest.raises(MemoryGrowth, match=r"Thing is still alive\n  held by  module .*test_gate_functions → KEPT \(list.*session"):
        memwatch.assert_collected(thing)
    with pytest.raises(MemoryGrowth):
        memwatch.assert_collected(weakref.ref(thing), what="the session")


def test_an_object_that_only_the_caller_holds_is_as_good_as_collected() -> None:
    thing = Thing()
    thing.me = thing
    memwatch.assert_collected(thing)


def test_what_another_thread_is_collecting_meanwhile_is_waited_for() -> None:
    """`gc.collect` does nothing while another thread collects, and a callback of it lets this one run."""
    collecting, ended = threading.Event(), threading.Event()

    def slow(phase: str, info: object) -> None:
        if threading.current_thread() is other and phase == "start":
            collecting.set()
            ended.wait(0.05)

    other = threading.Thread(target=gc.collect)
    gc.callbacks.append(slow)
    try:
        thing = Thing()
        thing.me = thing
        reference = weakref.ref(thing)
        del thing
        other.start()
        assert collecting.wait(10)
        memwatch.assert_collected(reference)
    finally:
        gc.callbacks.remove(slow)
        ended.set()
        other.join()


def test_a_weak_reference_has_to_be_dead() -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    with pytest.raises(MemoryGrowth, match="local variable thing of test_a_weak_reference_has_to_be_dead"):
        memwatch.assert_collected(reference)
    thing.me = thing
    del thing
    memwatch.assert_collected(reference)


def test_what_is_frozen_is_searched_as_well() -> None:
    thing = Thing()
    KEPT.append(thing)
    gc.freeze()
    try:
        with pytest.raises(MemoryGrowth, match="KEPT"):
            memwatch.assert_collected(thing)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


# -- checkpoint ------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_tells_the_growth_since_the_one_before() -> None:
    memwatch.checkpoint("start")
    KEPT.append(bytearray(2_000_000))
    point = memwatch.checkpoint("after load")
    assert point.growth.heap is not None and abs(point.growth.heap - 2_000_000) < 100_000
    KEPT.append(bytearray(2_000_000))
    with pytest.raises(MemoryGrowth, match="kept between 'after load' and 'after more'"):
        memwatch.checkpoint("after more", growth="1MB")
