"""Celery: counts tasks as `job:<name>`, and watches every worker process.

    from memwatch.integrations.celery import connect
    connect()                                         # in the module that makes the app

Law: a signal handler of ours never raises into the worker; what it is given is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import signals

import memwatch
from memwatch.audience import say
from memwatch.integrations.jobs import Jobs
from memwatch.recycling import JITTER, recycler
from memwatch.routes import ledger

_UID = "memwatch"
NO_LIMIT_KIB = 2**50
"""A limit that no process reaches."""
_jobs: Jobs | None = None


def connect(*, start: bool = True, recycle: bool | Iterable[str] = False, jitter: str = JITTER, **settings: Any) -> None:
    """Count the tasks of this process's workers.  May be called again; the last settings hold.

    Args:
        start: whether to watch each worker process of the prefork pool from its start to its end.  With the pools `solo`,
            `threads`, `gevent` and `eventlet` there is only the worker itself, which is watched from `worker_init` on.
        recycle: whether a process of the prefork pool with a confirmed leak, or whose memory runs out within the hour, ends after
            the task it is at and is replaced; or on which of `memwatch.recycling.REASONS`.  Unlike Celery's own
            `worker_max_memory_per_child`, which compares the highest resident memory ever with a limit, it lets a process live
            that has had one large task.
        jitter: it goes after a random time up to this long.
        settings: those of `memwatch.start`.

    Raises:
        memwatch.SettingError: a setting is malformed.

    A task that raises is an error; one that is retried, ignored or rejected is not.
    """
    global _jobs
    recycler(lambda: None, recycle, jitter)  # refuses what is malformed here, not in a worker
    if settings:
        memwatch.Watcher(**settings)  # to refuse what is malformed here, not in a worker
    _jobs = Jobs(ledger())
    signals.task_prerun.connect(_begun, weak=False, dispatch_uid=f"{_UID}.prerun")
    signals.task_postrun.connect(_over, weak=False, dispatch_uid=f"{_UID}.postrun")
    if not start:
        return

    def begin(**_: Any) -> None:
        memwatch.start(**settings)
        sink, watcher = recycler(_leave, recycle, jitter), memwatch.current()
        if sink is not None and watcher is not None:
            watcher.add_callbacks(sinks=[sink])

    def begin_here(sender: Any = None, **_: Any) -> None:
        pool = str(getattr(sender, "pool_cls", ""))
        if "prefork" not in pool:
            memwatch.start(**settings)
            if recycle:
                say("workers that leak are not recycled: only the prefork pool replaces a process, not %s", pool)
        elif recycle and not sender.max_memory_per_child:
            # A process looks at its memory after each task only if there is a limit; the pool is made with this one.
            sender.max_memory_per_child = NO_LIMIT_KIB

    def end(**_: Any) -> None:
        memwatch.stop()

    signals.worker_process_init.connect(begin, weak=False, dispatch_uid=f"{_UID}.begin")
    signals.worker_process_shutdown.connect(end, weak=False, dispatch_uid=f"{_UID}.end")
    signals.worker_init.connect(begin_here, weak=False, dispatch_uid=f"{_UID}.init")
    signals.worker_shutdown.connect(end, weak=False, dispatch_uid=f"{_UID}.shutdown")


def _leave() -> str | None:
    """In a process of the prefork pool: it ends after a task when it finds its memory above the limit, so let it find that."""
    from billiard import pool

    if not hasattr(pool, "mem_rss"):
        return "this billiard does not say how much memory a process may use"
    pool.mem_rss = lambda: 2 * NO_LIMIT_KIB
    return None


def _begun(task_id: str | None = None, task: Any = None, **_: Any) -> None:
    if _jobs is not None:
        _jobs.begin(task_id, getattr(task, "name", None))


def _over(task_id: str | None = None, state: str | None = None, **_: Any) -> None:
    if _jobs is not None:
        _jobs.end(task_id, failed=state == "FAILURE")
