"""Leaks as Sentry issues, through sentry_sdk, which the program initialises.

Law: never `init`, never the program's scopes but for breadcrumbs; what is told before the program has initialised Sentry is sent
then.  One event per leak and process, another when it has doubled; the log's own report of it is not sent as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.logging import ignore_logger, unignore_logger
from sentry_sdk.transport import Transport

import memwatch
from memwatch import osthread
from memwatch.audience import Occasion, say
from memwatch.model import Event, Report, Sample
from memwatch.report import NoStacks
from memwatch.report.happenings import happened as in_words
from memwatch.sinks.figures import EXPORTED, Figures
from memwatch.sinks.sentry_event import TYPES, event_of, fingerprint

LOGGER = "memwatch"
ALARM_AGAIN_S = 3600.0
"""High memory, fast growth and near exhaustion are events again after this; a level that is crossed back and forth is one."""
FLUSH_S = 2.0
EVENTS_SENT = 200
"""Of a month's, the newest."""
METRICS_EVERY_S = 60.0
REMEMBERED = 64
"""Leaks and alarms that are remembered as told."""
WAITING_KEPT = 4
"""Reports that wait for the program to initialise Sentry."""


class SentrySink:
    """Sends what a watcher tells to Sentry.

    Args:
        metrics: send memory, growth and the limit as Sentry metrics, too, once a minute (they count against the quota).
        help_link: shown with every issue for which memwatch has no link of its own, such as a runbook.
        clock: monotonic seconds; for tests.

    Threads: told by one at a time, as the watcher does.
    Cost: an event takes some milliseconds to build and is sent by Sentry's own thread; at the level `fatal` it is waited for, for
    2 s at most.
    """

    def __init__(self, *, metrics: bool = False, help_link: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._help_link = help_link
        self._clock = clock
        self._figures = Figures()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._told: dict[tuple[str, ...], tuple[float, float]] = {}  # when, and how much it had grown
        self._waiting: list[tuple[Occasion, Report]] = []
        self._metrics_due_s = float("-inf")
        self._active = False

    def told(self, occasion: Occasion, report: Report) -> None:
        """Send an event, unless it was sent already."""
        self._check_fork()
        self._figures.told(occasion, report)
        if occasion not in TYPES:
            return
        if sentry_sdk.is_initialized():
            self._send(occasion, report)
        else:
            self._waiting = [*self._waiting, (occasion, report)][-WAITING_KEPT:]

    def happened(self, event: Event) -> None:
        """Leave a breadcrumb for pressure and what relieved it: the program's next event shows them."""
        self._check_fork()
        if event.what not in ("pressure", "relief", "finding", "plug") or not sentry_sdk.is_initialized():
            return
        worse = event.what == "pressure" and event.details.get("level") != "normal"
        # The scope of all threads: what the program reports from one of its own is where it helps.
        sentry_sdk.get_global_scope().add_breadcrumb(
            {
                "category": f"memwatch.{event.what}",
                "type": "default",
                "level": "warning" if worse or event.what in ("finding", "plug") else "info",
                "message": in_words(event),
                "timestamp": datetime.fromtimestamp(event.time_s, UTC),
            }
        )

    def ticked(self, sample: Sample, report: Report) -> None:
        """Send what has waited for Sentry, and metrics where they are wanted.  Cost: microseconds, but once a minute."""
        self._check_fork()
        if not sentry_sdk.is_initialized():
            return
        if not self._active:
            self._active = True
            ignore_logger(LOGGER)  # it would make a second event of each, where warnings are events
        waiting, self._waiting = self._waiting, []
        for occasion, told in waiting:
            self._send(occasion, told)
        now_s = self._clock()
        if self._metrics and now_s >= self._metrics_due_s and not osthread.threads_are_greenlets():
            self._metrics_due_s = now_s + METRICS_EVERY_S
            self._figures.ticked(sample, report)
            self._send_metrics()

    def ended(self) -> None:
        """Give the log back to Sentry; say it if Sentry was told nothing."""
        if self._waiting:
            say("sentry was told nothing of %d reports: the program never initialised it", len(self._waiting))
            self._waiting = []
        if self._active:
            self._active = False
            unignore_logger(LOGGER)

    def _check_fork(self) -> None:
        if self._pid != os.getpid():
            active = self._active
            self._begin()
            self._active = active

    def _send(self, occasion: Occasion, report: Report) -> None:
        if not self._is_news(occasion, report):
            return
        event: Any = event_of(occasion, report, help_link=self._help_link)
        client = _client_of_this_thread()
        with sentry_sdk.new_scope() as scope:
            for filename, content_type, text in _attachments(occasion, report):
                scope.add_attachment(bytes=text.encode(), filename=filename, content_type=content_type)
            if client is not None:
                scope.set_client(client)
            scope.capture_event(event)
        if client is not None:
            client.close(timeout=FLUSH_S)
        elif event["level"] == "fatal":
            sentry_sdk.flush(timeout=FLUSH_S)

    def _is_news(self, occasion: Occasion, report: Report) -> bool:
        key, now_s = fingerprint(occasion, report), self._clock()
        grown = report.verdict.grown
        before = self._told.pop(key, None)
        if before is not None:
            when_s, had_grown = before
            again = grown >= 2 * had_grown if key[1] == "leak" else now_s - when_s >= ALARM_AGAIN_S
            if not again:
                self._told[key] = before
                return False
        self._told[key] = (now_s, grown)
        while len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        return True

    def _send_metrics(self) -> None:
        for metric, labels, value in self._figures.current():
            if metric in EXPORTED:
                attributes = {f"memwatch.{name}": text for name, text in zip(metric.labels, labels, strict=True)}
                sentry_sdk.metrics.gauge(metric.instrument, value, unit=EXPORTED[metric], attributes=attributes)


class MemwatchIntegration(Integration):
    """Starts the watcher with `sentry_sdk.init(integrations=[MemwatchIntegration()])`.

    Args:
        metrics, help_link: of `SentrySink`.
        start: arguments of `memwatch.start`; sinks given here are told, too.

    Raises:
        memwatch.config.SettingError: `init` does, where one of them is malformed.
    """

    identifier = "memwatch"

    def __init__(self, *, metrics: bool = False, help_link: str | None = None, **start: Any) -> None:
        self._sink = SentrySink(metrics=metrics, help_link=help_link)
        self._start = start

    @staticmethod
    def setup_once() -> None:
        """Nothing: what is to be done needs the arguments."""

    def setup_once_with_options(self, options: dict[str, Any] | None = None) -> None:
        """Start to watch."""
        sinks = [*(self._start.get("sinks") or ()), self._sink]
        memwatch.start(**(self._start | {"sinks": sinks}))


_CARRIED_OVER = (
    "dsn", "release", "environment", "dist", "server_name", "before_send", "transport", "http_proxy", "https_proxy",
    "proxy_headers", "ca_certs", "cert_file", "key_file", "socket_options", "keep_alive", "in_app_include", "in_app_exclude",
    "project_root", "send_default_pii", "event_scrubber", "max_breadcrumbs", "debug",
)  # fmt: skip


def _client_of_this_thread() -> sentry_sdk.Client | None:
    """Under gevent and eventlet, a client for one event, which sends from the watcher's thread; else None: the program's will do.

    The program's client starts its sending thread with the first event.  Started from here that would be a greenlet of the
    watcher's own loop, which nobody runs: our event would wait for ever, and every later one of the program's behind it.
    """
    options = sentry_sdk.get_client().options
    if not osthread.threads_are_greenlets() or isinstance(options.get("transport"), Transport):
        return None  # a transport that the program made is not ours to close
    return sentry_sdk.Client(
        **{name: options[name] for name in _CARRIED_OVER if options.get(name) is not None},
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
    )


def _attachments(occasion: Occasion, report: Report) -> list[tuple[str, str, str]]:
    """File name, type and text: everything that is known, and the stacks for a flame graph."""
    report = replace(report, events=report.events[-EVENTS_SENT:])
    found = [("evidence.json", "application/json", report.render("json"))]
    if occasion in ("leak", "doubled", "growth"):
        try:
            found.append(("heap.speedscope.json", "application/json", report.render("speedscope")))
        except NoStacks:
            pass
    return found
