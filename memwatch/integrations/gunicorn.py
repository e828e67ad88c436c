"""gunicorn: watch every worker, and let one that leaks end between two requests, so that gunicorn starts a fresh one.

    gunicorn -c python:memwatch.integrations.gunicorn app:app

or in a configuration file that has more in it:

    from memwatch.integrations.gunicorn import hooks
    globals().update(hooks(recycle=True, jitter="2m"))

A worker stops accepting, finishes its requests, and ends; the listening socket is shared, so that the others take what comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import memwatch
from memwatch.audience import say
from memwatch.integrations.accepting import accepted, stop_accepting, when
from memwatch.recycling import JITTER, recycler

SAFE = {
    "gunicorn.workers.sync.SyncWorker",
    "gunicorn.workers.gthread.ThreadWorker",
    "gunicorn.workers.gasgi.ASGIWorker",
    "gunicorn.workers.ggevent.GeventWorker",
    "gunicorn.workers.ggevent.GeventPyWSGIWorker",
}
"""Workers whose loop ends when `alive` is False, after the requests under way."""
ASYNCIO = {"gunicorn.workers.gasgi.ASGIWorker"}
"""Those of them whose listening is an asyncio server's."""
HANDSHAKE_S = 10.0
"""Longest time that such a worker waits for TLS handshakes of connections it has accepted."""
UVICORN = {
    "uvicorn.workers.UvicornWorker",
    "uvicorn.workers.UvicornH11Worker",
    "uvicorn_worker._workers.UvicornWorker",
    "uvicorn_worker._workers.UvicornH11Worker",
}


def hooks(
    *,
    recycle: bool | Iterable[str] = True,
    jitter: str = JITTER,
    chain: dict[str, Callable[..., Any]] | None = None,
    **settings: Any,
) -> dict[str, Callable[..., Any]]:
    """Server hooks for gunicorn's configuration: `globals().update(hooks(...))`.

    Args:
        recycle: whether a worker with a confirmed leak, or whose memory runs out within the hour, is recycled; or on which of
            `memwatch.recycling.REASONS`.
        jitter: it goes after a random time up to this long.
        chain: hooks of your own with the same names, called as well: `hooks(chain=globals())`.
        settings: those of `memwatch.start`.

    Raises:
        memwatch.config.SettingError: a setting is unknown or malformed.
    """
    recycler(lambda: None, recycle, jitter)  # refuses what is malformed now, not in every worker
    if settings:
        memwatch.Watcher(**settings)  # likewise: a worker that cannot boot ends the whole server
    theirs = {name: (chain or {}).get(name) for name in ("post_worker_init", "worker_exit", "child_exit")}

    def post_worker_init(worker: Any) -> None:
        _call(theirs["post_worker_init"], worker)
        memwatch.start(**settings)
        watcher = memwatch.current()
        sink = recycler(lambda: leave(worker), recycle, jitter)
        if watcher is None or sink is None:
            return
        why_not = refusal(worker)
        if why_not is not None:
            say("workers that leak are not recycled: %s", why_not)
        else:
            watcher.add_callbacks(sinks=[sink])

    def worker_exit(server: Any, worker: Any) -> None:
        memwatch.stop()  # the goodbye: an exit that was meant is no kill
        _call(theirs["worker_exit"], server, worker)

    def child_exit(server: Any, worker: Any) -> None:
        """In the master: gauges of a worker that is gone must not stay."""
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            with contextlib.suppress(ImportError):
                from memwatch.sinks.prometheus import mark_process_dead

                mark_process_dead(worker.pid)
        _call(theirs["child_exit"], server, worker)

    return {"post_worker_init": post_worker_init, "worker_exit": worker_exit, "child_exit": child_exit}


def _call(hook: Callable[..., Any] | None, *arguments: Any) -> None:
    if hook is not None:
        hook(*arguments)


def _kinds(worker: Any) -> set[str]:
    """Names of a worker's classes: gunicorn loads them by name, and so they are known without loading any here."""
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(worker).__mro__}


def refusal(worker: Any) -> str | None:
    """Why a worker of this class cannot be recycled without losing requests; None if it can."""
    names = _kinds(worker)
    if names & (SAFE | UVICORN):
        return None
    if any(name.startswith("gunicorn.workers.gtornado") for name in names):
        return "gunicorn's tornado worker closes connections that are being served"
    return f"it is not known how a {type(worker).__name__} ends without losing requests"


def leave(worker: Any) -> str | None:
    """Ask a worker to end when its requests are done; returns why it cannot."""
    if _kinds(worker) & UVICORN:
        from memwatch.integrations import uvicorn

        return uvicorn.leave(supervised=True)
    if _kinds(worker) & ASYNCIO:
        worker.loop.call_soon_threadsafe(_close, worker)
        return None
    worker.alive = False
    with contextlib.suppress(OSError, AttributeError):
        os.write(worker.PIPE[1], b".")  # a sync worker that waits for a connection looks up
    return None


def _close(worker: Any) -> None:
    """In the loop of an ASGI worker.  That it is no longer alive ends connections with their next answer; of those whose TLS
    handshake is still to come it does not know, and would not wait for them."""
    loop, servers = worker.loop, list(worker.servers)
    until_s = loop.time() + HANDSHAKE_S

    def is_served() -> bool:
        return (accepted(servers) or 0) <= int(worker.nr_conns) or bool(loop.time() >= until_s)

    def leave_now() -> None:
        worker.alive = False

    stop_accepting(loop, servers, lambda: loop.call_soon(when, is_served, leave_now, loop))


_default = hooks()
post_worker_init, worker_exit, child_exit = (_default[name] for name in ("post_worker_init", "worker_exit", "child_exit"))
