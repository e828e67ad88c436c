"""The forked child as its parent sees it: started if that is safe, read without waiting, killed at its deadline.

Law: the parent pays for the fork and nothing else.  Where a fork is not safe or not allowed, it is not made, and the reason is a
sentence for the Evidence.
"""

from __future__ import annotations

import _imp
import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from memwatch.descriptors import identity
from memwatch.evidence import census, names

DEADLINE_S = 30.0
"""A child that has not ended by then is killed; what it has told until then counts."""
COPIED_SHARE = 0.5
"""Part of the resident memory that a child may have to copy: its own tables, and pages that the program writes meanwhile (guess;
bench/pause.py prints what was copied)."""
SPARE_BYTES = 64 * 2**20
LEFT_S = 60.0
"""A SIGCHLD handler of the program has so long to take the exit status of a child: it may come late, in the main thread."""


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
        niceness: 19, the least priority, where nobody waits for it; 0 where somebody does.
        clock: monotonic seconds.

    Raises:
        OSError: the system gives no process (limits, seccomp, memory).
        RuntimeError: in a sub-interpreter, or while one is alive.

    Cost: the fork, about 40 ms per GiB of resident memory with the GIL held (bench/pause.py).
    """

    def __init__(
        self,
        task: census.Task,
        *,
        deadline_s: float = DEADLINE_S,
        niceness: int = 19,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        heap = importlib.import_module("memwatch.evidence._heap")
        _take_left(time.monotonic())
        self._owner = os.getpid()
        self._clock = clock
        self._rest = b""
        self.lines: list[dict[str, Any]] = []
        """What it has told."""
        self.died: str | None = None
        """How it ended if not by itself."""
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._identity = identity(self._read)
        self.deadline_s = clock() + deadline_s
        began_s = time.perf_counter()
        _imp.acquire_lock()  # no other thread may fork while the handlers of os.register_at_fork are put aside
        try:
            self.pid = int(heap.fork_quietly(write, deadline_s, names.OURSELVES, niceness))
            if self.pid == 0:
                census.run(task)
        except BaseException:
            os.close(self._read)
            raise
        finally:
            _imp.release_lock()
            os.close(write)
        self.fork_s = time.perf_counter() - began_s

    def poll(self) -> bool:
        """Read what it has told; True when it has ended.  Never waits."""
        if self._read < 0:
            return True
        while True:
            if identity(self._read) != self._identity:
                # The program has closed all descriptors, as daemons do, and that number is by now another file's: not ours to read.
                self._read = -1
                self.died = "was lost: the program closed its pipe"
                self._reap(kill=True)
                return True
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
            self._reap(kill=True)
        self._close()

    def _reap(self, *, kill: bool = False) -> None:
        """Learn how it ended, and take its exit status.  Its pipe is closed or it is killed, so it is about to end.

        The program may have taken it already: whoever waits for any child gets ours too.  Where it has a handler for SIGCHLD, which
        may wait for *a* child without asking whether there is one, ours is left for it for a while.
        """
        if kill:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except OSError:
            return
        if ended is not None and ended.si_code != os.CLD_EXITED and self.died is None:
            how = {
                int(signal.SIGALRM): "did not finish in time",
                int(signal.SIGKILL): "was killed: memory was short, or somebody did it",
            }
            self.died = how.get(int(ended.si_status), f"crashed with signal {ended.si_status}")
        if signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, signal.SIG_IGN):
            _wait(self.pid, 0)
        else:
            _left.append((self.pid, time.monotonic() + LEFT_S))

    def _close(self) -> None:
        if self._read >= 0:
            if identity(self._read) == self._identity:
                os.close(self._read)
            self._read = -1


# Children that have ended and were left for a SIGCHLD handler of the program, with the moment from which nobody wants them more.
_left: list[tuple[int, float]] = []


def _take_left(now_s: float) -> None:
    for pid, until_s in list(_left):
        if now_s >= until_s:
            _left.remove((pid, until_s))
            _wait(pid, os.WNOHANG)


def _wait(pid: int, options: int) -> None:
    with contextlib.suppress(OSError):
        # Not os.waitpid, which gevent replaces with one that waits in its loop.
        importlib.import_module("posix").waitpid(pid, options)
