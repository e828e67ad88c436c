"""Fork and exit: what the running watchers do when the process forks or ends.

Registered once, when the first watcher starts; importing registers nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

from memwatch import osthread


class Forkable(Protocol):
    """What a watcher offers this module."""

    def before_fork(self) -> list[Any]:
        """Get ready; returns the locks it holds over the fork."""
        ...

    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...
    def at_exit(self) -> None: ...


lock: Any = osthread.new_rlock()
"""Held over every fork, and while a watcher is started: threads that fork at the same time take turns, and no child is born while
another thread is in the middle of a start.  A child has a new one."""
LOCK_WAIT_S = 5.0
"""The program's fork waits at most this long for another thread's."""

_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
# Watchers made ready for the fork under way, each with the locks it holds; guarded by `lock`.
_prepared: list[tuple[Forkable, list[Any]]] = []
_forking: int | None = None
"""Identity of the thread that forks; guarded by `lock`."""
_registered = False
_known_to_multiprocessing = False


def watch(watcher: Forkable) -> None:
    """Carry this watcher over forks and to the end of the interpreter."""
    global _registered
    _watched.add(watcher)
    if not _registered:
        _registered = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
        atexit.register(_at_exit)


def unwatch(watcher: Forkable) -> None:
    """Forget this watcher."""
    _watched.discard(watcher)


def _before() -> None:
    global _forking
    _meet_multiprocessing()
    if not lock.acquire(timeout=LOCK_WAIT_S):
        return  # better a fork that is not prepared than none
    _forking = osthread.get_ident()
    _prepared[:] = [(watcher, watcher.before_fork()) for watcher in list(_watched)]
    _hush()


def _after_in_parent() -> None:
    global _forking
    if _forking != osthread.get_ident():
        return
    prepared = _prepared[:]
    _prepared.clear()
    # Not those in `_watched`: one may have been stopped meanwhile, and its locks are held all the same.
    for watcher, held in prepared:
        for taken in reversed(held):
            taken.release()
        watcher.after_fork_in_parent()
    _forking = None
    lock.release()


def _after_in_child() -> None:
    global lock, _forking
    lock, _forking = osthread.new_rlock(), None
    watchers = {id(watcher): watcher for watcher in [*_watched, *(watcher for watcher, _ in _prepared)]}
    _prepared.clear()
    for watcher in watchers.values():
        watcher.after_fork_in_child()


def settled() -> None:
    """Take back what was arranged for a fork that is over by now.  Called with every tick."""
    global _hushed
    if _hushed is not None and time.monotonic() - _hushed > HUSHED_S:
        filters, _hushed = sys.modules["warnings"].filters, None
        with contextlib.suppress(ValueError):  # somebody has reset the filters meanwhile
            filters.remove(_HUSH)


# Since 3.13 os.fork() counts the threads after the handlers have run, and warns if there is more than one.  Where ours is the only
# other one, and it was not there during the fork, the program must not be warned of it.
_HUSH = ("ignore", re.compile(r"This process \(pid=\d+\) is multi-threaded, use of "), DeprecationWarning, None, 0)
_hushed: float | None = None
"""Monotonic time of the last fork that was hushed."""
HUSHED_S = 1.0
"""The warning comes after the handlers, when the sampling thread runs again: its first tick may be faster."""


def _hush() -> None:
    global _hushed
    if sys.version_info < (3, 13) or not _watched:
        return
    if _hushed is not None:
        _hushed = time.monotonic()
        return
    try:
        alone = len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        alone = False
    if alone:
        import warnings

        _hushed = time.monotonic()
        warnings.filters.insert(0, _HUSH)


def _at_exit() -> None:
    for watcher in list(_watched):
        watcher.at_exit()


def _meet_multiprocessing() -> None:
    """A multiprocessing child leaves by os._exit after its own finalizers, without atexit: be one of those."""
    global _known_to_multiprocessing
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _known_to_multiprocessing:
        _known_to_multiprocessing = True
        util.register_after_fork(sys.modules[__name__], _in_multiprocessing_child)


def _in_multiprocessing_child(_: object) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, _at_exit, exitpriority=-100)
