"""Reports as JSON to an HTTP endpoint: a chat, a pager, a service of one's own.

Law: the watcher's thread only queues.  Everything is bounded: the queue, the attempts, the time of each; what is dropped is counted
and said once.  An address may hold a secret, and is never shown: no message, log line or `repr` has more of it than the host.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from memwatch import __version__, osthread
from memwatch.audience import Occasion, say
from memwatch.model import Report
from memwatch.report import headline, without_infinities

QUEUE = 16
"""Reports that wait; a watcher has a handful in a bad hour."""
TIMEOUT_S = 5.0
ATTEMPTS = 3
PAUSE_S = 1.0
"""Before the second attempt; before each further one four times as long."""
END_WAIT_S = 2.0
"""`ended()` waits at most this long for what is being sent."""
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another attempt may change; any other refusal is final."""
ANSWER_READ = 65536
EVENTS_SENT = 200
"""Of a month's, the newest."""


class WebhookSink:
    """POSTs what a watcher tells, as JSON: `{"schema": 1, "occasion": "leak", "text": headline, "fingerprint": …, "report": …}`.

    Chats that take incoming webhooks show `text`; `report` is that of `memwatch report --json`.

    Args:
        url: `https://` or `http://`; a name and password in it are sent as Basic authentication.
        headers: sent along, such as `{"Authorization": "Bearer …"}`.
        occasions: send on these only [all; see `memwatch.audience.Occasion`].
        timeout_s: for each attempt to connect, and from then on for its answer, however slowly that comes.
        attempts: for each report; afterwards it is dropped.
        pause_s: before the second attempt.

    Raises:
        ValueError: *url* is no such address, or a number is out of range; the message does not have the address.

    Redirects are not followed.  A thread exists only while something is being sent.  Threads: told by any.
    Cost: for the watcher's thread, that of the report as JSON, some milliseconds.
    """

    dropped: int
    """Reports that were not delivered, since the start of this process."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        occasions: Collection[Occasion] | None = None,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._url, self._host, authorization = _address(url)
        if attempts < 1 or timeout_s <= 0 or pause_s < 0:
            raise ValueError("attempts must be at least 1, timeout_s more than 0, pause_s 0 or more")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"memwatch/{__version__}"}
        self._headers |= authorization | dict(headers or {})
        self._occasions = occasions
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._pause_s = pause_s
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.dropped = 0
        self._said = False
        self._ending = False
        self._lock = osthread.new_lock()
        self._bell = osthread.Alarm()
        self._queue: deque[bytes] = deque()
        self._thread: osthread.Thread | None = None

    def __repr__(self) -> str:
        return f"WebhookSink(to {self._host})"

    def told(self, occasion: Occasion, report: Report) -> None:
        """Queue it."""
        if self._pid != os.getpid():
            self._begin()
        if self._occasions is not None and occasion not in self._occasions:
            return
        body = json.dumps(_content(occasion, report), allow_nan=False).encode()
        with self._lock:
            self._ending = False
            full = len(self._queue) >= QUEUE
            if not full:
                self._queue.append(body)
                self._see_to_it()
        if full:
            self._drop("too many are waiting")

    def ended(self) -> None:
        """Give what waits a moment to leave.  What does not is dropped."""
        thread = self._thread
        if self._pid != os.getpid() or thread is None:
            return
        self._ending = True  # no more pauses: each has one attempt left
        self._bell.ring()
        if not thread.wait_gone(END_WAIT_S):
            with self._lock:
                left = len(self._queue)
                self._queue.clear()
            for _ in range(left):
                self._drop("the watch has ended")

    def _see_to_it(self) -> None:
        """Have a thread that sends; called with the lock."""
        if self._thread is None:
            try:
                self._thread = osthread.Thread(self._run, "memwatch-post")
            except RuntimeError:
                pass  # none to be had now; the next report finds this one waiting

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                body = self._queue[0]
            try:
                why_not = self._deliver(body)
            except Exception as error:  # whatever it is, of its text nothing is told: it may have the address
                why_not = type(error).__name__
            with self._lock:
                if self._queue and self._queue[0] is body:
                    self._queue.popleft()
            if why_not is not None:
                self._drop(why_not)

    def _deliver(self, body: bytes) -> str | None:
        """Send one; why it could not be, or None."""
        pause_s = self._pause_s
        why_not: str | None = None
        for attempt in range(self._attempts):
            if attempt:
                if self._ending:
                    break
                self._bell.wait(pause_s)
                pause_s *= 4
            why_not, again = self._post(body)
            if not again:
                break
        return why_not

    def _post(self, body: bytes) -> tuple[str | None, bool]:
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")
        try:
            # Once it has answered it has the report: whatever comes of the rest, that is not sent again.
            with _OPENER.open(request, timeout=self._timeout_s) as response, contextlib.suppress(OSError, HTTPException):
                response.read(ANSWER_READ)
            return None, False
        except urllib.error.HTTPError as error:
            with error:
                return f"it answered {error.code}", error.code in TRY_AGAIN
        except urllib.error.URLError as error:
            return _plain(error.reason), True
        except (OSError, HTTPException) as error:
            return _plain(error), True

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if not self._said:
            self._said = True
            say("a report could not be sent to %s: %s; further ones that cannot are counted, not told", self._host, why)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A report goes where it was meant to go, or nowhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


class _Timely(io.RawIOBase):
    """What a server sends until the time is over: a socket's own timeout begins anew with each byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._until_s = monotonic() + (connection.gettimeout() or TIMEOUT_S)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until_s - monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        given, self.fp = self.fp, io.BufferedReader(_Timely(sock))
        given.close()


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req)


_OPENER = urllib.request.build_opener(_NoRedirect, _Http, _Https)


def _address(url: str) -> tuple[str, str, dict[str, str]]:
    """The address without name and password, its host, and the header that carries those."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("https", "http") or not host or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise ValueError("a webhook needs an address such as webhook:https://example.org/path")
    named = f"[{host}]" if ":" in host else host
    place = named if port is None else f"{named}:{port}"
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return urlunsplit((parts.scheme, place, parts.path, parts.query, "")), place, headers


def _plain(reason: object) -> str:
    """What went wrong, in words that cannot have the address."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(reason, TimeoutError):
        return "it did not answer in time"
    if isinstance(reason, OSError) and reason.errno is not None and reason.errno > 0:
        return os.strerror(reason.errno)
    return type(reason).__name__


def _content(occasion: Occasion, report: Report) -> dict[str, Any]:
    found: dict[str, Any] = without_infinities(
        {
            "schema": 1,
            "occasion": occasion,
            "text": headline(report),
            "fingerprint": report.fingerprint,
            "report": replace(report, events=report.events[-EVENTS_SENT:]).to_dict(),
        }
    )
    return found
