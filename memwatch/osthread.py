"""Threads and locks of the operating system, also where gevent or eventlet have replaced Python's.

A monkey-patched `threading.Thread` is a greenlet: it would sample only when the program yields, and never while it is busy.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import Any

TIMEOUT_MAX_S = 3600.0


def _original(name: str) -> Any:
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a real thread that does not keep the interpreter alive.

    Raises:
        RuntimeError: the system gives no more threads, or the interpreter is shutting down.
    """
    if "gevent.monkey" in sys.modules or "eventlet.patcher" in sys.modules:
        _original("start_new_thread")(target, ())
    else:
        threading.Thread(target=target, name=name, daemon=True).start()  # has a name that debuggers show


def get_ident() -> int:
    """Identity of the real thread that runs."""
    return int(_original("get_ident")())


def new_lock() -> Any:
    """A real lock (`acquire(timeout=)`, `release()`, context manager)."""
    return _original("allocate_lock")()


def new_rlock() -> Any:
    """A real re-entrant lock."""
    return _original("RLock")()


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
