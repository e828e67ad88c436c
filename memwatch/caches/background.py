"""A few threads that refresh values behind the caller's back: started when needed, gone when idle, never in the way of an exit."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

MOST_THREADS = 4
IDLE_S = 10.0

_lock = threading.Lock()
_jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_threads = 0
_idle = 0
_pid = os.getpid()


def run(job: Callable[[], None]) -> None:
    """Have it done soon by a daemon thread.  It must not raise."""
    global _jobs, _lock, _threads, _idle, _pid
    if _pid != os.getpid():  # a fork: the threads are gone, and one of them may have held the lock
        _lock, _jobs, _threads, _idle, _pid = threading.Lock(), queue.SimpleQueue(), 0, 0, os.getpid()
    with _lock:
        _jobs.put(job)
        is_needed = _idle < _jobs.qsize() and _threads < MOST_THREADS
        _threads += is_needed
    if is_needed:
        try:
            threading.Thread(target=_work, args=(_jobs,), name="memwatch-refresh", daemon=True).start()
        except RuntimeError:  # no thread to be had, or the interpreter ends
            with _lock:
                _threads -= 1
            job = _jobs.get_nowait()
            job()


def _work(jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
    global _threads, _idle
    while True:
        with _lock:
            _idle += 1
        try:
            job = jobs.get(timeout=IDLE_S)
        except queue.Empty:
            with _lock:
                _idle -= 1
                if jobs.empty():
                    _threads -= 1
                    return
                continue
        with _lock:
            _idle -= 1
        job()
        del job  # or the last one's value lives as long as the thread is idle
