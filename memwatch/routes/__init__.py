"""Per route and per job: requests, errors, response times, and which route leaks how many bytes per request.

    flight = routes.ledger().begin("job:thumbnails")
    ...
    routes.ledger().end(flight, "job:thumbnails", failed=False)

Integrations call these two; a watcher reads what was counted.  `ledger` counts, `history` keeps counts and levels over time,
`regression` judges (pure), `attribution` is what a watcher has of it all.

Law: importing registers nothing; the first `ledger()` does.
"""

from __future__ import annotations

import os

from memwatch.routes.buckets import RELATIVE_ERROR
from memwatch.routes.ledger import OTHER, UNMATCHED, Figures, Ledger

__all__ = ["OTHER", "RELATIVE_ERROR", "UNMATCHED", "Figures", "Ledger", "known", "ledger"]

_ledger: Ledger | None = None
_registered = False


def ledger() -> Ledger:
    """The ledger of this process; a forked child's begins empty."""
    global _ledger, _registered
    if _ledger is None:
        _ledger = Ledger()
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_anew)
        _registered = True
    return _ledger


def _begin_anew() -> None:
    if _ledger is not None:
        _ledger.clear()


def known() -> Ledger | None:
    """The ledger of this process, if anything in it counts requests."""
    return _ledger
