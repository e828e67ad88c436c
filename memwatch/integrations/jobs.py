"""What the task queues share: jobs under way by their id, counted as routes `job:<name>`."""

from __future__ import annotations

from collections.abc import Hashable

from memwatch.routes import Ledger
from memwatch.routes.flights import Flight

PREFIX = "job:"
MOST_UNDER_WAY = 10_000
"""Jobs under way that are known; a queue that never says that a job is over must not be a leak."""


class Jobs:
    """Jobs that begin and end by id.

    Threads: safe from any.  Never raises.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._under_way: dict[Hashable, tuple[Flight, str]] = {}

    def begin(self, identity: Hashable, name: object) -> None:
        """A job begins; one of the same id that never ended is forgotten."""
        self.forget(identity)
        if len(self._under_way) < MOST_UNDER_WAY:
            route = route_of(name)
            self._under_way[identity] = self._ledger.begin(route), route

    def end(self, identity: Hashable, *, failed: bool) -> None:
        """It is over.  One that did not begin here (in the parent, before a fork) is nothing of ours."""
        found = self._under_way.pop(identity, None)
        if found is not None:
            self._ledger.end(*found, failed=failed)

    def forget(self, identity: Hashable) -> None:
        """It was not run."""
        found = self._under_way.pop(identity, None)
        if found is not None:
            self._ledger.forget(found[0])


def route_of(name: object) -> str:
    """What a job's route is called."""
    return f"{PREFIX}{name}" if isinstance(name, str) and name else f"{PREFIX}?"
