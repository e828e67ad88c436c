"""Where verdicts go besides the log: Sentry, Prometheus, OpenTelemetry, an HTTP endpoint.

Law: a sink speaks through a library that the program has loaded and set up itself; naming a sink loads none.  What is asked for and
not installed is an error that names the extra.  What is away (no network, no `init` yet) costs the watch nothing.

A sink is an object with any of `told(occasion, report)`, `happened(event)`, `ticked(sample, report)` and `ended()`, or a function
called with a `Report`.  One that raises is logged once and disabled.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memwatch.audience import say
from memwatch.config import SettingError
from memwatch.model import Event, Report, Sample

WAITING_KEPT = 4
"""What is told before the library is loaded is told then; each may hold a few hundred KiB."""


@dataclass(frozen=True, slots=True)
class _Known:
    library: str
    """What the program imports when it uses it."""
    distribution: str
    module: str
    make: str


_KNOWN = {
    "sentry": _Known("sentry_sdk", "sentry-sdk", "memwatch.sinks.sentry", "SentrySink"),
    "prometheus": _Known("prometheus_client", "prometheus-client", "memwatch.sinks.prometheus", "sink_of"),
    "otel": _Known("opentelemetry.metrics", "opentelemetry-api", "memwatch.sinks.opentelemetry", "OpenTelemetrySink"),
}
WEBHOOK = "webhook:"
NAMES = (*_KNOWN, f"{WEBHOOK}https://…")
"""What `sinks=` and `MEMWATCH_SINKS` accept."""


def by_name(name: str) -> Any:
    """The sink called *name*, with its defaults: `sentry`, `prometheus`, `otel` or `webhook:https://…`.

    The first three begin when the program has imported the library they speak through, which it does to set it up; naming one
    imports nothing, so that a watcher that starts before the program does not load (and have gevent patch too late) what it uses.

    The same name is the same sink, so that what starts twice tells once.

    Raises:
        memwatch.config.SettingError: no sink is called that, its library is not installed, or the URL is none.

    Cost: a search of the import path.
    """
    sink = _made.get(name)
    if sink is None:
        sink = _made[name] = _make(name)
    return sink


_made: dict[str, Any] = {}


def _make(name: str) -> Any:
    if name.startswith(WEBHOOK):
        from memwatch.sinks.webhook import WebhookSink

        try:
            return WebhookSink(name.removeprefix(WEBHOOK))
        except ValueError as error:
            raise SettingError(f"sinks: {error}") from None
    known = _KNOWN.get(name)
    if known is None:
        import difflib  # only who has mistyped pays

        near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.5)
        suggestion = f", did you mean {near[0]}?" if near else "."
        # What follows a colon may be the address of somebody's endpoint, with a token in it.
        said = name.partition(":")[0]
        raise SettingError(f"sinks: {said!r} is not the name of a sink{suggestion} Give one of {', '.join(NAMES)}.")
    if not _is_installed(known.library):
        raise SettingError(f"sinks: {name!r} needs {known.distribution}, which is not installed: pip install 'memwatch[{name}]'")
    return Awaiting(name, known.library, lambda: getattr(importlib.import_module(known.module), known.make)())


def _is_installed(library: str) -> bool:
    if library in sys.modules:
        return True
    top, _, rest = library.partition(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if found is None or not rest:
        return found is not None
    # A namespace package says nothing about its parts; to search in it would import it.
    places = found.submodule_search_locations or ()
    return any(os.path.exists(os.path.join(place, *rest.split("."))) for place in places)  # noqa: PTH110, PTH118


class Awaiting:
    """A sink that begins once the program has imported a library.

    Args:
        name: what it is called in `Watcher.failures`.
        library: the module to wait for.
        make: makes the sink; called once, on the watcher's thread.

    What is told before is kept (the newest few) and told then.  Threads: one at a time, as the watcher calls.
    """

    def __init__(self, name: str, library: str, make: Callable[[], Any]) -> None:
        self.__module__, self.__qualname__ = "memwatch.sinks", name  # so that a failure is told under this name
        self._library = library
        self._make = make
        self._sink: Any = None
        self._waiting: list[tuple[str, Report]] = []
        self._pid = os.getpid()

    def told(self, occasion: str, report: Report) -> None:
        """Tell it on, or keep it until there is somebody to tell."""
        if (sink := self._begun()) is not None:
            sink.told(occasion, report)
        else:
            self._waiting = [*self._waiting, (occasion, report)][-WAITING_KEPT:]

    def happened(self, event: Event) -> None:
        """Tell it on."""
        if (sink := self._begun()) is not None:
            sink.happened(event)

    def ticked(self, sample: Sample, report: Report) -> None:
        """Tell it on.  Cost while waiting: a look-up."""
        if (sink := self._begun()) is not None:
            sink.ticked(sample, report)

    def ended(self) -> None:
        """Tell it on; or that nobody was told."""
        if (sink := self._begun()) is not None:
            sink.ended()
        elif self._waiting:
            say("%s was told nothing of %d reports: the program never imported %s", *self._unheard())

    def _unheard(self) -> tuple[str, int, str]:
        waiting, self._waiting = self._waiting, []
        return self.__qualname__, len(waiting), self._library

    def _begun(self) -> Any:
        if self._sink is not None:
            return self._sink
        if self._pid != os.getpid():  # a fork: what the parent waits to tell is the parent's
            self._pid, self._waiting = os.getpid(), []
        module = sys.modules.get(self._library)
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return None
        self._sink = self._make()
        waiting, self._waiting = self._waiting, []
        for occasion, report in waiting:
            self._sink.told(occasion, report)
        return self._sink
