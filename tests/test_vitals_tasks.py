"""Counting asyncio's tasks from another thread."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from memwatch.vitals import Vitals, tasks


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def in_loop(loop: asyncio.AbstractEventLoop, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)


async def start(number: int) -> list[asyncio.Task]:
    started = [asyncio.create_task(asyncio.Event().wait()) for _ in range(number)]
    await asyncio.sleep(0)
    return started


async def cancel(started: list[asyncio.Task]) -> None:
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


@pytest.fixture
def none_left() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


def test_a_thousand_tasks_of_a_loop_in_another_thread_are_counted(none_left):
    with loop_in_a_thread() as loop:
        before = Vitals().read(complete=True)["tasks"]
        started = in_loop(loop, start(1000))
        assert Vitals().read(complete=True)["tasks"] == before + 1000
        in_loop(loop, cancel(started))


def test_tasks_of_several_loops_are_added_up(none_left):
    with loop_in_a_thread() as one, loop_in_a_thread() as other:
        before = tasks.count_tasks()
        first, second = in_loop(one, start(3)), in_loop(other, start(4))
        assert tasks.count_tasks() == before + 7
        in_loop(one, cancel(first))
        in_loop(other, cancel(second))


def test_a_task_that_is_done_is_not_counted_while_somebody_holds_it(none_left):
    with loop_in_a_thread() as loop:
        before = tasks.count_tasks()
        started = in_loop(loop, start(2500))
        in_loop(loop, cancel(started[:2000]))
        assert tasks.count_tasks() == before + 500
        in_loop(loop, cancel(started))
        assert tasks.count_tasks() == before
        assert len(started) == 2500


def test_counting_keeps_no_task_alive(none_left):
    with loop_in_a_thread() as loop:
        started = in_loop(loop, start(1))
        reference = weakref.ref(started[0])
        tasks.count_tasks()
        in_loop(loop, cancel(started))
        started.clear()
        in_loop(loop, asyncio.sleep(0))
        gc.collect()
        assert reference() is None


def test_tasks_that_come_and_go_meanwhile_do_no_harm(none_left):
    async def churn() -> None:
        for _ in range(200):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(50)))

    with loop_in_a_thread() as loop:
        running = asyncio.run_coroutine_threadsafe(churn(), loop)
        counts = []
        while not running.done():
            counts.append(tasks.count_tasks())
        assert all(0 <= count <= 60 for count in counts)


def test_references_that_change_while_they_are_counted_do_no_harm():
    references = set()

    class Task:
        def done(self) -> bool:
            late.append(Task())
            references.add(weakref.ref(late[-1]))
            return False

    late: list[Task] = []
    early = [Task() for _ in range(tasks._CHUNK * 3)]
    references.update(map(weakref.ref, early))
    assert tasks._count_pending(references) == len(early)


def test_loops_are_found_by_the_frames_that_run_them():
    with loop_in_a_thread() as loop:
        in_loop(loop, asyncio.sleep(0))
        assert any(found is loop for found in tasks._loops())


def test_asyncio_is_not_imported_to_find_that_there_are_no_tasks():
    code = (
        "import sys; from memwatch.vitals import Vitals; values = Vitals().read(complete=True); "
        "print('tasks' in values, 'asyncio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
