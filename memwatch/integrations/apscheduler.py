"""APScheduler 3: counts jobs as `job:<name>`.

    watch(scheduler)

APScheduler 4 (a pre-release) has no listener of this kind: it publishes `JobAcquired` and `JobReleased` to
`scheduler.subscribe(...)`, often in another process than the one that runs the job.  There, wrap the function: `counted(function)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from apscheduler import events

from memwatch.integrations.jobs import PREFIX, route_of
from memwatch.routes import ledger

NAMES_KEPT = 1000
_MASK = events.EVENT_JOB_ADDED | events.EVENT_JOB_EXECUTED | events.EVENT_JOB_ERROR

P = ParamSpec("P")
R = TypeVar("R")


def watch(scheduler: Any) -> Callable[[], None]:
    """Count the jobs of a scheduler; returns a function that ends it.

    Response times begin when the job is due, so that waiting for a free thread is part of them.  A job is counted when it is over:
    it is never in flight, and single runs are not measured; `counted()` does both.  (APScheduler tells that a job was submitted
    when it may be over already.)  Jobs of a `ProcessPoolExecutor` are counted, but what they do to memory is not this process's.

    Raises:
        TypeError: it is no scheduler of APScheduler 3.
    """
    add = getattr(scheduler, "add_listener", None)
    if add is None:
        raise TypeError(
            f"{type(scheduler).__name__} has no add_listener: it is no scheduler of APScheduler 3; wrap the jobs with counted()"
        )
    book = ledger()
    # A job that runs once has left its store before its first event: names are remembered from when it was added.
    names = {str(job.id): str(job.name) for job in scheduler.get_jobs()[-NAMES_KEPT:]}

    def named(event: Any) -> str | None:
        if event.job_id not in names:
            job = scheduler.get_job(event.job_id, event.jobstore)
            if job is None:
                return None
            if len(names) >= NAMES_KEPT:
                del names[next(iter(names))]
            names[event.job_id] = str(job.name)
        return names[event.job_id]

    def happened(event: Any) -> None:
        if event.code == events.EVENT_JOB_ADDED:
            named(event)
        else:
            due = event.scheduled_run_time
            took_s = (datetime.now(due.tzinfo) - due).total_seconds()
            book.add(route_of(named(event)), took_s, failed=event.code == events.EVENT_JOB_ERROR)

    add(happened, _MASK)
    return functools.partial(scheduler.remove_listener, happened)


def counted(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """The function, each of its calls counted as a job; for APScheduler 4 and whatever else calls functions."""
    route = f"{PREFIX}{name or getattr(function, '__qualname__', '?')}"

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        book = ledger()
        flight = book.begin(route)
        failed = True
        try:
            result = function(*args, **kwargs)
            failed = False
            return result
        finally:
            book.end(flight, route, failed=failed)

    return call
