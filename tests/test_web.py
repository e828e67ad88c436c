"""`memwatch serve` as a program asks it: what it answers, whom it admits, what it refuses, and what it tells as it happens."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import report_cases as cases
from serving import Server, until
from web_runs import ask, dashboard, fleet, leaking, write

from memwatch.model import Process, Sample
from memwatch.record import Record, RecordWriter

TOKEN = "a-token-of-some-length"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SIDE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fleet(tmp_path_factory.mktemp("web") / "records")


@pytest.fixture(scope="module")
def server(records: dict[str, Path]) -> Iterator[Server]:
    with dashboard(records["leak"].parent) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(records: dict[str, Path]) -> Iterator[Server]:
    with dashboard(records["leak"].parent, "--allow-host", "dash.example.com", token=TOKEN) as running:
        yield running


def rows(page: str) -> list[str]:
    return re.findall(r'<tr data-row="([^"]*)"', page)


# Pages.


def test_every_page_is_there_and_every_answer_carries_the_headers(server: Server, records: dict[str, Path]) -> None:
    name = records["leak"].stem
    asset = re.search(r'src="(/assets/[^"]+)"', ask(server, "/").body)
    assert asset is not None
    for path, status in (
        ("/", 200),
        (f"/process/{name}", 200),
        (f"/process/{name}/report.json", 200),
        ("/compare", 200),
        (f"/compare?a={name}@first&b={name}", 200),
        (asset[1], 200),
        ("/nothing", 404),
        ("/process/nobody", 404),
        ("/?sort=x", 400),
        ("/assets/0/memwatch.js", 404),
    ):
        answer = ask(server, path)
        assert (path, answer.status) == (path, status)
        assert {key: answer.headers.get(key) for key in SIDE} == SIDE, path
        assert answer.headers["cache-control"] == ("public, max-age=31536000, immutable" if path == asset[1] else "no-store")
        assert "server" not in answer.headers


def test_the_fleet_shows_who_runs_before_who_has_ended_and_the_worst_first(server: Server, records: dict[str, Path]) -> None:
    page = ask(server, "/").body
    assert rows(page) == [records[name].stem for name in ("leak", "hostile", "calm", "older")]
    running, ended = page.split('<section id="ended"')
    assert "+12.4 MiB/min" in running
    assert "1.21 of 2.00 GiB" in running
    assert "64 min" in running
    assert "exit status 0" in ended


def test_the_table_is_sorted_and_sifted_by_what_the_address_says(server: Server, records: dict[str, Path]) -> None:
    by_name = rows(ask(server, "/?sort=name&order=desc").body)
    assert by_name[:3] == [records[name].stem for name in ("calm", "hostile", "leak")]
    assert rows(ask(server, "/?q=version%3D1.1+LEAK").body) == [records["leak"].stem]


def test_a_request_that_is_not_understood_is_told_the_value_and_the_fix(server: Server) -> None:
    assert (
        "&#x27;&lt;b&gt;&#x27; is not one of worst, name, kind, rate"
        in ask(server, "/?sort=<b>".replace("<", "%3C").replace(">", "%3E")).body
    )
    assert json.loads(ask(server, "/?order=up", headers={"Accept": "*/*"}).body) == {"error": "order: 'up' is not one of asc, desc"}


def test_a_page_of_a_process_has_the_sections_of_its_report(server: Server, records: dict[str, Path]) -> None:
    page = ask(server, f"/process/{records['leak'].stem}").body
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["verdict", "curve", "proof", "evidence", "caches", "channels", "events", "process"]
    assert "app.sessions.Session" in page
    data = re.search(r'id="memwatch-data">(.*?)</script>', page)
    assert data is not None
    assert set(json.loads(data[1])["curves"]) == {"memory", "resources"}


def test_a_report_is_there_as_a_file_too(server: Server, records: dict[str, Path]) -> None:
    path = f"/process/{records['leak'].stem}/report."
    assert json.loads(ask(server, path + "json").body)["process"]["pid"] == 101
    assert ask(server, path + "md").headers["content-disposition"].startswith("attachment;")
    assert "one of report.html, report.md" in ask(server, path + "exe").body


def test_an_empty_directory_says_how_to_begin(tmp_path: Path) -> None:
    with dashboard(tmp_path / "none") as server:
        page = ask(server, "/").body
        assert "No process is watched yet." in page
        assert "memwatch run --" in page
        assert "memwatch run --" not in ask(server, "/compare").body


def test_a_process_that_was_killed_has_its_page(tmp_path: Path) -> None:
    with dashboard(tmp_path / "records") as server:
        with leaking(tmp_path / "records") as program:
            name = until(lambda: rows(ask(server, "/").body), "the process is listed")[0]
            until(lambda: 'data-curve="memory"' in ask(server, f"/process/{name}").body, "it has a curve")
            assert f'<tr data-row="{name}" data-fate="running"' in ask(server, "/").body
            program.kill()
            program.wait()
        until(lambda: f'<tr data-row="{name}" data-fate="ended"' in ask(server, "/").body, "it is shown as ended")
        page = until(lambda: (found := ask(server, f"/process/{name}").body) and "gone" in found and found, "its page says so")
        assert 'data-curve="memory"' in page


def test_a_record_that_cannot_be_read_is_told_and_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path / "records", cases.leak())
    (tmp_path / "records" / "broken-1-20260101T000000.memwatch").write_text("no database <script>")
    with dashboard(tmp_path / "records") as server:
        page = ask(server, "/").body
        assert len(rows(page)) == 1
        assert "One record cannot be read" in page
        assert "broken-1-20260101T000000.memwatch is not a memwatch record" in page
        answer = ask(server, "/process/broken-1-20260101T000000")
        assert (answer.status, "is not a memwatch record" in answer.body) == (404, True)


def test_what_is_hostile_is_shown_as_text_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'>\x1b[2J\u202e"
    labels = {"version": "x" * 100_000, evil: evil}
    path = write(tmp_path / "records", cases.leak(), name=evil, labels=labels, command=(evil, "y" * 100_000), pid=7)
    write(tmp_path / "records", cases.leak(), name=evil, labels={"version": "2", evil: "other"}, pid=8)
    with dashboard(tmp_path / "records") as server:
        pages = [ask(server, page) for page in ("/", f"/process/{path.stem}", "/compare", f"/compare?a={path.stem}@first&b=8")]
        pages.append(ask(server, "/compare?a=%3Cscript%3Ealert(1)%3C/script%3E&b=%1b%22%3E%3Cscript%3E"))
        assert [page.status for page in pages] == [200, 200, 200, 200, 404]
        for page in pages:
            assert "<script>alert" not in page.body
            assert "&lt;script&gt;" in page.body
            assert "\x1b" not in page.body
            assert "\u202e" not in page.body
            assert len(re.findall(r"<script\b", page.body)) == 1 + page.body.count('id="memwatch-data"')
        assert len(pages[0].body) < 50_000


# Two moments.


def test_two_moments_of_one_process_are_compared(server: Server, records: dict[str, Path]) -> None:
    name = records["leak"].stem
    for query in (f"a={name}@first&b={name}@last", f"a={name}&a_at=first&b={name}&b_at=last", "a=101@first&b=101"):
        page = ask(server, f"/compare?{query}").body
        assert "one process, 5 min apart" in page
        assert "resident memory" in page
        assert f'value="{name}"' in page


def test_the_last_hour_is_offered_of_processes_that_have_one(tmp_path: Path) -> None:
    for pid, uptime_s in ((101, 300.0), (102, 7200.0)):
        leak = cases.leak()
        write(tmp_path / "records", replace(leak, statistics=replace(leak.statistics, uptime_s=uptime_s)), pid=pid)
    with dashboard(tmp_path / "records") as server:
        offered = re.findall(r'a_at=-1h&amp;b=[^"]*-(\d+)-', ask(server, "/compare").body)
    assert offered == ["102"]


def test_two_releases_are_compared_by_their_labels(server: Server) -> None:
    offered = re.findall(r'href="(/compare\?a=api\+version[^"]*)"', ask(server, "/compare").body)
    page = ask(server, offered[0].replace("&amp;", "&")).body
    assert "api[101]" in page
    assert "api[102]" in page
    assert "two processes: levels are compared" in page
    assert "<code>version=1.1</code>" in page


def test_two_workers_are_compared(tmp_path: Path) -> None:
    for pid in (1, 2):
        write(tmp_path / "records", cases.leak(), pid=pid, name="worker")
    with dashboard(tmp_path / "records") as server:
        section = ask(server, "/compare").body.split("<h2>Two workers</h2>")[1]
        link = re.search(r'href="([^"]*)"', section)
        assert link is not None
        page = ask(server, link[1].replace("&amp;", "&"))
        assert (page.status, "worker[1]" in page.body, "worker[2]" in page.body) == (200, True, True)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("a=api&b=nobody", 404, "no record is meant by &#x27;nobody&#x27;; there are records of api"),
        ("a=api&a_at=yesterday&b=api", 400, "&#x27;yesterday&#x27; is no moment: it is first, last, -1h"),
        ("a=api@-30d&b=api", 404, "its record begins at"),
        ("a=api@0001-01-01&b=api", 404, "its record begins at"),
        ("a=api&b=", 400, "two are compared: B is empty"),
        ("a=" + "x" * 5000, 414, "longer than 4096"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(query: str, status: int, said: str, server: Server) -> None:
    answer = ask(server, f"/compare?{query}")
    assert (answer.status, said in answer.body) == (status, True), answer.body[:3000]


# Who and what is refused.


@pytest.mark.parametrize(
    "path",
    [
        "/process/..%2f..%2fetc%2fpasswd",
        "/process/%2e%2e/%2e%2e/etc/passwd",
        "/process/../secret",
        "/process/..%2fsecret",
        "/process/%2Ftmp%2Fsecret",
        "/process/secret.memwatch",
        "/process/..%5csecret",
        "/process/%00",
        "/process/",
        "/assets/../memwatch.js",
        "/assets/x/..%2f..%2fapp.py",
    ],
)
def test_no_address_leads_out_of_the_directory(path: str, server: Server, records: dict[str, Path]) -> None:
    write(records["leak"].parent.parent, cases.leak(), name="secret").rename(records["leak"].parent.parent / "secret.memwatch")
    assert ask(server, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/compare", "/events", "/process/x"])
def test_only_reading_is_answered(method: str, path: str, server: Server) -> None:
    answer = ask(server, path, method, body="")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_head_has_no_body_and_no_get_logs_out(server: Server) -> None:
    assert ask(server, "/", "HEAD")[::2] == (200, "")
    assert ask(server, "/events", "HEAD")[::2] == (200, "")
    assert ask(server, "/logout").status == 405


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "localhost.evil.example.com",
        "",
        "127.0.0.1.evil.example.com",
        "x@localhost.evil",
        "localhost:80@evil.example.com",
        "[::1]evil",
    ],
)
@pytest.mark.parametrize("path", ["/", "/login", "/assets/x/memwatch.js", "/events"])
def test_a_name_that_is_not_ours_is_not_answered(host: str, path: str, server: Server) -> None:
    answer = ask(server, path, headers={"Host": host})
    assert (answer.status, "--allow-host" in answer.body) == (421, True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8910", "127.0.0.1:1", "[::1]:8910"])
def test_names_of_this_machine_are_answered(host: str, server: Server) -> None:
    assert ask(server, "/", headers={"Host": host}).status == 200


def test_a_name_that_was_allowed_is_answered(guarded: Server) -> None:
    headers = {"Host": "dash.example.com", "Authorization": f"Bearer {TOKEN}"}
    assert ask(guarded, "/", headers=headers).status == 200


def test_without_the_token_nothing_is_shown(guarded: Server, records: dict[str, Path]) -> None:
    for path in ("/", "/compare", f"/process/{records['leak'].stem}", "/process/nobody", "/events", "/nothing"):
        for headers in (
            {},
            {"Accept": "*/*"},
            {"Cookie": "memwatch-session=1.2"},
            {"Cookie": "memwatch-session=99999999999.é".encode().decode("latin-1")},
        ):
            answer = ask(guarded, path, headers=headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "api" not in answer.body.replace(path, "")
            assert str(records["leak"].parent) not in answer.body
    assert ask(guarded, f"/?token={TOKEN}").status == 401


def test_the_token_opens_by_header(guarded: Server) -> None:
    assert ask(guarded, "/", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
    assert ask(guarded, "/", headers={"Authorization": f"Bearer {TOKEN}x"})[::2] == (403, '{"error":"not this token"}')


def test_logging_in_opens_the_page_that_was_asked_for_until_logging_out(guarded: Server) -> None:
    asked = ask(guarded, "/compare?a=1")
    assert 'name="next" value="/compare?a=1"' in asked.body
    answer = ask(guarded, "/login", "POST", FORM, f"token={TOKEN}&next=%2Fcompare%3Fa%3D1")
    assert (answer.status, answer.headers["location"]) == (303, "/compare?a=1")
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"))
    assert TOKEN not in cookie
    session = {"Cookie": cookie.split(";")[0]}
    page = ask(guarded, "/", headers=session)
    assert (page.status, 'action="/logout"' in page.body) == (200, True)
    name, _, value = session["Cookie"].partition("=")
    ends, _, signature = value.partition(".")
    assert ask(guarded, "/", headers={"Cookie": f"{name}={int(ends) + 1}.{signature}"}).status == 401
    left = ask(guarded, "/logout", "POST", session, "")
    assert "Max-Age=0" in left.headers["set-cookie"]


@pytest.mark.parametrize("target", ["//evil.example.com", "https://evil.example.com", "/\\evil.example.com", "/%0d%0aX: y", "evil"])
def test_logging_in_leads_to_no_other_site(target: str, guarded: Server) -> None:
    answer = ask(guarded, "/login", "POST", FORM, f"token={TOKEN}&next={target}")
    assert (answer.status, answer.headers["location"]) == (303, "/")


def test_a_wrong_token_is_told_and_costs_time(guarded: Server) -> None:
    begun_s = time.monotonic()
    answer = ask(guarded, "/login", "POST", FORM, "token=wrong")
    assert (answer.status, "That is not the token." in answer.body, "set-cookie" in answer.headers) == (403, True, False)
    assert time.monotonic() - begun_s >= 0.5


def test_a_form_of_another_site_and_one_without_end_are_refused(guarded: Server) -> None:
    answer = ask(guarded, "/login", "POST", FORM | {"Origin": "https://evil.example.com"}, f"token={TOKEN}")
    assert (answer.status, "set-cookie" in answer.headers) == (403, False)
    assert ask(guarded, "/login", "POST", FORM, "token=" + "x" * 5000).status == 413


def test_who_leaves_in_the_middle_of_a_form_is_no_failure(tmp_path: Path) -> None:
    with dashboard(tmp_path) as server:
        host, port = server.base.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as asking:
            asking.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=")
            assert ask(server, "/").status == 200  # it waits for the rest by now
        assert ask(server, "/").status == 200
    assert "Traceback" not in "".join(server.output)


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        (["--host", "0.0.0.0"], "", "--host 0.0.0.0 can be reached from other machines: set MEMWATCH_TOKEN"),
        (["--host", "no.such.host.invalid"], "", "cannot listen on no.such.host.invalid port 0"),
        (["--host", "0.0.0.0"], "short", "MEMWATCH_TOKEN: the token must be text of at least 16 characters"),
        (["--host", "no.such.host.invalid"], TOKEN, "cannot listen on no.such.host.invalid port 0"),
    ],
)
def test_it_does_not_start_unsafely(options: list[str], token: str, said: str, tmp_path: Path) -> None:
    result = started(["serve", "--port", "0", "--directory", str(tmp_path), *options], token)
    assert (result.returncode, result.stderr.count("\n"), said in result.stderr) == (2, 1, True), result.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = started(["serve", "--port", str(port), "--directory", str(tmp_path)])
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_without_its_packages_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['starlette'] = None; from memwatch.cli import main; main(['serve'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "memwatch: memwatch serve needs starlette and uvicorn: pip install 'memwatch[web]'\n",
    )


def started(words: list[str], token: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "MEMWATCH_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "memwatch", *words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


# Live.


class Stream:
    """One page that is live."""

    def __init__(self, server: Server, path: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=60)
        self._connection.request("GET", path, headers={"Accept": "text/event-stream"} | headers)
        self.answer = self._connection.getresponse()

    def next(self) -> dict[str, Any]:
        """What is told next."""
        while True:
            line = self.answer.readline().decode()
            assert line, "the stream has ended"
            if line.startswith("data: "):
                found = json.loads(line[6:])
                assert isinstance(found, dict)
                return found

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


@contextlib.contextmanager
def streaming(server: Server, path: str, **headers: str) -> Iterator[Stream]:
    stream = Stream(server, path, **headers)
    try:
        yield stream
    finally:
        stream.close()


def version_of(page: str) -> str:
    found = re.search(r'data-version="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_a_page_is_told_what_has_changed_since_it_was_loaded_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    write(directory, cases.lookalike(), pid=1, name="quiet")
    with dashboard(directory) as server:
        until(lambda: '<svg class="spark' in ask(server, "/").body, "outlines are read")
        version = version_of(ask(server, "/").body)
        with streaming(server, f"/events?since={version}") as stream:
            path = write(directory, cases.leak(), pid=2, name="new")
            news = stream.next()
            assert f"row:{path.stem}" in news["parts"]
            assert [name for name in news["parts"] if "quiet" in name] == []
            assert len([name for name in news["order"] if name.startswith("row:")]) == 2
        # A page that had lost its connection is told from where it was; one of another server is told everything.
        with streaming(server, "/events", **{"Last-Event-ID": version}) as stream:
            assert [name for name in stream.next()["parts"] if "quiet" in name] == []
        with streaming(server, "/events?since=0000.7") as stream:
            assert [name for name in stream.next()["parts"] if "quiet" in name] != []


def readings(steps: list[Any]) -> int:
    """How many there are: a step that comes again and again is `[step, times]`."""
    return sum(step[1] if isinstance(step, list) else 1 for step in steps)


def test_the_page_of_a_process_moves_while_it_leaks_and_its_stream_ends_with_its_record(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    with dashboard(directory) as server, leaking(directory):
        name = until(lambda: rows(ask(server, "/").body), "the process is listed")[0]
        until(lambda: 'data-curve="memory"' in ask(server, f"/process/{name}").body, "it has a curve")
        version = version_of(ask(server, f"/process/{name}").body)
        with streaming(server, f"/process/{name}/events?since={version}") as stream:
            first, second = (readings(json.loads(stream.next()["parts"]["data"])["curves"]["memory"]["times"]) for _ in range(2))
            assert second > first
            for path in directory.iterdir():
                path.unlink()
            with pytest.raises(AssertionError, match="has ended"):
                while True:
                    stream.next()
        with streaming(server, f"/process/{name}/events") as again:
            assert again.answer.status == 404


def test_a_hundred_pages_are_told_of_one_look_and_one_that_never_reads_holds_up_none(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    write(directory, cases.leak(), pid=1)
    with dashboard(directory) as server, contextlib.ExitStack() as open_pages:
        version = version_of(ask(server, "/").body)
        deaf = open_pages.enter_context(socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2]))))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        streams = [open_pages.enter_context(streaming(server, "/events?since=x")) for _ in range(100)]
        told = {stream.next()["version"] for stream in streams}
        assert told
        process = psutil.Process(server.process.pid)
        path = write(directory, cases.leak(), pid=2)
        for stream in streams:
            while f"row:{path.stem}" not in stream.next()["parts"]:
                pass
        assert ask(server, "/").status == 200
        assert version_of(ask(server, "/").body) != version
        used_s = sum(process.cpu_times()[:2])
        begun_s = time.monotonic()
        until(lambda: time.monotonic() - begun_s > 3, "a few looks have passed")
        assert sum(process.cpu_times()[:2]) - used_s < 1.5  # a hundred looks each time would take more
    assert "Traceback" not in "".join(server.output)


def test_more_pages_than_may_are_told_so(tmp_path: Path) -> None:
    with dashboard(tmp_path / "records") as server, contextlib.ExitStack() as open_pages:
        statuses = [open_pages.enter_context(streaming(server, "/events")).answer.status for _ in range(260)]
        assert statuses.count(200) == 256
        assert set(statuses[256:]) == {503}


@pytest.mark.parametrize(("number", "statuses"), [(signal.SIGINT, (0,)), (signal.SIGTERM, (0, -signal.SIGTERM))])
def test_it_ends_at_once_and_quietly_while_pages_are_live(
    number: signal.Signals, statuses: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path / "records", cases.leak())
    with dashboard(tmp_path / "records") as server, streaming(server, "/events") as stream:
        stream.next()
        server.process.send_signal(number)
        assert server.process.wait(10) in statuses
        assert [line for line in server.output if "Traceback" in line or "ERROR" in line] == []


# What the fleet is read with.


def test_an_outline_has_the_shape_of_the_whole_record_and_its_newest_readings(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, Process(1, "long", started=0.0))
    for number in range(4000):  # 20 days at 432 s: coarse history, and a day of samples
        writer.write(Sample(1e9 + 432 * number, 432.0 * number, {"rss": 1e6 * number}))
    writer.close()
    with Record(writer.path) as record:
        points = record.outline("rss", 40)
        assert record.outline("no such channel", 40) == ()
    assert 30 <= len(points) <= 48
    assert list(points) == sorted(points)
    assert points[-1] == (1e9 + 432 * 3999, 1e6 * 3999)
    assert points[0][1] < 0.05 * points[-1][1]
    assert sum(time_s >= 1e9 + 432 * 3999 - 86400 for time_s, _ in points) >= 8
