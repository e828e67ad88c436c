"""APScheduler 3: counts jobs as `job:<name>`.

    watch(scheduler)

APScheduler 4 (a pre-release) has no listener of this kind: it publishes `JobAcquired` and `JobReleased` to
`scheduler.subscribe(...)`, often in another process than the one that runs the job.  There, wrap the function: `counted(function)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from apscheduler import events

from memwatch.integrations.jobs import PREFIX, Jobs
from memwatch.routes import ledger

NAMES_KEPT = 1000
_MASK = (
    events.EVENT_JOB_ADDED
    | events.EVENT_JOB_SUBMITTED
    | events.EVENT_JOB_EXECUTED
    | events.EVENT_JOB_ERROR
    | events.EVENT_JOB_MISSED
)

P = ParamSpec("P")
R = TypeVar("R")


def watch(scheduler: Any) -> Callable[[], None]:
    """Count the jobs of a scheduler; returns a function that ends it.

    Response times begin when the job is handed to its executor, so that waiting for a free thread is part of them.  Jobs of a
    `ProcessPoolExecutor` are counted, but what they do to memory is not this process's.

    Raises:
        TypeError: it is no scheduler of APScheduler 3.
    """
    add = getattr(scheduler, "add_listener", None)
    if add is None:
        raise TypeError(
            f"{type(scheduler).__name__} has no add_listener: it is no scheduler of APScheduler 3; wrap the jobs with counted()"
        )
    jobs = Jobs(ledger())
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
        elif event.code == events.EVENT_JOB_SUBMITTED:
            for moment in event.scheduled_run_times:
                jobs.begin((event.job_id, moment), named(event))
        elif event.code == events.EVENT_JOB_MISSED:
            jobs.forget((event.job_id, event.scheduled_run_time))
        else:
            jobs.end((event.job_id, event.scheduled_run_time), failed=event.code == events.EVENT_JOB_ERROR)

    add(happened, _MASK)
    return functools.partial(scheduler.remove_listener, happened)


def counted(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """The function, each of its calls counted as a job; for APScheduler 4 and whatever else calls functions."""
    route = f"{PREFIX}{name or getattr(function, '__qualname__', '?')}"

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        book = ledger()
        number = book.begin(route)
        failed = True
        try:
            result = function(*args, **kwargs)
            failed = False
            return result
        finally:
            book.end(number, route, failed=failed)

    return call
