"""Threads and locks of the operating system, also where gevent or eventlet have replaced Python's.

A monkey-patched `threading.Thread` is a greenlet: it would sample only when the program yields, and never while it is busy.
And one that was started before the patch fails at its end.  So: the primitives below `threading`, always.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMEOUT_MAX_S = 3600.0


def _original(name: str) -> Any:
    # A module that is being imported by another thread has not patched anything yet, and may lack the function.
    get_original = getattr(sys.modules.get("gevent.monkey"), "get_original", None)
    if get_original is not None:
        return get_original("_thread", name)
    original = getattr(sys.modules.get("eventlet.patcher"), "original", None)
    if original is not None:
        return getattr(original("_thread"), name)
    return getattr(_thread, name)


def threads_are_greenlets() -> bool:
    """Whether `threading` was patched: a thread that a library starts from one of ours is then a greenlet of a loop nobody runs."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    patched = getattr(gevent, "is_module_patched", None), getattr(eventlet, "is_monkey_patched", None)
    return bool((patched[0] and patched[0]("threading")) or (patched[1] and patched[1]("thread")))


def get_ident() -> int:
    """Identity of the real thread that runs."""
    return int(_original("get_ident")())


def new_lock() -> Any:
    """A real lock (`acquire(timeout=)`, `release()`, context manager)."""
    return _original("allocate_lock")()


def new_rlock() -> Any:
    """A real re-entrant lock."""
    return _original("RLock")()


# The signal mask of whoever started a thread of ours, by identity of the thread.
_masks: dict[int, set[int]] = {}


@contextlib.contextmanager
def program_signals() -> Iterator[None]:
    """In a thread of ours: the program's signal mask for as long as code of the program runs, which may start a process.

    A process inherits the mask of the thread that starts it, and one that blocks SIGTERM cannot be stopped politely.
    """
    mask = _masks.get(get_ident())
    if mask is None:
        yield
        return
    ours = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ours)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[set[int] | None]:
    """What is started meanwhile takes no signals; gives the mask that it would have had.

    A signal that our thread took would set Python's flag but interrupt no system call of the main thread: a program that waits in
    one would handle it only when that returns.  Without us there is no other thread, so that this never happens to it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield None
        return
    # Not those that report a fault of the thread itself.
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


STACK_BYTES = 2**20
"""What a thread of ours may need; a program that starts thousands of threads may have chosen far less for all of them."""


@contextlib.contextmanager
def _room_enough() -> Iterator[None]:
    """What is started meanwhile has a stack of at least `STACK_BYTES`."""
    chosen = _thread.stack_size()
    if not 0 < chosen < STACK_BYTES:
        yield
        return
    _thread.stack_size(STACK_BYTES)
    try:
        yield
    finally:
        _thread.stack_size(chosen)


class Thread:
    """A real thread that does not keep the interpreter alive.  It runs from the start.

    Args:
        name: shown by `top -H`, gdb and py-spy; at most 15 characters on Linux.

    Raises:
        RuntimeError: the system gives no more threads, or the interpreter is shutting down.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._name = name
        self._running = new_lock()
        self._running.acquire()
        self._native_id: int | None = None
        with _signals_blocked() as self._mask, _room_enough():
            self.ident = int(_original("start_new_thread")(self._run, ()))

    def _run(self) -> None:
        ident = get_ident()
        try:
            self._native_id = _thread.get_native_id()
            if self._mask is not None:
                _masks[ident] = self._mask
            try:
                with open("/proc/thread-self/comm", "w") as file:
                    file.write(self._name)
            except OSError:
                pass  # a name is a nicety
            self._target()
        finally:
            _masks.pop(ident, None)
            self._running.release()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._running.locked())

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until it has ended and the kernel counts it no more; False if it goes on after *timeout_s*, or is the caller."""
        if get_ident() == self.ident:
            return False
        if not self._running.acquire(timeout=timeout_s):
            return False
        self._running.release()
        deadline_s = time.perf_counter() + 0.005  # it takes microseconds
        while Path(f"/proc/self/task/{self._native_id}").exists() and time.perf_counter() < deadline_s:
            pass
        return True


class Alarm:
    """Sleeps until a time has passed or somebody rings; built on one real lock."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._lock.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Wait; True if it rang.  After True the alarm is armed again."""
        return bool(self._lock.acquire(timeout=max(0.0, min(timeout_s, TIMEOUT_MAX_S))))

    def ring(self) -> None:
        """Wake the one who waits, or the next to wait.  From any thread; may be called again."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # already rung
