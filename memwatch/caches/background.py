"""A few threads that refresh values behind the caller's back: started when needed, gone when idle, never in the way of an exit.

Law: nobody waits for a job; what a job raises, whatever it is, ends with it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from _thread import RLock
from collections.abc import Callable

MOST_THREADS = 4
IDLE_S = 10.0

log = logging.getLogger("memwatch.caches")


class _Pool:
    """The threads of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Reentrant: the collector may run a finalizer under it that uses a cache.
        self._lock = RLock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = self._idle = 0

    def run(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        with self._lock:
            is_needed = self._idle < self._jobs.qsize() and self._threads < MOST_THREADS
            self._threads += is_needed
        if not is_needed:
            return
        try:
            threading.Thread(target=self._work, name="memwatch-refresh", daemon=True).start()
        except RuntimeError:  # no thread to be had, or the interpreter ends: it is left to whoever asks when the value is dead
            with self._lock:
                self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            try:
                job()
            except BaseException as error:  # SystemExit of a load, too: the thread is ours, not the program's
                log.debug("a value could not be loaded anew in the background: %r", error)
            del job  # or the last one's value lives as long as the thread is idle


_pool = _Pool()


def run(job: Callable[[], None]) -> None:
    """Have it done soon by a daemon thread."""
    global _pool
    if _pool.pid != os.getpid():  # a fork: its threads are gone
        _pool = _Pool()
    _pool.run(job)
