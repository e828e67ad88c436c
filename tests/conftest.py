"""What several test files need: a clean environment, and programs to run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memwatch.caches import registry

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist ignores Ctrl-C, and so would every program that a test starts."""
    if hasattr(config, "workerinput"):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests reaches them, and nothing is written into their home."""
    for name in [name for name in os.environ if name.startswith("MEMWATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # A watcher that a test left under pressure must not make the jobs of another one wait.
    registry.note_pressure("normal")


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Run a program text in a new interpreter: `python(source, *arguments, env=…)`; fails if it does, unless `check=False`."""

    def run(
        source: str, *arguments: object, check: bool = True, timeout: float = 60, **options: object
    ) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False, **options
        )
        assert not check or done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mountpoint], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("elsewhere: mounting a small file system needs root")
    yield mountpoint
    subprocess.run(["umount", "--lazy", mountpoint], check=True)


@pytest.fixture(params=["extension", "python"])
def flights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger of this process, empty, once with what counts requests in C and once with what does so in Python."""
    from memwatch import routes
    from memwatch.routes.flights import Flights
    from memwatch.routes.ledger import fastest

    kind = fastest() if request.param == "extension" else Flights
    if request.param == "extension" and kind is Flights:
        pytest.skip("elsewhere: the extension memwatch.routes._flights is not built here")
    monkeypatch.setattr(routes, "_ledger", routes.Ledger(flights=kind))


@pytest.fixture(params=["extension", "python"])
def storing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, once with what stores in C and once with what does so in Python."""
    from memwatch.caches.engine import Engine

    in_python = getattr(Engine.__setitem__, "__wrapped__", None)
    if request.param == "python" and in_python is not None:
        monkeypatch.setattr(Engine, "__setitem__", in_python)
    if request.param == "extension" and in_python is None:
        pytest.skip("elsewhere: the extension memwatch.caches._engine is not built here")
