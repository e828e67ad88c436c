"""What an HTTP endpoint receives, and what happens when it does not."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import report_cases
from sinks_runs import ramp, run, watcher_of

from memwatch.model import Event
from memwatch.sinks import by_name
from memwatch.sinks.webhook import ATTEMPTS, QUEUE, WebhookSink


class Endpoint:
    """A server that keeps what it is sent and answers as told."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[int] = []
        """For the first requests; then 200."""
        self.go = threading.Event()
        self.go.set()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.go.wait(30)
                endpoint.got.append(body)
                endpoint.headers.append(dict(self.headers))
                endpoint.paths.append(self.path)
                status = endpoint.answers.pop(0) if endpoint.answers else 200
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.place}/hooks/s3cret"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server whose answer never ends: a byte at a time, each well within the time."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                pass  # it has hung up, as it should

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/s3cret"
    over.set()
    thread.join()
    listener.close()


def sent(sink: WebhookSink) -> None:
    """Wait until there is nothing left to send."""
    thread = sink._thread
    if thread is not None:
        assert thread.wait_gone(30)


def test_a_leak_is_posted_as_json_with_its_headline_and_the_report(endpoint: Endpoint) -> None:
    sink = WebhookSink(endpoint.url, headers={"X-Team": "shop"})
    watcher, clock = watcher_of(ramp(), [sink])
    run(watcher, clock, 110)
    sent(sink)
    (body,) = endpoint.got
    assert (body["schema"], body["occasion"]) == (1, "leak")
    assert body["text"].startswith("LEAK  api[")
    assert body["fingerprint"] == body["report"]["fingerprint"] == watcher.report().fingerprint
    assert body["report"]["verdict"]["state"] == "leaking"
    assert endpoint.headers[0]["X-Team"] == "shop"
    assert endpoint.headers[0]["Content-Type"] == "application/json"
    assert endpoint.paths == ["/hooks/s3cret"]
    assert sink._thread is None  # there is a thread only while there is something to send


def test_of_a_months_events_the_newest_are_posted(endpoint: Endpoint) -> None:
    sink = WebhookSink(endpoint.url)
    events = tuple(Event(float(n), "note", {"note": str(n)}) for n in range(5000))
    sink.told("leak", replace(report_cases.leak(), events=events))
    sent(sink)
    assert [event["note"] for event in endpoint.got[0]["report"]["events"]] == [str(n) for n in range(4800, 5000)]


def test_only_the_occasions_that_were_asked_for_are_posted(endpoint: Endpoint) -> None:
    sink = WebhookSink(endpoint.url, occasions=("leak",))
    for occasion in ("peak", "leak", "over"):
        sink.told(occasion, report_cases.leak())  # type: ignore[arg-type]
    sent(sink)
    assert [body["occasion"] for body in endpoint.got] == ["leak"]


def test_the_watchers_thread_does_not_wait_for_an_endpoint_that_hangs(endpoint: Endpoint) -> None:
    endpoint.go.clear()
    sink = WebhookSink(endpoint.url)
    for _ in range(3):
        sink.told("leak", report_cases.leak())  # would hang here
    assert endpoint.got == []
    endpoint.go.set()
    sent(sink)
    assert len(endpoint.got) == 3


def test_an_attempt_that_may_succeed_later_is_repeated(endpoint: Endpoint) -> None:
    endpoint.answers = [503, 429, 200]
    sink = WebhookSink(endpoint.url, pause_s=0.01)
    sink.told("leak", report_cases.leak())
    sent(sink)
    assert (len(endpoint.got), sink.dropped) == (3, 0)


@pytest.mark.parametrize(("answer", "attempts"), [(404, 1), (302, 1), (500, ATTEMPTS)])
def test_attempts_end_and_a_redirect_is_not_followed(
    answer: int, attempts: int, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answers = [answer] * 10
    sink = WebhookSink(endpoint.url, pause_s=0.01)
    sink.told("leak", report_cases.leak())
    sent(sink)
    assert endpoint.paths == ["/hooks/s3cret"] * attempts
    assert sink.dropped == 1
    assert f"it answered {answer}" in caplog.text


def test_an_endpoint_whose_answer_drips_in_has_no_more_time_than_one_that_is_silent(
    dripping: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = WebhookSink(dripping, timeout_s=0.5, attempts=1)
    sink.told("leak", report_cases.leak())
    sent(sink)
    assert sink.dropped == 1
    assert "it did not answer in time" in caplog.text


def test_what_was_accepted_is_not_sent_again_whatever_becomes_of_the_answers_body() -> None:
    received = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    received.append(connection.recv(1 << 20))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        sink = WebhookSink(f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/s3cret", pause_s=0.01)
        sink.told("leak", report_cases.leak())
        sent(sink)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert sink.dropped == 0
    assert sum(b"POST" in part for part in received) == 1


def test_what_cannot_be_sent_is_counted_and_said_once_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        sink = WebhookSink(f"http://user:passw0rd@{place}/hooks/s3cret?token=t0ken", pause_s=0.01)
        for _ in range(3):
            sink.told("leak", report_cases.leak())
        sent(sink)
    assert sink.dropped == 3
    ours = [record.getMessage() for record in caplog.records if record.name == "memwatch"]
    told = f"pid {os.getpid()}: a report could not be sent to {place}: Connection refused; further ones that cannot are counted"
    assert ours == [told + ", not told"]
    assert not [secret for secret in ("s3cret", "t0ken", "passw0rd") if secret in caplog.text + repr(sink) + str(ours)]


def test_a_name_and_password_in_the_address_are_sent_as_authentication(endpoint: Endpoint) -> None:
    sink = WebhookSink(endpoint.url.replace("http://", "http://user:p%40ss@"))
    sink.told("leak", report_cases.leak())
    sent(sink)
    assert endpoint.headers[0]["Authorization"] == "Basic dXNlcjpwQHNz"
    assert endpoint.headers[0]["Host"] == endpoint.place


def test_the_queue_is_bounded_and_what_does_not_fit_is_dropped(endpoint: Endpoint) -> None:
    endpoint.go.clear()
    sink = WebhookSink(endpoint.url)
    for _ in range(QUEUE + 5):
        sink.told("leak", report_cases.leak())
    assert (len(sink._queue), sink.dropped) == (QUEUE, 5)
    endpoint.go.set()
    sent(sink)
    assert len(endpoint.got) == QUEUE


def test_a_leak_found_at_the_very_end_still_leaves(endpoint: Endpoint) -> None:
    sink = WebhookSink(endpoint.url)
    sink.told("leak", report_cases.leak())
    sink.ended()
    assert len(endpoint.got) == 1


def test_the_end_waits_for_no_endpoint_that_hangs(endpoint: Endpoint) -> None:
    endpoint.go.clear()
    sink = WebhookSink(endpoint.url)
    sink.told("leak", report_cases.leak())
    sink.told("over", report_cases.leak())
    sink.ended()  # would hang here
    assert endpoint.got == []
    assert sink.dropped == 2
    endpoint.go.set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12 and later
def test_a_forked_child_sends_its_own_and_not_its_parents(endpoint: Endpoint) -> None:
    endpoint.go.clear()
    sink = WebhookSink(endpoint.url)
    sink.told("leak", report_cases.leak())
    child = os.fork()
    if child == 0:
        sink.told("over", report_cases.leak())
        endpoint.go.set()
        thread = sink._thread
        os._exit(0 if thread is not None and thread.wait_gone(20) and sink.dropped == 0 else 1)
    endpoint.go.set()
    _, status = os.waitpid(child, 0)
    assert status == 0
    sent(sink)
    assert sorted(body["occasion"] for body in endpoint.got) == ["leak", "over"]


def test_by_name_it_is_the_address_after_the_colon(endpoint: Endpoint) -> None:
    sink = by_name(f"webhook:{endpoint.url}")
    sink.told("leak", report_cases.leak())
    sent(sink)
    assert len(endpoint.got) == 1


@pytest.mark.parametrize(
    "url", ["example.org", "ftp://example.org", "https://", "https://a b.org/", "https://a.org:port/", "http://[/"]
)
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="a webhook needs an address"):
        WebhookSink(url)
