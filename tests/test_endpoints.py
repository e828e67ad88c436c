"""The endpoints to mount: who may see what, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from memwatch import caches
from memwatch.config import SettingError
from memwatch.endpoints import PATHS, Endpoints, Request, openapi
from memwatch.integrations import health
from memwatch.testing import FakeClock, ScriptedSource
from memwatch.watcher import Watcher

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import plugin_peers  # noqa: E402  (benchmarks are scripts, not a package)

MIB = 2.0**20
TOKEN = "a-token-of-many-characters"
AUTHORISED = {"authorization": f"Bearer {TOKEN}", "host": "localhost"}
INTERNALS = [(method, path) for path, methods in PATHS.items() if path != "/health" for method in methods]


def watcher_at(*readings: dict[str, float], **options: Any) -> Watcher:
    clock = FakeClock()
    options.setdefault("memory_limit", "1000MiB")
    watcher = Watcher(interval="10s", directory=False, clock=clock, source=ScriptedSource(list(readings)), **options)
    for _ in readings:
        watcher.tick()
        clock.advance(10)
    return watcher


def endpoints_of(watcher: Watcher | None, **options: Any) -> Endpoints:
    return Endpoints(watcher=lambda: watcher, **{"token": TOKEN, **options})


def get(endpoints: Endpoints, path: str, query: str = "", method: str = "GET", **headers: str) -> tuple[int, Any]:
    response = endpoints.answer(Request(method, path, query, headers or AUTHORISED))
    body = response.body.decode()
    return response.status, json.loads(body) if response.content_type == "application/json" and body else body


@pytest.mark.parametrize(("method", "path"), INTERNALS)
def test_without_a_token_set_there_is_nothing_but_health(method: str, path: str) -> None:
    endpoints = endpoints_of(watcher_at({"rss": 100 * MIB}), token=None)
    assert get(endpoints, path, method=method) == (404, {"error": "there is nothing here"})
    assert get(endpoints, "/health", host="anything") == (200, {"status": "ok"})


@pytest.mark.parametrize(("method", "path"), INTERNALS)
def test_a_missing_token_is_401_and_a_wrong_one_403_and_neither_says_anything(method: str, path: str) -> None:
    endpoints = endpoints_of(watcher_at({"rss": 100 * MIB}))
    for query in ("", f"token={TOKEN}", f"access_token={TOKEN}"):
        status, body = get(endpoints, path, query, method, host="localhost")
        assert (status, body) == (401, {"error": "a token is needed: Authorization: Bearer …"})
    for given in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN[:-1]}", "Bearer \udcff"):
        status, body = get(endpoints, path, method=method, host="localhost", authorization=given)
        assert status in (401, 403)
        assert "rss" not in json.dumps(body)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("10.1.2.3", True),
        ("api.example.com", True),
        ("API.example.com.:443", True),
        ("evil.example.com", False),
        ("127.0.0.1.evil.com", False),
        ("", False),
    ],
)
def test_a_host_name_that_was_not_allowed_is_not_answered(host: str, answered: bool) -> None:
    endpoints = endpoints_of(watcher_at({"rss": 100 * MIB}), hosts=["api.example.com"])
    status, _ = get(endpoints, "/memory", **{**AUTHORISED, "host": host})
    assert status == (200 if answered else 421)
    assert get(endpoints, "/health", host=host)[0] == 200  # a probe comes by any name, and learns nothing


def test_health_is_not_ready_at_the_critical_level_and_when_memory_runs_out_within_minutes() -> None:
    assert get(endpoints_of(watcher_at({"rss": 900 * MIB})), "/health") == (503, {"status": "overloaded"})
    status, found = get(endpoints_of(watcher_at({"rss": 900 * MIB})), "/health/detailed")
    assert (status, found["why"]) == (503, "memory is at the critical level")
    rising = [{"rss": (100 + 2.0 * n) * MIB, "heap": (50 + 2.0 * n) * MIB, "cpu": n * 1.0} for n in range(200)]
    near = endpoints_of(watcher_at(*rising, memory_limit="520MiB", critical=1.0, warning=1.0))
    assert get(near, "/health") == (503, {"status": "overloaded"})
    assert "memory runs out in" in get(near, "/health/detailed")[1]["why"]
    far = endpoints_of(watcher_at(*rising, memory_limit="100GiB"))
    assert get(far, "/health") == (200, {"status": "ok"})  # a leak that is far from the limit: all workers have it


def test_health_without_a_watcher_says_so_and_internals_say_what_to_do() -> None:
    assert get(endpoints_of(None), "/health") == (200, {"status": "unwatched"})
    status, found = get(endpoints_of(None), "/memory")
    assert (status, "memwatch.start()" in found["error"]) == (503, True)


def test_memory_tells_snapshot_trend_and_statistics() -> None:
    endpoints = endpoints_of(watcher_at({"rss": 100 * MIB}, {"rss": 104 * MIB}, {"rss": 104 * MIB}))
    status, found = get(endpoints, "/memory")
    assert status == 200
    assert found["snapshot"]["values"]["rss"] == 104 * MIB
    assert found["statistics"]["channels"]["rss"]["peak"] == 104 * MIB
    assert found["trend"]["state"] == "warming-up"
    assert get(endpoints, "/memory/trend", "channel=rss")[1]["channel"] == "rss"
    status, found = get(endpoints, "/memory/trend", "channel=nothing")
    assert (status, "no channel 'nothing'" in found["error"]) == (404, True)
    assert "WARMING UP" in get(endpoints, "/memory/report", "format=text")[1]
    assert get(endpoints, "/memory/report")[1]["schema"] == 1


def test_caches_are_told_and_invalidated_by_tag_prefix_and_pattern() -> None:
    cache = caches.LRUCache(100, name="sessions-of-this-test")
    other = caches.LRUCache(100, name="others-of-this-test")
    endpoints = endpoints_of(watcher_at({"rss": 100 * MIB}))
    for owner in (cache, other):
        for n in range(10):
            owner.set(f"user:{n}", n, tags=["even" if n % 2 == 0 else "odd"])
    only = "name=sessions-of-this-test"
    assert get(endpoints, "/caches", only)[1]["caches"][0]["entries"] == 10
    assert get(endpoints, "/caches", f"tag=even&{only}", "DELETE") == (200, {"removed": 5, "caches": 1})
    assert get(endpoints, "/caches", f"pattern=user:[13]&{only}", "DELETE")[1]["removed"] == 2
    assert get(endpoints, "/caches", f"prefix=user:&{only}", "DELETE")[1]["removed"] == 3
    assert (len(cache), len(other)) == (0, 10)
    assert get(endpoints, "/caches", "", "DELETE")[0] == 400
    assert get(endpoints, "/caches", "tag=a&prefix=b", "DELETE")[0] == 400
    assert get(endpoints, "/caches", "tag=a&name=nobody", "DELETE")[0] == 404


@pytest.mark.parametrize("query", ["chanel=rss", "channel=rss&channel=heap", "channel=", "channel", "%zz=1&", "x" * 5000])
def test_a_malformed_query_is_refused_with_the_name_in_it(query: str) -> None:
    status, found = get(endpoints_of(watcher_at({"rss": 1.0})), "/memory/trend", query)
    assert status in (400, 414), found
    assert found["error"]


def test_gc_is_post_and_only_that() -> None:
    endpoints = endpoints_of(watcher_at({"rss": 1.0}))
    assert get(endpoints, "/gc")[0] == 405
    status, found = get(endpoints, "/gc", method="POST")
    assert status == 200
    assert found["took_s"] >= 0
    assert endpoints.answer(Request("PUT", "/gc", headers=AUTHORISED)).headers[0] == ("Allow", "POST")


def test_a_head_request_has_the_status_and_the_length_and_no_body() -> None:
    endpoints = endpoints_of(watcher_at({"rss": 1.0}))
    response = endpoints.answer(Request("HEAD", "/health"))
    assert (response.status, response.body) == (200, b"")
    assert response.content_length == len(endpoints.answer(Request("GET", "/health")).body) > 0


@pytest.mark.parametrize("token", ["short", "", " " * 20])
def test_a_token_that_can_be_guessed_is_refused_where_it_is_given(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="token: the token must be text of at least 16 characters"):
        health.asgi_app(token=token)
    if token:
        monkeypatch.setenv("MEMWATCH_TOKEN", token)
        with pytest.raises(SettingError, match="MEMWATCH_TOKEN: the token must be"):
            health.wsgi_app()


def test_what_is_made_public_needs_no_token_and_must_exist() -> None:
    endpoints = endpoints_of(watcher_at({"rss": 1.0}), public=["/memory/trend"])
    assert get(endpoints, "/memory/trend", host="any")[0] == 200
    assert get(endpoints, "/memory", host="localhost")[0] == 401
    with pytest.raises(ValueError, match="'/metric' is none of /caches"):
        endpoints_of(None, public=["/metric"])


def test_the_description_has_every_path_and_method() -> None:
    told = openapi()["paths"]
    assert {(path, method.upper()) for path, methods in told.items() for method in methods} == {
        (path, method) for path, methods in PATHS.items() for method in methods
    }


# -- real servers --------------------------------------------------------------------------------------------------------------

ASGI = """
import memwatch
from memwatch.integrations import health
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

memwatch.start(interval="200ms", directory=False)
cache = memwatch.caches.LRUCache(100, name="users")
cache.set("user:1", "one", tags=["users"])
app = Starlette(routes=[
    Route("/", lambda request: PlainTextResponse("hello")),
    Mount("/memwatch", app=health.asgi_app()),
])
"""
WSGI = """
import memwatch
from flask import Flask
from memwatch.integrations import health
from werkzeug.middleware.dispatcher import DispatcherMiddleware

cache = memwatch.caches.LRUCache(100, name="users")
cache.set("user:1", "one", tags=["users"])
flask = Flask(__name__)
flask.route("/")(lambda: "hello")
app = DispatcherMiddleware(flask, {"/memwatch": health.wsgi_app()})
memwatch.start(interval="200ms", directory=False)
"""
SERVERS = {
    "starlette under uvicorn": (ASGI, ["uvicorn", "service:app", "--fd", "{fd}", "--log-level", "warning"]),
    "flask under gunicorn": (WSGI, ["gunicorn", "service:app", "-b", "fd://{fd}", "--threads", "4", "--log-level", "warning"]),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from serve(tmp_path, *SERVERS[request.param])


def serve(folder: Path, source: str, words: list[str]) -> Iterator[str]:
    """A real server with the service; gives its address when it answers."""
    import socket

    (folder / "service.py").write_text(source)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        number = listening.fileno()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH_")}
        process = subprocess.Popen(
            [sys.executable, "-m", *(word.replace("{fd}", str(number)) for word in words)],
            cwd=folder,
            env=environment | {"MEMWATCH_TOKEN": TOKEN},
            pass_fds=[number],
        )
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        httpx.get(address, timeout=60)  # waits in the backlog until it is served
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_mounted_on_a_real_server_it_answers_health_to_all_and_the_rest_by_token(server: str) -> None:
    with httpx.Client(base_url=server, timeout=60) as client:
        assert client.get("/").text == "hello"
        assert client.get("/memwatch/health").json()["status"] in ("ok", "starting")
        refused = client.get("/memwatch/memory")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/memwatch/memory", headers={"Authorization": "Bearer no"}).status_code == 403
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        memory = client.get("/memwatch/memory")
        assert memory.json()["snapshot"]["values"]["rss"] > MIB
        assert memory.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in memory.headers
        assert client.get("/memwatch/memory", headers={"Host": "evil.example.com"}).status_code == 421
        removed = client.delete("/memwatch/caches", params={"tag": "users"})
        assert removed.json() == {"removed": 1, "caches": 1}
        assert client.post("/memwatch/gc").json()["took_s"] > 0
        assert client.get("/memwatch/nothing").status_code == 404


def test_a_client_that_fuzzes_from_the_description_meets_no_5xx_and_reads_nothing_without_the_token(
    server: str, tmp_path: Path
) -> None:
    python = plugin_peers.installed(plugin_peers.PEERS / "schemathesis", ["schemathesis>=4"])
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(openapi()))
    command = [python.parent / "schemathesis", "run", description, "--url", f"{server}/memwatch", "--max-examples", "30"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth"
    done = subprocess.run(
        [*command, "--checks", checks, "--header", f"Authorization: Bearer {TOKEN}", "--seed", "1", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_public_is_public_to_read() -> None:
    endpoints = endpoints_of(watcher_at({"rss": 1.0}), public=["/caches", "/gc"])
    assert get(endpoints, "/caches", host="any")[0] == 200
    assert get(endpoints, "/caches", "pattern=*", "DELETE", host="localhost")[0] == 401
    assert get(endpoints, "/caches", "pattern=*", "DELETE", host="page.example")[0] == 421
    assert get(endpoints, "/gc", method="POST", host="localhost")[0] == 401


@pytest.mark.parametrize("host", ["[::1].example.com", "[::1]example", "127.0.0.1:80@example.com", "localhost:example"])
def test_a_host_that_only_begins_with_an_address_is_none(host: str) -> None:
    assert get(endpoints_of(watcher_at({"rss": 1.0})), "/memory", **{**AUTHORISED, "host": host})[0] == 421


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/m/health", "/m", "/health"),
        ("/health", "/m", "/health"),
        ("/memory", "/mem", "/memory"),
        ("/m", "/m/", "/"),
        ("", "", "/"),
    ],
)
def test_only_whole_segments_of_a_path_are_where_it_is_mounted(path: str, root: str, below: str) -> None:
    assert health._below(path, root) == below
