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
