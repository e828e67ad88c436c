"""The sampler's numbers against the truth, where they can be known: sizes of objects, counts of calls, the order of events.

Estimates are random. What is asserted allows at least six standard errors: for n blocks of one size of which each is sampled with
probability p, the relative standard error is sqrt((1 - p) / (p n)).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import random
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    pytest.skip("elsewhere: the sampler declines on free-threaded Python", allow_module_level=True)

from memwatch.evidence import _sampler as sampler

HERE = __file__[-300:]


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    sampler.stop()
    yield
    sampler.stop()


def probability(size: float, mean: float) -> float:
    return -math.expm1(-size / mean)


def tolerance(size: float, count: float, mean: float, sigmas: float = 6) -> float:
    """Six standard errors of the estimate of `count` blocks of one size, in bytes."""
    p = probability(size, mean)
    return sigmas * size * count * math.sqrt((1 - p) / (p * count))


def held(*names: str) -> dict[str, tuple[float, float, int]]:
    """Bytes, count and samples by the innermost function of this file that is one of *names*."""
    totals = dict.fromkeys(names, (0.0, 0.0, 0))
    for key, size, count, samples, _, _ in sampler.live():
        frames = sampler.stack(key)
        assert frames is not None
        for filename, name, _ in frames:
            function = name.removesuffix(".<locals>.<listcomp>").rpartition(".")[2]
            if filename == HERE and function in totals:
                before = totals[function]
                totals[function] = (before[0] + size, before[1] + count, before[2] + samples)
                break
    return totals


def blobs_seen() -> int:
    """The samples of blocks of 100 kB: at these means each is sampled for sure."""
    return sum(
        1 for _, size, _, key, _ in sampler.blocks() if size > 90_000 and (sampler.stack(key) or [("", "")])[0][1] == "blobs"
    )


class Pair:
    __slots__ = ("first", "second")


def pairs(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = Pair()
    return made


def appended(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = []
        for _ in range(20):
            made[place].append(None)
    return made


def dicts(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = {"first": 1, "second": 2, "third": 3}
    return made


def strings(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = "x" * 100 + "y" * (1 + place % 7)
    return made


def buffers(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = bytearray()
        for _ in range(40):
            made[place].extend(b"x" * 100)
    return made


def blobs(count: int) -> list[Any]:
    made: list[Any] = [None] * count
    for place in range(count):
        made[place] = bytes(100_000)
    return made


def received(count: int) -> list[Any]:
    """Read into 64 KiB, shrunk to what came: a small block outside pymalloc's arenas."""
    made: list[Any] = [None] * count
    reader, writer = os.pipe()
    for place in range(count):
        os.write(writer, b"x" * 300)
        made[place] = os.read(reader, 65536)
    os.close(reader)
    os.close(writer)
    return made


SITES: list[tuple[Callable[[int], list[Any]], int]] = [
    (pairs, 40_000),
    (appended, 8_000),
    (dicts, 8_000),
    (strings, 15_000),
    (buffers, 800),
    (blobs, 150),
    (received, 6_000),
]


@pytest.mark.parametrize("mean", [2048, 16384, 65536])
def test_what_each_site_holds_is_estimated_within_what_chance_allows(mean: int) -> None:
    sampler.start(mean)
    kept = {site.__name__: site(count) for site, count in SITES}
    found = held(*kept)
    for name, made in kept.items():
        truth = sum(map(sys.getsizeof, made))
        size = truth / len(made)
        # Beside the objects there is the list that holds them, of 8 bytes each, which is one large block.
        own = sys.getsizeof(made)
        allowed = tolerance(size, len(made), mean) + 6 * own * math.sqrt((1 - probability(own, mean)) / probability(own, mean))
        if name == "appended":
            allowed = (
                tolerance(56 + 16, len(made), mean) + tolerance(size - 72, len(made), mean) + allowed
            )  # object and array apart
        assert abs(found[name][0] - truth - own) < allowed, (name, found[name], truth + own, allowed)


def test_the_count_of_blocks_is_estimated_too() -> None:
    sampler.start(4096)
    kept = strings(20_000)
    assert abs(held("strings")["strings"][1] - 20_000) < 6 * math.sqrt(20_000 / probability(152, 4096))
    assert len(kept) == 20_000


def test_the_estimate_has_no_bias() -> None:
    """Forty rounds: an error of the mean of a percent or two would show, as from counting a block twice."""
    sampler.start(1024)
    ratios: dict[str, list[float]] = {"appended": [], "buffers": [], "received": [], "dicts": []}
    for _ in range(40):
        for name, site, count in (
            ("appended", appended, 600),
            ("buffers", buffers, 60),
            ("received", received, 400),
            ("dicts", dicts, 600),
        ):
            kept = site(count)
            truth = sum(map(sys.getsizeof, kept)) + sys.getsizeof(kept)
            ratios[name].append(held(name)[name][0] / truth)
            del kept
    for name, values in ratios.items():
        centre = sum(values) / len(values)
        error = math.sqrt(sum((value - centre) ** 2 for value in values) / len(values) / (len(values) - 1))
        assert abs(centre - 1) < max(5 * error, 0.005), (name, centre, error)
        assert error < 0.02, (name, error)


def test_freed_memory_disappears() -> None:
    sampler.start(1024)
    kept: list[Any] = [site(count // 4) for site, count in SITES]
    names = [site.__name__ for site, _ in SITES]
    assert all(samples > 20 for _, _, samples in held(*names).values())
    kept.clear()
    gc.collect()
    left = held(*names)
    # Free lists of the interpreter keep a few blocks: at most some hundred objects.
    assert all(size < 100_000 for size, _, _ in left.values()), left
    assert sum(samples for _, _, samples in left.values()) < 60, left


def test_a_chain_of_reallocations_ends_as_one_block_or_none() -> None:
    sampler.start(1024)
    grown = bytearray()
    for step in range(2_000):
        grown.extend(b"x" * 40)
        if step % 7 == 0:
            del grown[-30:]
    addresses = [address for address, *_ in sampler.blocks()]
    assert len(addresses) == len(set(addresses))
    # With 70 kB at a mean of 1 kB it is sampled for sure, and once.
    name = "test_a_chain_of_reallocations_ends_as_one_block_or_none"
    large = [block for block in sampler.blocks() if block[1] > 40_000]
    assert [size for _, size, *_ in large] == [sys.getsizeof(grown) - sys.getsizeof(bytearray())]
    stack = sampler.stack(large[0][3])
    assert stack is not None
    assert stack[0][:2] == (HERE, name)
    del grown[100:]
    grown = bytearray(grown)
    assert [block for block in sampler.blocks() if block[1] > 40_000] == []


def test_a_block_is_found_at_its_address_with_its_size() -> None:
    sampler.start(1024)
    kept = bytes(300_000)
    (block,) = [block for block in sampler.blocks() if block[1] > 200_000]
    assert block[0] == id(kept)
    assert block[1] == sys.getsizeof(kept)
    assert block[2] == pytest.approx(block[1])
    assert [one for one in sampler.blocks(limit=3) if one] != []
    assert len(sampler.blocks(limit=1)) == 1
    assert sampler.blocks(limit=0) == []


def test_survivors_know_when_they_were_born() -> None:
    sampler.start(1024)
    before = time.monotonic()
    old = strings(500)
    between = time.monotonic()
    young = dicts(500)
    after = time.monotonic()
    for key, _, _, _, oldest, newest in sampler.live():
        frames = sampler.stack(key)
        assert frames is not None
        assert before <= oldest <= newest <= time.monotonic()
        if frames[0][1] == "strings":
            assert newest <= between
        if frames[0][1] == "dicts":
            assert between <= oldest <= newest <= after
    names = {frames[0][1] for key, *_ in sampler.live(between) if (frames := sampler.stack(key))}
    assert "dicts" in names
    assert "strings" not in names
    assert all(born >= between for *_, born in sampler.blocks(born_after_s=between))
    assert len(old) == len(young)


def test_a_stack_has_the_lines_that_allocated_innermost_first() -> None:
    def inner() -> bytes:
        return bytes(200_000)

    def outer() -> bytes:
        return inner()

    sampler.start(1024)
    kept = outer()
    (key,) = [key for _, size, _, key, _ in sampler.blocks() if size > 150_000]
    stack = sampler.stack(key)
    assert stack is not None
    name = "test_a_stack_has_the_lines_that_allocated_innermost_first"
    line = test_a_stack_has_the_lines_that_allocated_innermost_first.__code__.co_firstlineno
    assert stack[:3] == (
        (HERE, f"{name}.<locals>.inner", line + 2),
        (HERE, f"{name}.<locals>.outer", line + 5),
        (HERE, name, line + 8),
    )
    assert len(kept) == 200_000


def test_the_depth_limits_a_stack_from_the_innermost_frame() -> None:
    sampler.start(1024, depth=2)

    def deep(left: int) -> bytes:
        return deep(left - 1) if left else bytes(200_000)

    kept = deep(20)
    (key,) = [key for _, size, _, key, _ in sampler.blocks() if size > 150_000]
    stack = sampler.stack(key)
    assert stack is not None
    assert [name.rpartition(".")[2] for _, name, _ in stack] == ["deep", "deep"]
    assert len(kept) == 200_000


def test_generators_and_coroutines_are_in_the_stack() -> None:
    def produce() -> Iterator[bytes]:
        yield bytes(150_000)

    async def work() -> bytes:
        await asyncio.sleep(0)
        return bytes(160_000)

    async def main() -> bytes:
        return await asyncio.create_task(work())

    sampler.start(1024)
    kept = [*produce(), asyncio.run(main())]
    found = {size // 10_000: sampler.stack(key) for _, size, _, key, _ in sampler.blocks() if size > 140_000}
    assert next(name.rpartition(".")[2] for _, name, _ in found[15] or ()) == "produce"
    assert next(name.rpartition(".")[2] for _, name, _ in found[16] or ()) == "work"
    assert len(kept) == 2


def test_keys_are_the_same_in_every_snapshot_and_process(python: Any) -> None:
    program = """
    import memwatch.evidence._sampler as sampler
    junk = [object() for _ in range({junk})]
    sampler.start(1024)
    kept = bytes(200_000)
    first = [key for _, size, _, key, _ in sampler.blocks() if size > 150_000]
    sampler.stop(); sampler.start(1024)
    for _ in range(1):
        kept = bytes(200_000)
    print(*first, sampler.stack(first[0]))
    """
    one, two = (python(program.format(junk=junk)).stdout.split()[0] for junk in (10, 99))
    assert one == two
    assert 0 <= int(one) < 2**63


def test_unknown_keys_have_no_stack() -> None:
    assert sampler.stack(12345) is None
    sampler.start()
    assert sampler.stack(12345) is None
    assert sampler.stack(2**64 - 1) is None
    assert sampler.stack(-1) is None
    assert sampler.stack(2**70) is None
    with pytest.raises(TypeError):
        sampler.stack("key")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["plain", "straße", "файл", "目录", "🐍" * 9, "\udcff\udcfe", "x" * 400 + "é" * 100, ""])
def test_names_in_any_script_are_told_and_long_ones_cut(text: str) -> None:
    sampler.start(1024)
    space: dict[str, Any] = {}
    exec(compile("def make():\n return bytes(200_000)\n", f"/srv/{text}.py", "exec"), space)
    kept = space["make"]()
    (key,) = [key for _, size, _, key, _ in sampler.blocks() if size > 150_000]
    stack = sampler.stack(key)
    assert stack is not None
    filename, name, line = stack[0]
    whole = f"/srv/{text}.py".encode("utf-8", "replace").decode()
    assert (name, line) == ("make", 2)
    assert whole.endswith(filename)
    assert filename == whole or 297 <= len(filename.encode()) <= 300
    assert len(kept) == 200_000


def test_starting_twice_changes_the_settings_and_keeps_the_samples() -> None:
    assert not sampler.running()
    sampler.start(1024)
    kept = blobs(5)
    sampler.start(2**20, depth=3)
    assert sampler.running()
    figures = sampler.statistics()
    assert (figures["mean_bytes"], figures["depth"]) == (2**20, 3)
    assert blobs_seen() == len(kept)
    sampler.stop()
    assert not sampler.running()
    sampler.stop()
    assert [sampler.live(), sampler.blocks(), sampler.native()] == [[], [], []]
    assert sampler.statistics()["own_bytes"] == 0


@pytest.mark.parametrize("mean", [0, -1, 1023, 2**30 + 1, 2**62])
def test_a_mean_out_of_range_is_refused(mean: int) -> None:
    with pytest.raises(ValueError, match=str(mean)):
        sampler.set_mean(mean)
    with pytest.raises(ValueError, match=str(mean)):
        sampler.start(mean)
    assert not sampler.running()


def test_a_mean_that_is_no_number_and_a_depth_out_of_range_are_refused() -> None:
    with pytest.raises(TypeError):
        sampler.set_mean(2048.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sampler.start("64k")  # type: ignore[arg-type]
    for depth in (0, -1, 129):
        with pytest.raises(ValueError, match="depth"):
            sampler.start(depth=depth)


def test_changing_the_mean_at_any_time_leaves_the_totals_unbiased() -> None:
    truth, estimate, variance = 0.0, 0.0, 0.0
    kept: list[Any] = []
    sampler.start(1024)
    for round_ in range(60):
        mean = (1024, 65536, 4096, 262144)[round_ % 4]
        sampler.set_mean(mean)
        kept.append(strings(500))
        truth += sum(map(sys.getsizeof, kept[-1]))
        p = probability(152, mean)
        variance += 500 * 152**2 * (1 - p) / p
    sampler.set_mean(1024)
    lists = sum(map(sys.getsizeof, kept))
    estimate = held("strings")["strings"][0] - lists
    # the lists: blocks of 4 kB, sampled with the means above
    variance += sum(15 * 4056**2 * (1 - probability(4056, m)) / probability(4056, m) for m in (1024, 65536, 4096, 262144))
    assert abs(estimate - truth) < 6 * math.sqrt(variance)


def test_a_program_that_allocates_much_at_once_is_not_held_up_by_its_samples_and_the_total_stays_unbiased() -> None:
    sampler.start(1024)
    sampler.govern(100.0, 2**20)
    before = sampler.statistics()["samples"]
    kept = [strings(1000) for _ in range(400)]  # in a fraction of a second; 60,000 samples without the governor
    figures = sampler.statistics()
    assert figures["samples"] - before < 2_000
    assert 2**16 <= figures["mean_bytes"] <= 2**20
    truth = sum(sys.getsizeof(string) for some in kept for string in some)
    p = probability(152, figures["mean_bytes"])
    sigma = math.sqrt((1 - p) / p / 400_000)
    assert held("strings")["strings"][0] / truth == pytest.approx(1, abs=6 * sigma + 0.08)  # 0.05: the lists
    sampler.govern(0.0)
    sampler.set_mean(1024)
    before = sampler.statistics()["samples"]
    kept.append(strings(10_000))
    assert sampler.statistics()["samples"] - before > 1_000  # nobody minds


def test_sampling_small_blocks_for_an_eighth_of_the_time_leaves_the_totals_unbiased_and_sees_all_that_goes() -> None:
    sampler.start(65536)
    sampler.set_duty(0.125)
    kept = []
    for turn in range(160):
        if turn % 8:
            assert sampler.pause()
        else:
            sampler.resume()
        kept.append(strings(3000))
    sampler.resume()
    truth = sum(sys.getsizeof(string) for some in kept for string in some)
    estimate, _, samples = held("strings")["strings"]
    lists = 160 * sys.getsizeof(kept[0])
    spread = 6 / math.sqrt(truth / 65536)
    assert (estimate - lists) / truth == pytest.approx(1, abs=spread + 0.05)  # 0.05: the lists, which are sampled all the time
    assert samples > 500
    assert sampler.pause()
    kept.clear()
    gc.collect()
    assert held("strings")["strings"][2] < 0.01 * samples


def test_a_change_of_the_part_of_the_time_that_is_sampled_leaves_the_totals_unbiased_in_every_thread() -> None:
    kept: list[Any] = []
    go, done = [threading.Semaphore(0) for _ in range(4)], threading.Semaphore(0)

    def work(mine: threading.Semaphore) -> None:
        for _ in range(64):
            mine.acquire()
            kept.append(strings(1000))
            done.release()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in go]
    sampler.start(16384)
    for thread in threads:
        thread.start()
    for turn in range(64):
        duty = (1.0, 0.125)[turn // 8 % 2]  # eight rounds of the one, eight of the other, of which one is sampled
        if turn % 8 == 0:
            sampler.set_duty(duty)
        if duty < 1 and turn % 8 != 4:
            assert sampler.pause()
        else:
            sampler.resume()
        for mine in go:
            mine.release()
        for _ in go:
            done.acquire()
    for thread in threads:
        thread.join()
    sampler.resume()
    truth = sum(sys.getsizeof(string) for some in kept for string in some)
    estimate = held("strings")["strings"][0] - sum(map(sys.getsizeof, kept))
    assert estimate / truth == pytest.approx(1, abs=6 / math.sqrt(truth / 16384) + 0.05)


def test_a_point_that_was_thrown_for_one_part_of_the_time_and_met_in_another_stands_for_what_it_should() -> None:
    kept: list[Any] = []
    ready, go = threading.Barrier(41), threading.Event()

    def work() -> None:
        kept.append(strings(1))  # this thread's first points are thrown
        ready.wait()
        go.wait()
        kept.append(strings(700))

    threads = [threading.Thread(target=work) for _ in range(40)]
    sampler.start(2**20)
    sampler.set_duty(0.01)
    for thread in threads:
        thread.start()
    ready.wait()
    sampler.set_duty(1.0)
    go.set()
    for thread in threads:
        thread.join()
    truth = sum(sys.getsizeof(string) for some in kept for string in some)
    assert held("strings")["strings"][0] < truth + 6 * math.sqrt(truth * 2**20)  # 40 MiB, if each stood for a megabyte


def test_the_governor_allows_for_small_blocks_being_sampled_for_a_part_of_the_time_only() -> None:
    sampler.start(16384)
    sampler.govern(100.0, 2**20)
    sampler.set_duty(0.125)
    kept = []
    for _ in range(100):
        kept.append(blobs(1))  # sampled for sure, small blocks hardly ever
        time.sleep(0.004)  # no luck in it: 250 a second or fewer, where 800 are allowed
    assert sampler.statistics()["mean_bytes"] == 16384
    assert sampler.pause()
    kept.append(blobs(300))
    assert sampler.statistics()["mean_bytes"] > 16384


def test_large_blocks_are_sampled_all_the_time() -> None:
    sampler.start(1024)
    sampler.set_duty(0.125)
    assert sampler.pause()
    kept = [blobs(200), strings(20_000)]
    assert blobs_seen() == 200
    assert held("strings")["strings"][2] <= 1  # the list
    del kept


@pytest.mark.parametrize("part", [0, 0.001, -1, 1.01, math.inf, math.nan])
def test_a_part_of_the_time_that_cannot_be_is_refused(part: float) -> None:
    with pytest.raises(ValueError, match=r"duty must be from 0\.01 to 1, not"):
        sampler.set_duty(part)


def test_whoever_starts_the_sampler_gets_one_that_samples_all_the_time() -> None:
    sampler.start(1024)
    sampler.set_duty(0.125)
    assert sampler.pause()
    sampler.start(1024)
    kept = strings(20_000)
    truth = sum(map(sys.getsizeof, kept)) + sys.getsizeof(kept)
    assert held("strings")["strings"][0] == pytest.approx(truth, rel=0.1)
    assert sampler.pause()
    sampler.stop()
    assert not sampler.pause()
    sampler.resume()
    assert sampler.statistics()["mode"] == 0


def test_a_governor_ends_with_the_sampler() -> None:
    sampler.start(1024)
    sampler.govern(100.0, 2**20)
    sampler.stop()
    sampler.start(1024)
    kept = strings(10_000)
    assert sampler.statistics()["mean_bytes"] == 1024
    del kept


@pytest.mark.parametrize("coarsest", [0, 2**31])
def test_a_coarsest_mean_that_cannot_be_is_refused(coarsest: int) -> None:
    with pytest.raises(ValueError, match=f"must be from 1024 to 1073741824, not {coarsest}"):
        sampler.govern(100.0, coarsest)


def test_a_full_table_is_thinned_and_the_totals_stay_unbiased(python: Any) -> None:
    done = python(
        """
        import math, sys
        import memwatch.evidence._sampler as sampler
        def leak(count):
            return [bytes(2000 + number % 1000) for number in range(count)]
        sampler.start(1024)
        kept = [leak(10_000) for _ in range(20)]
        truth = sum(sys.getsizeof(block) for blocks in kept for block in blocks)
        figures = sampler.statistics()
        assert figures["thinned"] > 10_000 and figures["dropped"] == 0, figures
        assert figures["live"] < 0.61 * 131072
        mean = figures["mean_bytes"]
        assert mean >= 4096
        estimate = sum(size for _, size, *_ in sampler.live()) - sum(map(sys.getsizeof, kept))
        count = sum(count for _, _, count, *_ in sampler.live())
        p = -math.expm1(-2533 / mean)
        sigma = math.sqrt((1 - p) / p / 200_000)
        print(estimate / truth - 1, sigma)
        assert abs(estimate / truth - 1) < 6 * sigma + 0.002
        assert abs(count / 200_000 - 1) < 6 * sigma + 0.01
        del kept
        assert sampler.statistics()["live"] < 100
        """
    )
    assert done.stderr == ""


def test_memory_of_a_thread_that_has_ended_keeps_its_stack() -> None:
    sampler.start(1024)
    kept: list[Any] = []

    def in_thread() -> None:
        kept.append(blobs(3))
        kept.append(strings(300))

    threads = [threading.Thread(target=in_thread) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs_seen() == 60
    truth = sum(sys.getsizeof(one) for made in kept[1::2] for one in made)
    lists = sum(map(sys.getsizeof, kept[1::2]))
    assert abs(held("strings")["strings"][0] - lists - truth) < tolerance(152, 6_000, 1024) + tolerance(2456, 20, 1024)
    stacks = [frames for key, *_ in sampler.live() if (frames := sampler.stack(key)) and frames[0][1] == "blobs"]
    assert all(any(name.endswith("in_thread") for _, name, _ in frames) for frames in stacks)


def test_starting_and_stopping_many_times_from_many_threads_ends_as_it_began() -> None:
    gc.collect()
    before = sys.getallocatedblocks()
    failures: list[BaseException] = []

    def turn(number: int) -> None:
        try:
            for round_ in range(50):
                sampler.start(1024 + 16 * number)
                kept = [strings(20), buffers(2), [sampler.live() for _ in range(3)]]
                if round_ % 3 == number % 3:
                    sampler.stop()
                sampler.maintain()
                del kept
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sampler.stop()
    gc.collect()
    assert failures == []
    assert not sampler.running()
    assert abs(sys.getallocatedblocks() - before) < 5_000


def test_the_interpreters_count_of_blocks_stays_right() -> None:
    gc.collect()
    before = sys.getallocatedblocks()
    sampler.start(1024)
    kept = strings(20_000)
    during = sys.getallocatedblocks()
    sampler.stop()
    kept.clear()
    gc.collect()
    after = sys.getallocatedblocks()
    if before == 0:
        pytest.skip("elsewhere: this interpreter's allocator counts no blocks")
    assert 20_000 <= during - before < 21_000
    assert abs(after - before) < 500


def test_maintaining_is_cheap_and_finds_all_well() -> None:
    assert sampler.maintain()
    sampler.start(1024)
    kept = blobs(4)
    assert sampler.maintain()
    assert blobs_seen() == len(kept)
    assert sampler.statistics()["reinstalled"] == 0


def test_code_made_at_run_time_stays_bounded_and_is_forgotten_with_its_memory() -> None:
    sampler.start(1024)
    for number in range(25_000):
        space: dict[str, Any] = {}
        exec(f"def function_{number}():\n return bytes(3000)\nkept = function_{number}()", space)
    full = sampler.statistics()
    assert full["stacks"] <= 16384
    assert full["frames"] <= 32768
    assert full["stacks_dropped"] > 0
    assert full["own_bytes"] < 13e6
    assert sampler.maintain()
    compact = sampler.statistics()
    assert compact["compactions"] == 1
    assert compact["stacks"] < 500
    kept = blobs(2)
    assert blobs_seen() == len(kept)


def test_a_name_in_the_place_of_a_freed_one_is_not_taken_for_it() -> None:
    """Compiling in a loop puts code objects and names at the same addresses again and again."""
    sampler.start(1024)
    wrong = []
    for number in range(2_000):
        space: dict[str, Any] = {}
        exec(f"def f{number:05}():\n return bytes(90_000)\nkept = f{number:05}()", space)
        names = {stack[0][1] for _, size, _, key, _ in sampler.blocks() if size > 80_000 and (stack := sampler.stack(key))}
        # The interpreter's table of interned names grows with them, once, in the frame of this test.
        if {name for name in names if not name.startswith("test_")} != {f"f{number:05}"}:
            wrong.append((number, names))
        space.clear()
    assert wrong == []


def test_frames_of_the_interpreters_own_stack_are_sampled(python: Any) -> None:
    """Deep recursion takes chunks of 16 KiB from the arena allocator; a library that loses them leaks them."""
    python(
        """
        import sys
        import memwatch.evidence._sampler as sampler
        sampler.start(1024)
        sys.setrecursionlimit(100_000)
        found = []
        def deep(left):
            if left:
                return deep(left - 1)
            found.extend(size for _, size, _, _, _ in sampler.blocks() if size % 4096 == 0 and size >= 16384)
        deep(5_000)
        assert len(found) > 5, found
        left = [size for _, size, _, _, _ in sampler.blocks() if size % 4096 == 0 and size >= 16384]
        assert len(left) <= 2, left
        """
    )


def test_native_memory_is_charged_to_the_python_line_that_takes_it(python: Any) -> None:
    done = python(
        """
        import ctypes, ctypes.util, sys
        import memwatch.evidence._sampler as sampler
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "mallinfo2"):
            sys.exit(77)
        libc.malloc.restype = ctypes.c_void_p
        sampler.start(1024)
        def innocent(rounds):
            return sum(len([str(number) for number in range(50)]) for _ in range(rounds))
        def guilty(rounds):
            for _ in range(rounds):
                libc.malloc(2_000)
                [str(number) for number in range(50)]
        sampler.watch_native(True)
        for _ in range(30):
            innocent(1000)
            guilty(1000)
        charged = {}
        for key, size, readings in sampler.native():
            names = [name for _, name, _ in sampler.stack(key) or ()]
            name = next((name for name in names if name.split(".")[0] in ("innocent", "guilty")), "other").split(".")[0]
            charged[name] = charged.get(name, 0) + size
        total = sum(charged.values())
        assert sampler.statistics()["native_readings"] > 20
        assert 55e6 < total < 75e6, charged
        assert charged["guilty"] > 0.6 * total, charged
        sampler.watch_native(False)
        before = sampler.statistics()["native_readings"]
        innocent(1000)
        assert sampler.statistics()["native_readings"] == before
        """,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("elsewhere: this C library has no mallinfo2")
    assert done.returncode == 0, done.stderr


PAUSED = ["S+ P+ T+ P- T- S-", "S+ P+ T+ T- P- S-", "S+ T+ P+ T- P+ P- S-", "T+ S+ P+ T- P- S-", "S+ P+ T+ S- T-", "S+ P+ S- S+ S-"]
ORDERS = [
    "T+ S+ T- S-",
    "T+ S+ S- T-",
    "S+ T+ T- S-",
    "S+ T+ S- T-",
    "T+ T- S+ S-",
    "S+ S- T+ T-",
    "T+ S+ T- T+ S- T- S+ S-",
    *PAUSED,
]
BESIDE = """
import gc, sys, time
import memwatch.evidence._sampler as sampler
{tool}
def leak(count):
    return [bytes(200 + number % 50) for number in range(count)]
def leaks(key):
    return any(name.startswith("leak") for _, name, _ in sampler.stack(key))
def blocks():
    count = sys.getallocatedblocks()
    assert count >= 0, count
    return count
switch_on(); switch_off()  # what the tool imports and keeps
sampled = traced = paused = above = False
started = blocks()
kept = []
for step in sys.argv[1].split():
    who, what = step
    if who == "S":
        sampler.start(1024) if what == "+" else sampler.stop()
        sampled, paused = what == "+", False
    elif who == "P" and what == "+":
        paused = sampler.pause()
        assert not (paused and above), "a tool stands on the hooks"
    elif who == "P":
        sampler.resume()
        paused = False
    else:
        switch_on() if what == "+" else switch_off()
        traced = what == "+"
        above = traced and sampled and not paused
    lost = not sampler.maintain()
    print(step, "reinstalled" if lost else "well")
    assert sampler.maintain()
    before, born = blocks(), time.monotonic()
    kept.append(leak(5_000))
    grown = blocks() - before
    assert grown == 0 or 5_000 <= grown < 5_300, grown
    if traced and traced_bytes() is not None:
        assert traced_bytes() > 1_200_000, traced_bytes()
    if paused:
        assert sampler.statistics()["paused"]
        assert not any(230 <= size < 290 and leaks(key) for _, size, _, key, _ in sampler.blocks(born))
    elif sampled:
        # By size: what a tracer allocates for itself, in the same lines, is memory too.
        found = sum(weight / size for _, size, weight, key, _ in sampler.blocks() if 230 <= size < 290 and leaks(key))
        # at least what this step kept, and at most all of it
        assert 4_000 < found < 1.2 * sum(map(len, kept)) + 100, (found, sum(map(len, kept)))
        newest = kept.pop(); del newest
        gc.collect()
    else:
        assert sampler.live() == []
kept.clear()
gc.collect()
assert abs(blocks() - started) < 3_000 or started == 0, (blocks(), started)
"""
TRACEMALLOC = """
import tracemalloc
switch_on, switch_off = lambda: tracemalloc.start(5), tracemalloc.stop
traced_bytes = lambda: tracemalloc.get_traced_memory()[0]
"""
MEMRAY = """
import memray, os, tempfile
trackers = []
def switch_on():
    trackers.append(memray.Tracker(os.path.join(tempfile.mkdtemp(), "m.bin"), trace_python_allocators=True))
    trackers[-1].__enter__()
def switch_off():
    trackers.pop().__exit__(None, None, None)
traced_bytes = lambda: None
"""


@pytest.mark.parametrize("allocator", ["pymalloc", "debug", "malloc"])
@pytest.mark.parametrize("order", ORDERS)
def test_tracemalloc_and_the_sampler_work_beside_each_other_in_any_order(order: str, allocator: str, python: Any) -> None:
    done = python(BESIDE.format(tool=TRACEMALLOC), order, env={**os.environ, "PYTHONMALLOC": allocator})
    assert done.stderr == ""
    # Stopping a tracer that was there first takes our hooks out of the chain; maintain() says so.
    expected = {"T+ S+ T- S-": [2], "T+ S+ T- T+ S- T- S+ S-": [2], "T+ S+ P+ T- P- S-": [3]}.get(order, [])
    assert [place for place, line in enumerate(done.stdout.splitlines()) if line.endswith("reinstalled")] == expected


@pytest.mark.parametrize("order", ORDERS)
def test_memray_and_the_sampler_work_beside_each_other_in_any_order(order: str, python: Any, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere: memray is a test dependency on Linux")
    pytest.importorskip("memray", reason="elsewhere: memray has no wheel for this interpreter")
    done = python(BESIDE.format(tool=MEMRAY), order, env={**os.environ, "TMPDIR": str(tmp_path)})
    # In an interpreter that is linked statically memray says that it corrects the addresses of malloc and free.
    said = [line for line in done.stderr.splitlines() if "Correcting symbol" not in line]
    assert said == []


@pytest.mark.parametrize(
    ("allocator", "mode"),
    [("pymalloc", 1), ("pymalloc_debug", 1), ("debug", 1), ("malloc", 2), ("malloc_debug", 2), ("mimalloc", 2)],
)
def test_the_sampler_works_with_every_allocator_of_the_interpreter(allocator: str, mode: int, python: Any) -> None:
    if allocator == "mimalloc" and sys.version_info < (3, 13):
        pytest.skip("elsewhere: mimalloc came with Python 3.13")
    done = python(
        """
        import gc, sys
        import memwatch.evidence._sampler as sampler
        def leak(count):
            made = []
            for number in range(count):
                made.append(bytearray(b"x" * 50))
                made[-1].extend(b"y" * (number % 1000))
            return made
        sampler.start(1024)
        assert sampler.statistics()["mode"] == int(sys.argv[1]), sampler.statistics()
        kept = leak(4000)
        truth = sum(map(sys.getsizeof, kept)) + sys.getsizeof(kept)
        found = sum(size for key, size, *_ in sampler.live() if sampler.stack(key)[0][1] == "leak")
        assert abs(found / truth - 1) < 0.12, (found, truth)
        assert sampler.maintain()
        kept.clear(); gc.collect()
        found = sum(size for key, size, *_ in sampler.live() if sampler.stack(key)[0][1] == "leak")
        assert found < 100_000, found
        sampler.stop()
        """,
        mode,
        env={**os.environ, "PYTHONMALLOC": allocator},
    )
    assert done.stderr == ""


FUNCTIONS = {
    domain: [f"Py{domain}_{name}" for name in ("Malloc", "Calloc", "Realloc", "Free")] for domain in ("Object", "Mem", "Mem_Raw")
}


def allocator_functions(library: ctypes.PyDLL | ctypes.CDLL, domain: str) -> tuple[Any, Any, Any, Any]:
    names = [name.replace("Mem_Raw_", "Mem_Raw") for name in FUNCTIONS[domain]]
    malloc, calloc, realloc, free = (getattr(library, name) for name in names)
    malloc.argtypes, calloc.argtypes, realloc.argtypes, free.argtypes = (
        [ctypes.c_size_t],
        [ctypes.c_size_t, ctypes.c_size_t],
        [ctypes.c_void_p, ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    malloc.restype = calloc.restype = realloc.restype = ctypes.c_void_p
    free.restype = None
    return malloc, calloc, realloc, free


@pytest.mark.parametrize("domain", ["Object", "Mem", "Mem_Raw"])
def test_contents_survive_every_way_a_block_is_moved(domain: str) -> None:
    """Sampled blocks are larger than asked for and live elsewhere; nobody may notice."""
    malloc, calloc, realloc, free = allocator_functions(ctypes.pythonapi, domain)
    chance = random.Random(7)
    blocks: dict[int, tuple[int, int]] = {}  # address: size, byte
    sampler.start(1024)
    for _ in range(30_000):
        way = chance.randrange(5)
        size = chance.choice([0, 1, 8, 40, 200, 487, 488, 489, 511, 512, 513, 514, 700, 2000])
        if way == 0 or not blocks:
            address = malloc(size)
        elif way == 1:
            address = calloc(max(size // 4, 1), 4)
            size = max(size // 4, 1) * 4
            assert ctypes.string_at(address, size) == bytes(size)
        elif way == 2:
            address = realloc(None, size)
        else:
            old = chance.choice(list(blocks)) if len(blocks) < 20 else next(iter(blocks))
            old_size, byte = blocks.pop(old)
            assert ctypes.string_at(old, old_size) == bytes([byte]) * old_size
            if way == 3:
                free(old)
                continue
            address = realloc(old, size)
            assert ctypes.string_at(address, min(size, old_size)) == bytes([byte]) * min(size, old_size)
        assert address
        assert address not in blocks
        byte = chance.randrange(256)
        ctypes.memset(address, byte, size)
        blocks[address] = size, byte
    taken = sampler.statistics()["samples"]
    while blocks:
        free(blocks.popitem()[0])
    blocks.clear()  # whose table is memory too
    assert taken > 500
    assert sampler.statistics()["live"] < 250  # the interpreter keeps 2000 freed tuples


def test_a_block_that_cannot_be_reallocated_is_still_counted() -> None:
    malloc, _, realloc, free = allocator_functions(ctypes.pythonapi, "Mem_Raw")
    sampler.start(1024)
    address = malloc(200_000)
    assert realloc(address, 2**62) is None
    assert [size for where, size, *_ in sampler.blocks() if where == address] == [200_000]
    smaller = realloc(address, 0)
    assert [size for where, size, *_ in sampler.blocks() if where == address and size > 1] == []
    free(smaller)


def test_memory_taken_without_the_gil_has_the_stack_of_its_thread() -> None:
    malloc, _, _, free = allocator_functions(ctypes.CDLL(None), "Mem_Raw")  # unlike pythonapi it gives up the GIL
    sampler.start(1024)
    address = malloc(200_000)
    (key,) = [key for where, _, _, key, _ in sampler.blocks() if where == address]
    stack = sampler.stack(key)
    assert stack is not None
    assert stack[0][1] == "test_memory_taken_without_the_gil_has_the_stack_of_its_thread"
    free(address)
    # The block, not its address: the list that `blocks` makes may be the next to live there.
    assert [size for where, size, *_ in sampler.blocks() if (where, size) == (address, 200_000)] == []


def test_memory_of_a_thread_without_python_has_the_empty_stack() -> None:
    library = ctypes.CDLL(None)
    sampler.start(1024)
    thread, address = ctypes.c_void_p(), ctypes.c_void_p()
    start_routine = ctypes.cast(library.PyMem_RawMalloc, ctypes.c_void_p)  # a function of one word that returns one
    assert library.pthread_create(ctypes.byref(thread), None, start_routine, ctypes.c_void_p(300_000)) == 0
    assert library.pthread_join(thread, ctypes.byref(address)) == 0
    ((size, key),) = [(size, key) for where, size, _, key, _ in sampler.blocks() if where == address.value]
    assert size == 300_000
    assert sampler.stack(key) == ()
    allocator_functions(ctypes.pythonapi, "Mem_Raw")[3](address)


def allocators() -> list[list[int | None]]:
    """Of each domain: context, malloc, calloc, realloc and free."""
    found = []
    for domain in range(3):
        words = (ctypes.c_void_p * 5)()
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(words))
        found.append(list(words))
    return found


@pytest.mark.parametrize("order", ["S+ S-", *ORDERS])
def test_when_all_have_stopped_the_interpreters_own_allocators_are_back(order: str) -> None:
    before = allocators()
    for step in order.split():
        match step:
            case "S+":
                sampler.start()
                assert sampler.maintain()
            case "S-":
                sampler.stop()
            case "T+":
                tracemalloc.start()
            case "T-":
                tracemalloc.stop()
                sampler.maintain()
            case "P+":
                sampler.pause()
            case "P-":
                sampler.resume()
        assert step != "S+" or allocators() != before
    assert allocators() == before
