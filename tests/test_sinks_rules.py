"""The rules and the dashboard that are shipped, judged by Prometheus itself; and a service that leaks, watched by it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sinks_runs import free_port, prometheus, promtool, scraping

from memwatch.sinks.figures import METRICS

SHIPPED = resources.files("memwatch.sinks")
RULES = SHIPPED.joinpath("prometheus_rules.yml")
THEIRS = {"process_resident_memory_bytes"}
"""What the dashboard shows of prometheus_client's own."""


def dashboard() -> dict[str, Any]:
    return dict(json.loads(SHIPPED.joinpath("grafana_dashboard.json").read_text()))


def expressions() -> list[str]:
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return found + [item["expr"] for item in dashboard()["annotations"]["list"]]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![:\w])(?:memwatch|process)_[a-z_]+", text))


def checked(*command: str | Path) -> str:
    done = subprocess.run([promtool(), *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert re.search(r"SUCCESS: \d\d rules found", checked("check", "rules", str(RULES)))


def test_each_alert_fires_on_what_it_says_and_on_nothing_else(tmp_path: Path) -> None:
    cases = (Path(__file__).parent / "prometheus_rules_test.yml").read_text()
    (tmp_path / "tests.yml").write_text(cases.replace("%RULES%", str(RULES)))
    checked("test", "rules", tmp_path / "tests.yml")
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", cases))


def test_the_rules_and_the_dashboard_name_metrics_that_are_exported() -> None:
    exported = {metric.name for metric in METRICS}
    shown = metrics_in(" ".join(expressions()))
    assert metrics_in(" ".join(re.findall(r"expr: (.*(?:\n {10,}.*)*)", RULES.read_text()))) <= exported
    assert shown - THEIRS <= exported


def test_each_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    variables = {"$job": "api", "$instance": ".*", "$__rate_interval": "5m"}
    rules = []
    for number, expression in enumerate(expressions()):
        for variable, text in variables.items():
            expression = expression.replace(variable, text)
        assert "$" not in expression
        rules.append({"record": f"shown:{number}", "expr": expression})
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in checked("check", "rules", tmp_path / "rules.yml")


def test_the_dashboard_has_what_grafana_wants_of_one() -> None:
    shown = dashboard()
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(set(ids)) == len(ids)
    names = {item["name"] for item in shown["templating"]["list"]}
    text = json.dumps(shown)
    assert set(re.findall(r"\$\{?([a-z]+)\}?", text)) - names == set()
    taken: set[tuple[int, int]] = set()
    for panel in shown["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


LEAKING = """
    import random, sys, threading, time
    from wsgiref.util import setup_testing_defaults
    import memwatch, prometheus_client
    from memwatch.integrations.wsgi import MemwatchMiddleware
    watcher = memwatch.start(interval="0.1s", memory_limit="4GiB", name="shop", directory=False, sinks=["prometheus"])
    prometheus_client.start_http_server(int(sys.argv[1]), addr="127.0.0.1")
    kept = []

    def application(environ, start_response):
        sessions = [{"session": [str(n) for n in range(20)]} for _ in range(40)]
        if environ["PATH_INFO"].startswith("/cart"):
            kept.extend(sessions)
        start_response("503 Busy" if environ["PATH_INFO"] == "/busy" else "200 OK", [])
        return [b""]

    watched = MemwatchMiddleware(application)
    while True:
        environ = {"PATH_INFO": random.choice(["/cart/7", "/cart/8", "/ping", "/busy"])}
        setup_testing_defaults(environ)
        answer = watched(environ, lambda *said: None)
        list(answer)
        getattr(answer, "close", list)()
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_real_prometheus_scrapes_a_leaking_service_and_the_alert_fires(tmp_path: Path) -> None:
    port = free_port()
    program = tmp_path / "service.py"
    program.write_text("\n".join(line.removeprefix("    ") for line in LEAKING.splitlines()))
    prometheus()  # or skip
    service = subprocess.Popen([sys.executable, program, str(port)], stderr=subprocess.PIPE, text=True)
    try:
        with scraping(tmp_path, {"shop": port}, rules=str(RULES)) as engine:
            (leak,) = engine.wait_for("memwatch_leak_info == 1", service)
            assert leak["metric"]["kind"] == "python-heap"
            assert engine.query("memwatch_memory_growth_bytes_per_second > 0") != []
            assert engine.query("process_resident_memory_bytes") != []
            (blamed,) = engine.wait_for("memwatch_route_growth_per_request_bytes", service)
            assert blamed["metric"]["route"] == "GET /cart/{id}"
            assert 40 * 1000 < float(blamed["value"][1]) < 160 * 1000  # 40 times a dictionary, a list and what is in it
            assert engine.wait_for('rate(memwatch_route_requests_total{route="GET /ping"}[10s]) > 0', service)
            assert engine.query("memwatch_route_errors_total > 0")[0]["metric"]["route"] == "GET /busy"
            assert len(engine.query('memwatch_route_duration_seconds{route="GET /cart/{id}"} > 0')) == 3
            (alert,) = engine.wait_for('ALERTS{alertname="MemwatchLeak", alertstate="firing"}', service)
            assert alert["metric"]["fingerprint"] == leak["metric"]["fingerprint"]
            assert alert["metric"]["severity"] == "warning"
    finally:
        service.terminate()
        service.communicate(timeout=30)
