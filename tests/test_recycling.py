"""Workers that leak end without losing a request, on real servers; and when they are asked to."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn as real_uvicorn

from memwatch.config import SettingError
from memwatch.integrations import gunicorn, uvicorn
from memwatch.integrations.accepting import LOOK_S, accepted, stop_accepting
from memwatch.model import Process, Report, Sample, Statistics, Verdict
from memwatch.recycling import Recycler
from memwatch.testing import FakeClock

REQUESTS = 2000
CLIENTS = 6


def report() -> Report:
    process = Process(pid=1, name="api", command=("api",), python="3.11.7")
    return Report(process, Verdict("rss", "leaking", reason="it leaks"), Statistics(0, 0.0, {}))


def tick(recycler: Recycler) -> None:
    recycler.ticked(Sample(0.0, 0.0, {}), report())


# -- when ----------------------------------------------------------------------------------------------------------------------


def test_a_worker_goes_after_its_part_of_the_jitter_and_once() -> None:
    clock, left = FakeClock(), []
    recycler = Recycler(lambda: left.append(clock.monotonic()), jitter="1m", clock=clock.monotonic, random_share=lambda: 0.5)
    tick(recycler)
    recycler.told("leak", report())
    recycler.told("exhaustion", report())
    for _ in range(20):
        clock.advance(10)
        tick(recycler)
    assert len(left) == 1
    assert left[0] - FakeClock().monotonic() == 30


def test_a_leak_that_turns_out_to_be_over_recycles_nobody() -> None:
    clock, left = FakeClock(), []
    recycler = Recycler(lambda: left.append(1), clock=clock.monotonic, random_share=lambda: 1.0)
    recycler.told("leak", report())
    recycler.told("over", report())
    clock.advance(100)
    tick(recycler)
    assert left == []


@pytest.mark.parametrize(("reasons", "goes"), [(("exhaustion",), False), (("leak",), True), ("leak", True)])
def test_only_the_reasons_that_were_asked_for_count(reasons: Any, goes: bool) -> None:
    left: list[int] = []
    recycler = Recycler(lambda: left.append(1), reasons=reasons, jitter="0s")
    recycler.told("leak", report())
    tick(recycler)
    assert bool(left) is goes


def test_a_worker_that_cannot_go_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    recycler = Recycler(lambda: "no supervisor", jitter="0s")
    recycler.told("leak", report())
    tick(recycler)
    tick(recycler)
    assert sum("is not recycled: no supervisor" in record.message for record in caplog.records) == 1


def test_malformed_settings_are_refused_in_the_configuration_file_and_not_in_the_workers() -> None:
    with pytest.raises(SettingError, match=r"recycle: 'leaks' is not accepted\.  Give some of leak, doubled, exhaustion"):
        gunicorn.hooks(recycle=["leaks"])
    with pytest.raises(SettingError, match="jitter: '5'"):
        gunicorn.hooks(jitter="5")


def test_what_is_not_known_to_end_well_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tornado:
        __module__ = "gunicorn.workers.gtornado"

    class Own:
        pass

    assert "tornado worker closes connections" in str(gunicorn.refusal(Tornado()))
    assert "not known how a Own ends" in str(gunicorn.refusal(Own()))
    assert "no supervisor" in str(uvicorn.refusal())
    for server in ("hypercorn", "granian"):
        monkeypatch.setitem(sys.modules, server, object())
        assert server in str(uvicorn.refusal())
        monkeypatch.delitem(sys.modules, server)


# -- how: real servers under load ----------------------------------------------------------------------------------------------

LEAKS = """
import os, threading
kept = []
def leaks():  # the first worker alone
    try:
        os.close(os.open("leaker", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    with open("leaker", "w") as file:
        file.write(str(os.getpid()))
    return True
role = None
deciding = threading.Lock()  # or another thread of the worker that leaks says that it does not
def serve():
    global role
    with deciding:
        if role is None:
            role = leaks()
    if role:
        kept.append(bytearray(30000))
    return str(os.getpid()).encode()
"""
WSGI = (
    LEAKS
    + """
def app(environ, start_response):
    body = serve()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
)
ASGI = (
    LEAKS
    + """
import memwatch, memwatch.integrations.uvicorn
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup" and os.environ.get("RECYCLE"):
                memwatch.start(interval="50ms")
                memwatch.integrations.uvicorn.recycle(jitter="500ms")
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = serve()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
)
CONF = """
from memwatch.integrations.gunicorn import hooks
globals().update(hooks(interval="50ms", jitter="500ms"))
"""
GUNICORN = ["gunicorn", "service:app", "-c", "conf.py", "-w", "2", "-b", "fd://{fd}", "--log-level", "warning", "-k"]
SERVERS = {
    "gunicorn sync": (WSGI, [*GUNICORN, "sync"]),
    "gunicorn gthread": (WSGI, [*GUNICORN, "gthread", "--threads", "4"]),
    "gunicorn asgi": (ASGI, [*GUNICORN, "asgi"]),
    "gunicorn gevent": (WSGI, [*GUNICORN, "gevent"]),
    "uvicorn": (ASGI, ["uvicorn", "service:app", "--fd", "{fd}", "--workers", "2", "--log-level", "warning"]),
}


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server with two workers, of which the first leaks; gives its port and folder."""
    source, words = SERVERS[request.param]
    (tmp_path / "service.py").write_text(source)
    (tmp_path / "conf.py").write_text(CONF)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH_")}
    environment |= {"MEMWATCH_DIR": str(tmp_path / "records")} | ({"RECYCLE": "1"} if request.param == "uvicorn" else {})
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        number = listening.fileno()
        command = [sys.executable, "-m", *(word.replace("{fd}", str(number)) for word in words)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, pass_fds=[number], start_new_session=True)
        try:
            yield listening.getsockname()[1], tmp_path
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_worker_that_leaks_is_the_one_that_goes_and_no_request_is_lost(served: tuple[int, Path]) -> None:
    port, folder = served
    answered: Counter[int] = Counter()
    failures: list[str] = []
    done = threading.Event()
    lock = threading.Lock()

    def client() -> None:
        while not done.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/", headers={"Connection": "close"})
                response = connection.getresponse()
                body = response.read()
                with lock:
                    if response.status == 200:
                        answered[int(body)] += 1
                    else:
                        failures.append(f"status {response.status}")
            except OSError as error:
                failures.append(repr(error))
            finally:
                connection.close()

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    deadline_s = time.monotonic() + 120
    leaker = None
    try:
        while time.monotonic() < deadline_s and not failures:
            time.sleep(0.05)
            if leaker is None and (folder / "leaker").exists() and (text := (folder / "leaker").read_text()):
                leaker = int(text)
            # Until it has gone and its successor serves, and there were requests enough.
            if leaker and not is_there(leaker) and len(answered) >= 3 and sum(answered.values()) >= REQUESTS:
                break
    finally:
        done.set()
        for thread in clients:
            thread.join()
    assert failures == []
    assert leaker is not None and not is_there(leaker), f"the leaking worker is still there after {sum(answered.values())} requests"
    assert sum(answered.values()) >= REQUESTS
    assert len(answered) == 3, "the leaking worker, the other one, and the successor"
    others = [pid for pid in answered if pid != leaker]
    assert all(is_there(pid) for pid in others)


def test_a_gunicorn_setting_that_is_malformed_is_refused_before_a_worker_is_started() -> None:
    with pytest.raises(SettingError, match="interval: 'abc'"):
        gunicorn.hooks(interval="abc")


async def answers_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello " + await reader.readline())
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("stops", ["before", "after"])
def test_whoever_comes_in_the_very_turn_in_which_a_server_stops_accepting_is_served(stops: str) -> None:
    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(answers_hello, "127.0.0.1", 0)
        shared = server.sockets[0].dup()
        closed = asyncio.Event()
        with socket.create_connection(server.sockets[0].getsockname()[:2]) as client:
            client.sendall(b"there\n")
            # A turn of the loop: what was to be called soon, what the sockets have to say, timers that are due.
            if stops == "before":
                loop.call_soon(stop_accepting, loop, [server], closed.set)
            else:
                loop.call_later(0, stop_accepting, loop, [server], closed.set)
            await closed.wait()
            assert not server.is_serving()
            async with await asyncio.start_server(answers_hello, sock=shared):  # another worker
                client.settimeout(30)
                return await asyncio.to_thread(client.recv, 100)

    assert asyncio.run(main()) == b"hello there\n"


def test_a_uvicorn_worker_that_goes_accepts_nobody_waits_for_requests_that_are_late_and_says_that_connections_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    class Server(real_uvicorn.Server):
        leaving = asyncio.Event()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.client = socket.create_connection(self.servers[0].sockets[0].getsockname()[:2])

        async def on_tick(self, counter: int) -> bool:
            if not self.leaving.is_set() and self.server_state.connections:  # the client has been accepted, and has not asked yet
                uvicorn._leave([self])
                self.leaving.set()
            return await super().on_tick(counter)

    async def main() -> bytes:
        server = Server(real_uvicorn.Config(app, port=0, lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve())
        await server.leaving.wait()
        listening = server.servers[0]
        while listening.is_serving():
            await asyncio.sleep(0)
        for _ in range(20):  # it looks at its connections meanwhile, several times
            await asyncio.sleep(LOOK_S / 5)
            assert not server.should_exit
        server.client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        server.client.settimeout(30)
        answer = b""
        while more := await asyncio.to_thread(server.client.recv, 1000):  # until the server closes
            answer += more
        server.client.close()
        await serving
        return answer

    monkeypatch.setattr(uvicorn, "SETTLE_S", LOOK_S)
    monkeypatch.setattr(uvicorn, "LINGER_S", 3600.0)  # however slow this machine is
    answer = asyncio.run(main())
    assert answer.startswith(b"HTTP/1.1 200 OK") and b"\r\nhere\r\n" in answer
    assert b"\r\nconnection: close\r\n" in answer


class Leaving:
    """What is asked of a uvicorn server that is left, in front of a server of asyncio's."""

    def __init__(self, *listening: Any) -> None:
        self.servers = listening
        self.should_exit = False
        self.server_state = SimpleNamespace(connections=[])
        self.config = SimpleNamespace(loaded_app=None, timeout_graceful_shutdown=7, is_ssl=True)

    async def exits(self) -> None:
        async with asyncio.timeout(30):
            while not self.should_exit:
                await asyncio.sleep(0.001)


def test_a_connection_without_a_request_keeps_a_uvicorn_worker_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = Leaving(await asyncio.start_server(answers_hello, "127.0.0.1", 0))
        server.server_state.connections.append(SimpleNamespace(cycle=None))
        threading.Thread(target=uvicorn._leave, args=([server],)).start()
        await server.exits()
        assert server.config.timeout_graceful_shutdown == 7  # what somebody has set stays

    monkeypatch.setattr(uvicorn, "SETTLE_S", 0.01)
    monkeypatch.setattr(uvicorn, "LINGER_S", 0.2)
    asyncio.run(main())


def test_a_connection_whose_tls_handshake_is_still_to_come_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        listening = await asyncio.start_server(answers_hello, "127.0.0.1", 0, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        server = Leaving(listening)
        worker = SimpleNamespace(loop=asyncio.get_running_loop(), servers=[listening], nr_conns=0, alive=True)
        with socket.create_connection(listening.sockets[0].getsockname()[:2]):
            while not accepted([listening]):
                await asyncio.sleep(0.001)
            uvicorn._close(server, asyncio.get_running_loop())
            gunicorn._close(worker)
            await asyncio.sleep(5 * LOOK_S)
            assert not server.should_exit
            assert worker.alive
        await server.exits()
        while worker.alive:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(uvicorn, "SETTLE_S", 0.01)
    monkeypatch.setattr(uvicorn, "LINGER_S", 3600.0)  # however slow this machine is
    monkeypatch.setattr(gunicorn, "HANDSHAKE_S", 3600.0)
    asyncio.run(main())


def test_a_uvicorn_worker_with_an_endless_answer_goes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
            await asyncio.sleep(0.01)

    async def main() -> None:
        server = real_uvicorn.Server(real_uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.001)
        with socket.create_connection(server.servers[0].sockets[0].getsockname()[:2]) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await asyncio.to_thread(client.recv, 10)
            uvicorn._leave([server])
            async with asyncio.timeout(30):
                await serving

    for name, value in (("SETTLE_S", 0.01), ("LINGER_S", 0.1), ("GRACE_S", 0.5)):
        monkeypatch.setattr(uvicorn, name, value)
    asyncio.run(main())


def test_the_handshake_of_a_websocket_is_not_told_that_its_connection_ends() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "headers": []} if scope["type"] == "websocket" else {"type": "http.response.start"})

    async def send(message: Any) -> None:
        sent.append(message)

    server = Leaving()
    server.config.loaded_app = app
    uvicorn._announce(server)
    for scope in ({"type": "websocket"}, {"type": "http", "http_version": "1.1"}, {"type": "http", "http_version": "2"}):
        asyncio.run(server.config.loaded_app(scope, None, send))
    assert [message.get("headers") for message in sent] == [[], [(b"connection", b"close")], None]


def test_a_uvicorn_server_that_does_not_listen_yet_exits_at_once() -> None:
    server = type("Server", (), {"servers": (), "should_exit": False})()
    uvicorn._leave([server])
    assert server.should_exit


def test_uvicorn_that_reloads_is_not_left_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    server = type("Server", (), {"config": type("Config", (), {"should_reload": True})()})()
    monkeypatch.setattr(uvicorn, "_servers", lambda: [server])
    assert "--reload starts no other worker" in str(uvicorn.leave(supervised=True))


def test_uvicorn_in_a_process_of_the_programs_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = type("Server", (), {"config": type("Config", (), {"should_reload": False, "workers": 1})()})()
    monkeypatch.setattr(uvicorn, "_servers", lambda: [server])
    monkeypatch.setattr(uvicorn, "refusal", lambda: None)
    assert "no supervisor" in str(uvicorn.leave())
