"""The forked child as its parent sees it: started if that is safe, read without waiting, killed at its deadline.

Law: the parent pays for the fork and nothing else.  Where a fork is not safe or not allowed, it is not made, and the reason is a
sentence for the Evidence.
"""

from __future__ import annotations

import _imp
import contextlib
import errno
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from memwatch.evidence import census, names

DEADLINE_S = 30.0
"""A child that has not ended by then is killed; what it has told until then counts."""
COPIED_SHARE = 0.5
"""Part of the resident memory that a child may have to copy: its own tables, and pages that the program writes meanwhile (guess;
bench/pause.py prints what was copied)."""
SPARE_BYTES = 64 * 2**20


def refusal(rss_bytes: float | None, limit_bytes: float | None) -> str | None:
    """Why no child may be forked now; None if one may."""
    if sys.platform != "linux":
        return f"the heap is looked at in a forked child on Linux only, not on {sys.platform}"
    if not _heap_is_there():
        return "the heap could not be looked at: the extension memwatch.evidence._heap is not built here"
    if rss_bytes is not None and limit_bytes:
        needed = rss_bytes * COPIED_SHARE + SPARE_BYTES
        if rss_bytes + needed > limit_bytes:
            return (
                f"the heap was not looked at: a forked child may need {needed / 2**20:,.0f} MiB, "
                f"and {max(0.0, limit_bytes - rss_bytes) / 2**20:,.0f} MiB are left under the limit"
            )
    return None


def _heap_is_there() -> bool:
    try:
        return hasattr(importlib.import_module("memwatch.evidence._heap"), "fork_quietly")
    except ImportError:
        return False


class Child:
    """One child at work.

    Args:
        task: what it is to find out.
        clock: monotonic seconds.

    Raises:
        OSError: the system gives no process (limits, seccomp, memory).

    Cost: the fork, about 40 ms per GiB of resident memory with the GIL held (bench/pause.py).
    """

    def __init__(self, task: census.Task, *, deadline_s: float = DEADLINE_S, clock: Callable[[], float] = time.monotonic) -> None:
        heap = importlib.import_module("memwatch.evidence._heap")
        self._owner = os.getpid()
        self._clock = clock
        self._rest = b""
        self.lines: list[dict[str, Any]] = []
        """What it has told."""
        self.died: str | None = None
        """How it ended if not by itself."""
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self.deadline_s = clock() + deadline_s
        began_s = time.perf_counter()
        enabled = gc.isenabled()
        _imp.acquire_lock()  # no other thread may fork while the handlers of os.register_at_fork are put aside
        try:
            self.pid = int(heap.fork_quietly(write, deadline_s, names.OURSELVES))
            if self.pid == 0:
                census.run(task)
        except BaseException:
            os.close(self._read)
            raise
        finally:
            _imp.release_lock()
            os.close(write)
        assert gc.isenabled() == enabled
        self.fork_s = time.perf_counter() - began_s

    def poll(self) -> bool:
        """Read what it has told; True when it has ended.  Never waits."""
        if self._read < 0:
            return True
        while True:
            try:
                data = os.read(self._read, 1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                data = b""
            if not data:
                self._reap()
                self._close()
                return True
            self._rest += data
            *whole, self._rest = self._rest.split(b"\n")
            for line in whole:
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                    if self.lines[-1].get("what") == "failed":
                        self.died = f"failed ({self.lines[-1]['error']})"
        if self._clock() > self.deadline_s:
            self.died = "did not finish in time"
            self.kill()
            return True
        return False

    def kill(self) -> None:
        """End it now.  In a process that inherited this object nothing is killed: the child is not its own."""
        if self._read >= 0 and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()
        self._close()

    def _reap(self) -> None:
        """Take its exit status.  Its pipe is closed or it was killed, so it is about to end.

        The program may have done so already: whoever waits for any child gets ours too.
        """
        try:
            # Not os.waitpid, which gevent replaces with one that waits in its loop.
            _, status = importlib.import_module("posix").waitpid(self.pid, 0)
        except OSError:
            return
        if os.WIFSIGNALED(status) and self.died is None:
            number = os.WTERMSIG(status)
            in_time = number in (signal.SIGALRM, signal.SIGKILL)
            self.died = "did not finish in time, or memory was short" if in_time else f"crashed with signal {number}"

    def _close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read = -1
