"""Large jobs under a memory budget."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from memwatch import caches


def test_everything_is_loaded_once_and_handed_out_in_order() -> None:
    asked: list[int] = []

    def load(keys: Sequence[int]) -> list[str]:
        asked.extend(keys)
        return [str(key) for key in keys]

    for concurrency in (1, 4):
        asked.clear()
        assert list(caches.batch(load, range(1000), concurrency=concurrency)) == [(key, str(key)) for key in range(1000)]
        assert sorted(asked) == list(range(1000))
    assert list(caches.batch(lambda keys: {key: key for key in keys if key % 2}, range(6))) == [(1, 1), (3, 3), (5, 5)]
    assert list(caches.batch(load, [])) == []


def test_what_is_loaded_and_not_yet_handed_out_stays_within_the_budget() -> None:
    alive = most = 0
    lock = threading.Lock()

    class Blob:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def load(keys: Sequence[int]) -> list[Blob]:
        return [Blob() for _ in keys]

    for _, blob in caches.batch(load, range(5000), max_bytes="1MB", concurrency=2, size=lambda blob: 10_000):
        del blob
    assert 8 <= most <= 110  # 100 of 10 kB are a megabyte


def test_a_job_pauses_under_pressure_and_goes_on_after_it() -> None:
    pressed, began = threading.Event(), []

    def load(keys: Sequence[int]) -> list[int]:
        began.append(len(keys))
        return list(keys)

    job = caches.batch(load, range(100), most_per_batch=10, is_under_pressure=pressed.is_set)
    assert next(job) == (0, 0)
    pressed.set()
    threading.Timer(0.3, pressed.clear).start()
    before = sum(began)
    handed = [next(job) for _ in range(before - 1)]
    assert len(handed) == 7 and sum(began) == before
    assert next(job)[0] == 8 and not pressed.is_set()
    assert len(list(job)) == 91


def test_an_error_of_the_load_comes_where_its_batch_would_and_the_rest_is_not_loaded() -> None:
    asked = []

    def load(keys: Sequence[int]) -> list[int]:
        asked.extend(keys)
        if 20 in keys:
            raise LookupError("no 20")
        return list(keys)

    seen = []
    with pytest.raises(LookupError, match="no 20"):
        for key, _ in caches.batch(load, range(10_000), most_per_batch=8, concurrency=2):
            seen.append(key)
    assert seen == list(range(16)) and len(asked) <= 48
    with pytest.raises(ValueError, match="returned 1 values for 3 keys"):
        list(caches.batch(lambda keys: [1], range(3)))
    for wrong in ({"max_bytes": 0}, {"concurrency": 0}, {"most_per_batch": 0}, {"max_bytes": "lots"}):
        with pytest.raises(ValueError):
            caches.batch(load, [], **wrong)  # type: ignore[arg-type]


def test_keys_are_taken_as_needed_and_a_job_can_be_left() -> None:
    taken = 0

    def keys() -> Iterator[int]:
        nonlocal taken
        for number in range(10**9):
            taken += 1
            yield number

    job = caches.batch(lambda part: list(part), keys(), most_per_batch=16, concurrency=2)
    assert [next(job)[0] for _ in range(3)] == [0, 1, 2]
    job.close()  # type: ignore[attr-defined]
    assert taken < 100


def test_embedding_many_documents_under_a_memory_limit_is_not_killed() -> None:
    """100 kB per document, 4,000 documents, 400 MB in all, with 160 MB to use."""
    program = """
import resource, sys
from memwatch import caches
limit = 160 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def embed(keys): return [bytearray(100_000) for _ in keys]
done = 0
naive = sys.argv[1] == "naive"
batched = lambda: caches.batch(embed, range(4000), max_bytes="20MB", concurrency=2)
for key, vector in zip(range(4000), embed(range(4000))) if naive else batched():
    done += 1
print(done)
"""
    run = [sys.executable, "-c", program]
    done: Any = subprocess.run([*run, "batch"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "4000", done.stderr
    naive = subprocess.run([*run, "naive"], capture_output=True, text=True, timeout=120, check=False)
    assert "MemoryError" in naive.stderr


def test_with_one_at_a_time_everything_is_loaded_in_the_callers_own_thread() -> None:
    threads = set()

    def load(keys: Sequence[int]) -> list[int]:
        threads.add(threading.get_ident())
        return list(keys)

    assert len(list(caches.batch(load, range(100)))) == 100
    assert threads == {threading.get_ident()}


def test_batches_grow_step_by_step_so_that_larger_values_later_do_not_break_the_budget() -> None:
    held, most = 0, 0

    def load(keys: Sequence[int]) -> list[int]:
        nonlocal held, most
        sizes = [100 if key < 8 else 10_000 for key in keys]
        held += sum(sizes)
        most = max(most, held)
        return sizes

    for _, value in caches.batch(load, range(3000), max_bytes=1_000_000, size=lambda value: value):
        held -= value
    assert most < 2_000_000
