"""Celery: counts tasks as `job:<name>`, and watches every worker process.

    from memwatch.integrations.celery import connect
    connect()                                         # in the module that makes the app

Law: a signal handler of ours never raises into the worker; what it is given is not kept.
"""

from __future__ import annotations

from typing import Any

from celery import signals

import memwatch
from memwatch.integrations.jobs import Jobs
from memwatch.routes import ledger

_UID = "memwatch"
_jobs: Jobs | None = None


def connect(*, start: bool = True, **settings: Any) -> None:
    """Count the tasks of this process's workers.  May be called again; the last settings hold.

    Args:
        start: whether to watch each worker process of the prefork pool from its start to its end.  With the pools `solo`,
            `threads`, `gevent` and `eventlet` there is only the worker itself, which is watched from `worker_init` on.
        settings: those of `memwatch.start`.

    Raises:
        memwatch.SettingError: a setting is malformed.

    A task that raises is an error; one that is retried, ignored or rejected is not.
    """
    global _jobs
    if settings:
        memwatch.Watcher(**settings)  # to refuse what is malformed here, not in a worker
    _jobs = Jobs(ledger())
    signals.task_prerun.connect(_begun, weak=False, dispatch_uid=f"{_UID}.prerun")
    signals.task_postrun.connect(_over, weak=False, dispatch_uid=f"{_UID}.postrun")
    if not start:
        return

    def begin(**_: Any) -> None:
        memwatch.start(**settings)

    def begin_here(sender: Any = None, **_: Any) -> None:
        pool = str(getattr(sender, "pool_cls", ""))
        if "prefork" not in pool:
            memwatch.start(**settings)

    def end(**_: Any) -> None:
        memwatch.stop()

    signals.worker_process_init.connect(begin, weak=False, dispatch_uid=f"{_UID}.begin")
    signals.worker_process_shutdown.connect(end, weak=False, dispatch_uid=f"{_UID}.end")
    signals.worker_init.connect(begin_here, weak=False, dispatch_uid=f"{_UID}.init")
    signals.worker_shutdown.connect(end, weak=False, dispatch_uid=f"{_UID}.shutdown")


def _begun(task_id: str | None = None, task: Any = None, **_: Any) -> None:
    if _jobs is not None:
        _jobs.begin(task_id, getattr(task, "name", None))


def _over(task_id: str | None = None, state: str | None = None, **_: Any) -> None:
    if _jobs is not None:
        _jobs.end(task_id, failed=state == "FAILURE")
