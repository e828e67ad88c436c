"""`memwatch soak` with a real service and a real load."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memwatch.cli import soak

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import plugin_peers  # noqa: E402  (benchmarks are scripts, not a package)

SERVICE = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
kept = []
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/leak": kept.append(bytearray(20000))
        self.send_response(500 if self.path == "/bad" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments): pass
if sys.argv[2] == "dies": sys.exit(7)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def locust() -> Path:
    """The folder of locust's command, in an environment of its own: it brings much along."""
    return plugin_peers.installed(plugin_peers.PEERS / "locust", ["locust>=2.20"]).parent


@pytest.fixture
def soaked(tmp_path: Path, locust: Path) -> Any:
    def run(path: str, *options: str, how: str = "serve") -> tuple[subprocess.CompletedProcess[str], str]:
        (tmp_path / "service.py").write_text(SERVICE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = f"http://127.0.0.1:{port}{path}"
        command = [sys.executable, "-m", "memwatch", "soak", "--load", address, "--users", "3", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH_")}
        environment["PATH"] = f"{locust}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [*command, "--", sys.executable, "service.py", str(port), how],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        left = subprocess.run(["pgrep", "-f", f"service.py {port}"], capture_output=True, text=True, check=False)
        assert left.stdout == "", "the service was left behind"
        return done, address

    return run


def test_a_service_that_leaks_under_load_fails_with_what_grows_and_percentiles(soaked: Any) -> None:
    done, _ = soaked("/leak", "--duration", "20s", "--json")
    assert done.returncode == 1, done.stderr
    outcome = json.loads(done.stdout)
    (process,) = outcome["processes"]
    assert process["verdict"]["state"] == "leaking"
    assert process["process"]["fate"] == "running"  # what we ended afterwards did not end by itself
    assert process["growth_bytes"] > 2**20
    assert any("service.py" in suspect["label"] for item in process["evidence"] for suspect in item["suspects"])
    assert outcome["problems"] == [f"service[{process['process']['pid']}] is leaking"]
    load = outcome["load"]
    assert load["requests"] > 100
    assert load["failures"] == 0
    assert 0 < load["p50_s"] <= load["p95_s"] <= load["p99_s"]


def test_a_service_that_keeps_nothing_passes_and_one_whose_requests_fail_does_not(soaked: Any) -> None:
    done, _ = soaked("/fine", "--duration", "10s", "--max-growth", "30MB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("PASSED\n")
    done, _ = soaked("/bad", "--duration", "3s", "--max-p95", "1ms")
    assert done.returncode == 1
    assert "FAILED  100.00% of the requests failed, limit 0.00%" in done.stdout
    assert "of the requests took up to" in done.stdout
    assert "  100%  GET /bad: HTTPError('500 Server Error" in done.stdout


def test_why_requests_failed_is_told_with_the_most_frequent_reason_first(tmp_path: Path) -> None:
    (tmp_path / "load_failures.csv").write_text(
        "Method,Name,Error,Occurrences\nGET,/a,RemoteDisconnected(),10\nPOST,/b,\"HTTPError('500 Server Error, for url: /b')\",40\n"
    )
    found = soak.failures(tmp_path / "load_failures.csv")
    assert found == (
        soak.Failed("POST /b", "HTTPError('500 Server Error, for url: /b')", 0.8),
        soak.Failed("GET /a", "RemoteDisconnected()", 0.2),
    )
    told = soak.told([], soak.Latencies(100, 50, 10.0, 0.01, 0.2, 0.2, found * 2), [])
    assert "\n   80%  POST /b: HTTPError('500 Server Error, for url: /b')\n   20%  GET /a: " in told
    assert "and 1 more\n" in told
    (tmp_path / "load_failures.csv").write_text("something else\n")
    assert soak.failures(tmp_path / "load_failures.csv") == soak.failures(tmp_path / "none") == ()


def test_a_service_that_never_answers_is_no_soak(soaked: Any) -> None:
    done, address = soaked("/", "--duration", "3s", how="dies")
    assert done.returncode == 3
    assert f"the service ended with status 7 before it answered {address}" in done.stderr


def test_percentiles_are_over_all_addresses() -> None:
    entries = [
        {"num_requests": 90, "num_failures": 0, "response_times": {"10": 90}},
        {"num_requests": 10, "num_failures": 2, "response_times": {"200.0": 9, "1000": 1}},
    ]
    seen = soak.latencies(entries, 10.0)
    assert seen == soak.Latencies(100, 2, 10.0, 0.01, 0.2, 0.2)
    assert soak.latencies([], 10.0).p50_s is None


def test_a_place_that_cannot_be_for_the_records_is_named_with_its_option(soaked: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done, _ = soaked("/", "--duration", "5s", "--keep", str(tmp_path / "file" / "records"))
    assert done.returncode == 2
    assert f"--keep: '{tmp_path}/file/records' cannot be made: Not a directory" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--load", "http://h/", "--duration", "10"], "--duration: '10'"),
        ([], "--load: give the address"),
        (["--load", "http://h/", "--max-growth", "5"], "5"),
    ],
)
def test_malformed_options_are_usage_errors(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "memwatch", "soak", *options, "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--duration", "0s"], "--duration: '0s' is too short"),
        (["--load", "http://127.0.0.1:abc/"], "--load: 'http://127.0.0.1:abc/' is not an address"),
        (["--load", "http://127.0.0.1:99999/"], "--load: 'http://127.0.0.1:99999/' is not an address"),
        (["--load", "http://127.0.0.1/a b"], "--load: 'http://127.0.0.1/a b' is not an address"),
        (["--load", "file:///etc/hostname"], "--load: 'file:///etc/hostname' is not an address"),
        (["--max-growth", "5"], "--max-growth: '5' is not a number with a unit"),
        (["--max-errors", "5"], "--max-errors: '5' is not a percentage"),
        (["--max-p95", "5"], "--max-p95: '5' is not"),
    ],
)
def test_what_is_malformed_is_named_with_its_option(options: list[str], said: str) -> None:
    words = ["--load", "http://127.0.0.1:1/", *options, "--", "true"]
    done = subprocess.run([sys.executable, "-m", "memwatch", "soak", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_it_has_started_ends_with_it_when_it_is_cancelled(tmp_path: Path) -> None:
    locust = tmp_path / "locust"
    locust.write_text("#!/bin/sh\nexec sleep 60\n")
    locust.chmod(0o755)
    (tmp_path / "service.py").write_text(SERVICE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--load", f"http://127.0.0.1:{port}/", "--", sys.executable, str(tmp_path / "service.py"), str(port), "serve"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH_")}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "memwatch", "soak", *words]
    soaking = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert soaking.stderr is not None
    assert "soaking for" in soaking.stderr.readline()
    soaking.terminate()
    assert soaking.wait(60) == 143
    soaking.stderr.close()
    with socket.socket() as asking:
        assert asking.connect_ex(("127.0.0.1", port)) != 0


def test_a_service_that_speaks_something_else_is_waited_for_and_then_told_of() -> None:
    garbage = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
    garbage += "while True: c, _ = s.accept(); c.recv(999); c.sendall(b'-ERR\\r\\n\\r\\n'); c.close()"
    server = subprocess.Popen([sys.executable, "-c", garbage], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        with pytest.raises(soak.NotThere, match="its answer is not HTTP"):
            soak._wait_until_ready(f"http://127.0.0.1:{port}/", server, 1.0)  # type: ignore[arg-type]
    finally:
        server.kill()
        server.communicate()
