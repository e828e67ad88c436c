"""systemd: the state of memory in `systemctl status`, and a watchdog that ends a service whose memory runs out.

    memwatch.start(sinks=[memwatch.integrations.systemd.SystemdSink()])

Speaks to the socket that systemd names in `NOTIFY_SOCKET` (`Type=notify`, `NotifyAccess=main` or more); without one it does
nothing.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from memwatch import units
from memwatch.audience import say
from memwatch.model import Report, Sample
from memwatch.report import headline

STATUS_EVERY_S = 5.0
"""`STATUS=` is written when it changes, at most this often."""
HOPELESS_S = 30.0
"""With `restart_when_exhausted`: the watchdog is not fed any more when memory runs out within this time."""


class SystemdSink:
    """Tells systemd: `STATUS=` with the verdict, and `WATCHDOG=1` while the watcher samples.

    Args:
        watchdog: feed the watchdog, where the unit has one (`WatchdogSec=`).  It then tells whether Python threads still run at
            all; leave it to the program if that feeds it itself.  Samples must come more than twice as often as `WatchdogSec=`.
        restart_when_exhausted: feed it no longer when memory runs out within 30 s, so that systemd restarts the service
            (`Restart=on-watchdog`) before the OOM killer picks another victim.
        ready: send `READY=1` with the first sample; only where the program does not.
        environ, clock: for tests.

    Cost: one datagram of some 100 bytes per sample, about 20 µs (bench/services.py).
    """

    def __init__(
        self,
        *,
        watchdog: bool = True,
        restart_when_exhausted: bool = False,
        ready: bool = False,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        wanted_pid = environ.get("WATCHDOG_PID", "")
        ours = not wanted_pid or wanted_pid == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if watchdog and ours and usec.isdecimal() else None
        """The unit's `WatchdogSec=`; None where the watchdog is not ours to feed."""
        self._pid = os.getpid()
        self._restart_when_exhausted = restart_when_exhausted
        self._ready = ready
        self._clock = clock
        self._said = ""
        self._said_s = float("-inf")
        self._warned = False

    def ticked(self, sample: Sample, report: Report) -> None:
        """A sink's method: tell the state."""
        if self._address is None or os.getpid() != self._pid:  # a forked worker is not the unit's main process
            return
        self._warn_once(report.process.interval_s)
        lines = []
        if self._ready:
            lines.append("READY=1")
            self._ready = False
        now_s, said = self._clock(), headline(report)
        if said != self._said and now_s - self._said_s >= STATUS_EVERY_S:
            self._said, self._said_s = said, now_s
            lines.append(f"STATUS={said}")
        if self.watchdog_s is not None and not (self._restart_when_exhausted and self._is_hopeless(report)):
            lines.append("WATCHDOG=1")
        if lines:
            self._notify("\n".join(lines))

    def ended(self) -> None:
        """A sink's method: nobody watches any more."""
        if self._address is not None and os.getpid() == self._pid:
            self._notify("STATUS=memwatch has stopped watching")

    @staticmethod
    def _is_hopeless(report: Report) -> bool:
        left_s = report.verdict.exhausted_in_s
        return left_s is not None and left_s < HOPELESS_S and report.verdict.state in ("growing", "leaking")

    def _warn_once(self, interval_s: float | None) -> None:
        warned, self._warned = self._warned, True
        if not warned and interval_s is not None and self.watchdog_s is not None and self.watchdog_s < 2 * interval_s:
            say(
                "systemd will end this service: WatchdogSec= is %s and samples come every %s; give interval= at most half of it, "
                "or a longer WatchdogSec=",
                units.format_duration(self.watchdog_s),
                units.format_duration(interval_s),
            )

    def _notify(self, text: str) -> None:
        """Send without waiting; systemd that does not listen is none of the program's business."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.setblocking(False)
                sending.sendto(text.encode("utf-8", "replace"), self._address or "")
        except OSError:
            pass


def _address(given: str) -> str | None:
    """The address of a socket: a path, or an abstract one that is written with `@`."""
    if given.startswith("@"):
        return "\0" + given[1:]
    return given if given.startswith("/") else None
