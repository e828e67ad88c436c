"""Imports point down only, and importing costs next to nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The law.  A module may import from its own layer or one below; packages of layer 2 never import each other.
LAYERS: dict[str, int] = {
    "memwatch.model": 0,
    "memwatch.units": 0,
    "memwatch.config": 0,
    "memwatch.trend": 1,
    "memwatch.pressure": 1,
    "memwatch.report": 1,
    "memwatch.descriptors": 1,
    "memwatch.access": 1,
    "memwatch.tally": 1,
    "memwatch.expectations": 1,
    "memwatch.osthread": 2,
    "memwatch.vitals": 2,
    "memwatch.record": 2,
    "memwatch.evidence": 2,
    "memwatch.caches": 2,
    "memwatch.gate": 3,
    "memwatch.interpreters": 3,
    "memwatch.forks": 3,
    "memwatch.whoami": 3,
    "memwatch.journal": 3,
    "memwatch.audience": 3,
    "memwatch.live": 3,
    "memwatch.news": 3,
    "memwatch.timeline": 3,
    "memwatch.relief": 3,
    "memwatch.blocks": 3,
    "memwatch.routes": 3,
    "memwatch.fleet": 3,
    "memwatch.moments": 3,
    "memwatch.watcher": 3,
    "memwatch": 4,
    "memwatch.testing": 4,
    "memwatch.endpoints": 4,
    "memwatch.web": 4,
    "memwatch.recycling": 4,
    "memwatch.boot": 4,
    "memwatch.sinks": 4,
    "memwatch.cli": 5,
    "memwatch.integrations": 5,
    "memwatch.__main__": 5,
    "pytest_memwatch": 5,
}
# Calls that point up, loaded only when asked for: Report.render() is the contract, a sink may be given by its name, and
# the live socket answers what is asked over HTTP.
ALLOWED = {("memwatch.model", "memwatch.report"), ("memwatch.audience", "memwatch.sinks"), ("memwatch.live", "memwatch.endpoints")}
# Each third-party package is imported in exactly one place; click and rich are the language of the command line.
HOMES = {
    "psutil": "memwatch.vitals.portable",
    "click": "memwatch.cli",
    "rich": "memwatch.cli",
    "textual": "memwatch.cli.top",
    "locust": "memwatch.cli.load_users",
    "resvg_py": "memwatch.cli.report",
    "memray": "memwatch.gate.peaks",
    "redis": "memwatch.caches.redis_tier",
    "compression": "memwatch.caches.codec",  # of the standard library from 3.14 on
    "msgpack": "memwatch.caches.codec",
    "zstandard": "memwatch.caches.codec",
    "sentry_sdk": "memwatch.sinks.sentry",
    "prometheus_client": "memwatch.sinks.prometheus",
    "opentelemetry": "memwatch.sinks.opentelemetry",
    "starlette": "memwatch.web",
    "uvicorn": "memwatch.web",
    "sse_starlette": "memwatch.web",
    "anyio": "memwatch.web",
    "asgiref": "memwatch.integrations.django",
    "celery": "memwatch.integrations.celery",
    "billiard": "memwatch.integrations.celery",
    "rq": "memwatch.integrations.rq",
    "dramatiq": "memwatch.integrations.dramatiq",
    "apscheduler": "memwatch.integrations.apscheduler",
    "pytest": "pytest_memwatch",
    "_pytest": "pytest_memwatch",
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("memwatch", "pytest_memwatch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, name: str) -> set[str]:
    """Every module named by an import statement outside `if TYPE_CHECKING`, at any depth."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    known = modules()
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found


def unit_of(module: str) -> str | None:
    """The longest prefix that has a layer."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYERS and not (length == 1 and parts[0] == "memwatch" and len(parts) > 1):
            return ".".join(parts[:length])
    return None


def test_every_module_has_a_layer() -> None:
    assert [name for name in modules() if unit_of(name) is None] == []


def test_imports_point_down_only() -> None:
    wrong = []
    for name, path in modules().items():
        here = unit_of(name)
        for target in imported(path, name):
            if target.split(".")[0] not in ("memwatch", "pytest_memwatch"):
                continue
            there = unit_of(target)
            if here is None or there is None or here == there or (here, there) in ALLOWED:
                continue
            # `from memwatch import units` names the package; the module it means was resolved above.
            if LAYERS[there] > LAYERS[here] or (LAYERS[here] == LAYERS[there] == 2):
                wrong.append(f"{name} ({LAYERS[here]}) imports {target} ({LAYERS[there]})")
    assert wrong == []


def test_pure_layers_know_no_clock_thread_file_logger_or_random_number() -> None:
    impure = {"time", "threading", "logging", "random", "os", "socket", "subprocess", "pathlib"}
    wrong = []
    exempt = ("memwatch.config", "memwatch.expectations", "memwatch.descriptors")
    for name, path in modules().items():
        unit = unit_of(name)
        if unit is not None and LAYERS[unit] <= 1 and unit not in exempt:
            wrong += [f"{name} imports {module}" for module in imported(path, name) & impure]
    assert wrong == []


def test_each_third_party_package_is_imported_in_exactly_one_place() -> None:
    standard = set(sys.stdlib_module_names)
    homes = defaultdict(set)
    for name, path in modules().items():
        for target in imported(path, name):
            top = target.split(".")[0]
            if top not in standard and top not in ("memwatch", "pytest_memwatch"):
                homes[top].add(name)
    for package, places in homes.items():
        assert package in HOMES, f"{package} has no home; it is imported in {places}"
        assert all(place == HOMES[package] or place.startswith(HOMES[package] + ".") for place in places), (package, places)


@pytest.mark.parametrize("statement", ["import memwatch", "import memwatch; memwatch.start(directory=False); memwatch.stop()"])
def test_importing_and_starting_loads_the_standard_library_only(statement: str) -> None:
    program = f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in json.loads(result.stdout)}
    # The interpreter's own module for sub-interpreters has no public name before 3.13.
    assert tops - set(sys.stdlib_module_names) - {"_xxsubinterpreters"} == {"memwatch"}


def test_importing_starts_nothing() -> None:
    program = (
        "import threading, atexit, logging, memwatch; before = atexit._ncallbacks(); import memwatch.watcher; "
        "print(threading.active_count(), atexit._ncallbacks() - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "0"]
