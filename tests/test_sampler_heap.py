"""What the sampler owes to those beside it: the Python heap stays readable, and a block without a frame gets one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest


def run(program: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_the_python_heap_is_read_beside_the_sampler_and_sampled_small_blocks_are_not_large_ones() -> None:
    told = run("""
        import json, memwatch
        from memwatch.vitals import heap
        bare = heap.pools()
        watcher = memwatch.start(directory=False, interval="1h", sample_every="4KiB")
        before = heap.pools()
        kept = [[n] for n in range(100_000)]
        after = heap.pools()
        memwatch.stop()
        stopped = heap.pools()
        large = lambda pools: pools.all_blocks - pools.blocks
        print(json.dumps({"bare": bare.allocated_bytes, "before": before.allocated_bytes,
                          "grown": after.allocated_bytes - before.allocated_bytes, "large": large(after) - large(before),
                          "blocks": after.all_blocks - before.all_blocks, "stopped": stopped.allocated_bytes}))
    """)
    assert told["before"] > told["bare"]
    assert told["grown"] == pytest.approx(100_000 * (64 + 16 + 32), rel=0.25)
    # One list in forty or so is sampled at 4 KiB, and lives in a block of 513 bytes.
    assert told["large"] < 500
    assert told["blocks"] >= 200_000
    assert told["stopped"] == pytest.approx(told["before"] + told["grown"], rel=0.05)


def test_a_greenlets_stack_of_frames_is_charged_to_the_function_that_runs_it() -> None:
    pytest.importorskip("greenlet", reason="elsewhere: gevent and its greenlet are not there for this Python yet")
    told = run("""
        import json
        import greenlet
        import memwatch.evidence._sampler as sampler

        def unit_of_work():
            values = [[n] for n in range(3)]
            greenlet.getcurrent().parent.switch()

        def start_one():
            task = greenlet.greenlet(unit_of_work)
            task.switch()
            return task

        sampler.start(4096)
        kept = [start_one() for _ in range(400)]
        named = nowhere = 0.0
        for key, size, *_ in sampler.live():
            frames = sampler.stack(key)
            if not frames: nowhere += size
            elif any(frame[1] in ("unit_of_work", "start_one", "<listcomp>") for frame in frames): named += size
        print(json.dumps({"named": named, "nowhere": nowhere}))
    """)
    assert told["named"] > 400 * 4096
    assert told["nowhere"] < 0.2 * told["named"]
