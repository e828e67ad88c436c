"""Dramatiq: counts messages as `job:<actor>`, and watches every worker process.

broker.add_middleware(MemwatchMiddleware())
"""

from __future__ import annotations

from typing import Any

import dramatiq

import memwatch
from memwatch.integrations.jobs import Jobs
from memwatch.routes import ledger


class MemwatchMiddleware(dramatiq.Middleware):
    """Counts every message under its actor.

    Args:
        start: whether to watch each worker process from its boot to the end of its workers.
        settings: those of `memwatch.start`.

    Raises:
        memwatch.SettingError: a setting is malformed.

    A message whose actor raises is an error, whether it is retried or not; one that is skipped is not counted.  Messages run on
    several threads at once: single ones are measured only where one runs alone (`--threads 1`).
    """

    def __init__(self, *, start: bool = True, **settings: Any) -> None:
        super().__init__()
        if settings:
            memwatch.Watcher(**settings)  # to refuse what is malformed here, not in a worker
        self._start = start
        self._settings = settings
        self._jobs = Jobs(ledger())

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """A worker process has begun."""
        if self._start:
            memwatch.start(**self._settings)

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """The workers of a process have ended."""
        if self._start:
            memwatch.stop()

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        """A message's actor is about to run."""
        self._jobs.begin(message.message_id, message.actor_name)

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """It has run."""
        self._jobs.end(message.message_id, failed=exception is not None)

    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        """It was not run."""
        self._jobs.forget(message.message_id)
