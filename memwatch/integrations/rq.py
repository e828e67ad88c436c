"""RQ: counts jobs as `job:<function>`, and watches the worker.

    rq worker --worker-class memwatch.integrations.rq.SimpleWorker

RQ's default `Worker` forks a process for each job, with which its leaks die: nothing there grows, and nothing is to be found out.
It is `SimpleWorker`, whose process lives on, that a leaking job fills.
"""

from __future__ import annotations

from typing import Any

import rq

import memwatch
from memwatch.integrations.jobs import route_of
from memwatch.routes import ledger


class CountsJobs:
    """Beside a worker class that runs jobs in its own process: `class Worker(CountsJobs, OurSimpleWorker)`.

    The worker is watched while it works, with the settings of `MEMWATCH_*`.  A job that raises, or exceeds its time, is an error.
    """

    def work(self, *args: Any, **kwargs: Any) -> Any:
        """Work until told to stop, watched."""
        is_ours = memwatch.current() is None
        memwatch.start()
        try:
            return super().work(*args, **kwargs)  # type: ignore[misc]
        finally:
            if is_ours:
                memwatch.stop()

    def perform_job(self, job: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one job, counted."""
        book = ledger()
        route = route_of(_name(job))
        flight = book.begin(route)
        succeeded = False
        try:
            succeeded = super().perform_job(job, *args, **kwargs)  # type: ignore[misc]
            return succeeded
        finally:
            book.end(flight, route, failed=not succeeded)


def _name(job: Any) -> str | None:
    try:
        return str(job.func_name)
    except Exception:
        return None  # its data cannot be read; RQ says so itself, when it tries


class SimpleWorker(CountsJobs, rq.SimpleWorker):
    """RQ's SimpleWorker, watched and counted."""
