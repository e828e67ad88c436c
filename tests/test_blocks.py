from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import memwatch
from memwatch.blocks import Block

MIB = 2**20


def block_of(readings: list[float]) -> tuple[Block, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    values = iter(readings)
    return Block("load", lambda: next(values), told.append), told


def test_a_with_block_tells_what_it_grew_by() -> None:
    with memwatch.track("load") as block:
        kept = bytearray(64 * MIB)
        kept[::4096] = b"x" * len(kept[::4096])
    assert block.growth is not None
    assert 60 * MIB <= block.growth.rss_bytes <= 80 * MIB
    assert block.growth.took_s > 0


def test_growth_that_was_freed_inside_the_block_is_not_growth() -> None:
    with memwatch.track("load") as block:
        kept = bytearray(64 * MIB)
        kept[::4096] = b"x" * len(kept[::4096])
        del kept
    assert block.growth is not None
    assert block.growth.rss_bytes < 8 * MIB


def test_a_decorated_function_keeps_its_result_name_and_exceptions_and_adds_up() -> None:
    block, told = block_of([0, 5 * MIB, 5 * MIB, 6 * MIB, 6 * MIB, 6 * MIB])

    @block
    def load(number: int) -> int:
        """Loads."""
        if number == 3:
            raise ValueError(number)
        return number * 2

    assert [load(1), load(2)] == [2, 4]
    with pytest.raises(ValueError, match="3"):
        load(3)
    assert (load.__name__, load.__doc__) == ("load", "Loads.")
    assert (block.calls, block.total_rss_bytes, block.peak_growth_bytes) == (3, 6 * MIB, 5 * MIB)
    assert [details["rss"] for details in told] == [5 * MIB, MIB]


def test_a_coroutine_is_measured_over_its_awaits_and_overlaps_are_counted() -> None:
    block = memwatch.track("fetch")

    @block
    async def fetch() -> str:
        await asyncio.sleep(0)
        return "done"

    async def main() -> list[str]:
        return await asyncio.gather(*(fetch() for _ in range(5)))

    assert asyncio.run(main()) == ["done"] * 5
    assert (block.calls, block.overlapping) == (5, 4)


def test_async_with_works_as_with() -> None:
    async def main() -> Block:
        async with memwatch.track("load") as block:
            await asyncio.sleep(0)
        return block

    assert asyncio.run(main()).calls == 1


def test_a_with_block_that_grew_by_nothing_is_told_once_and_then_only_counted() -> None:
    block, told = block_of([0] * 20)
    for _ in range(10):
        with block:
            pass
    assert (block.calls, len(told)) == (10, 1)


def test_blocks_nest_and_each_tells_its_own_growth() -> None:
    block, told = block_of([0, 10 * MIB, 30 * MIB, 100 * MIB])
    with block, block:
        pass
    assert [details["rss"] for details in told] == [20 * MIB, 100 * MIB]


def test_a_generator_function_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"cannot decorate the generator .*rows.*inside it"):

        @memwatch.track("rows")
        def rows():
            yield 1


def test_a_name_is_needed() -> None:
    with pytest.raises(TypeError, match="takes the name of the block"):
        memwatch.track(print)  # type: ignore[arg-type]


def test_a_tracked_block_is_in_the_record_of_the_running_watcher(tmp_path) -> None:
    watcher = memwatch.start(directory=tmp_path, interval="1h")
    try:
        with memwatch.track("import"):
            pass
        watcher.tick()
        events = [event for event in watcher.report().events if event.what == "block"]
    finally:
        memwatch.stop()
    assert [event.details["name"] for event in events] == ["import"]


def test_collect_garbage_frees_cycles_and_says_how_many() -> None:
    class Node:
        pass

    gc.disable()
    try:
        for _ in range(1000):
            node = Node()
            node.me = node
        freed = memwatch.collect_garbage()
    finally:
        gc.enable()
    assert freed.collected >= 1000
    assert freed.rss_bytes is not None
