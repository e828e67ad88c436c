"""systemd, AWS Lambda and Jupyter."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memwatch
from memwatch.config import SettingError
from memwatch.integrations import aws_lambda
from memwatch.integrations.systemd import SystemdSink
from memwatch.model import ChannelSummary, Process, Report, Sample, Statistics, Verdict
from memwatch.testing import FakeClock

SAMPLE = Sample(0.0, 0.0, {})
RSS = ChannelSummary(current=1e8, average=1e8, peak=1e8)


def report(state: Any = "stable", reason: str = "all is well", **more: Any) -> Report:
    process = Process(pid=1, name="api", command=("api",), python="3.11.7")
    return Report(process, Verdict("rss", state, reason=reason, **more), Statistics(9, 90.0, {"rss": RSS}))


# -- systemd -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    lines: list[str] = []
    while True:
        try:
            lines += manager.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def test_systemd_is_told_the_verdict_when_it_changes_and_fed_at_every_sample(manager: socket.socket) -> None:
    clock = FakeClock()
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    sink = SystemdSink(environ=environ, clock=clock.monotonic, ready=True)
    assert sink.watchdog_s == 30
    sink.ticked(SAMPLE, report())
    calm = "STATUS=STABLE  api[1]  resident memory 95.4 MiB, no growth that matters in 90 s"
    assert heard(manager) == ["READY=1", calm, "WATCHDOG=1"]
    sink.ticked(SAMPLE, report())
    assert heard(manager) == ["WATCHDOG=1"]
    clock.advance(10)
    sink.ticked(SAMPLE, report("growing", rate=1e6))
    status, fed = heard(manager)
    assert status.startswith("STATUS=GROWING  api[1]")
    assert fed == "WATCHDOG=1"
    sink.ended()
    assert heard(manager) == ["STATUS=memwatch has stopped watching"]


def test_the_watchdog_goes_hungry_when_memory_runs_out_and_that_was_asked_for(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000"}
    hopeless = report("leaking", exhausted_in_s=10.0, limit=1e9, rate=1e6)
    SystemdSink(environ=environ).ticked(SAMPLE, hopeless)
    assert "WATCHDOG=1" in heard(manager)
    SystemdSink(environ=environ, restart_when_exhausted=True).ticked(SAMPLE, hopeless)
    assert "WATCHDOG=1" not in heard(manager)


def test_without_systemd_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        SystemdSink(environ=environ).ticked(SAMPLE, report())


def test_a_watchdog_of_another_process_is_not_fed(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    SystemdSink(environ=environ).ticked(SAMPLE, report())
    assert "WATCHDOG=1" not in heard(manager)


# -- AWS Lambda ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "thumbnails")
    monkeypatch.setenv("MEMWATCH_DIR", str(tmp_path))


@pytest.mark.usefixtures("function")
def test_a_handler_is_sampled_at_its_boundaries_and_no_thread_is_started() -> None:
    import threading

    @aws_lambda.watched
    def handler(event: int, context: object) -> int:
        return event + 1

    before = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
    assert [handler(n, None) for n in range(3)] == [1, 2, 3]
    watcher = handler.memwatch  # type: ignore[attr-defined]
    assert watcher.statistics().samples == 4
    assert (threading.active_count(), len(list(Path("/proc/self/task").iterdir()))) == before
    assert watcher.report().process.name == "thumbnails"
    assert watcher.statistics().channels["limit"].current == 512 * 2**20
    watcher.stop()


@pytest.mark.usefixtures("function")
def test_a_handler_that_leaks_is_found_out_with_the_type_that_grows() -> None:
    class Thumbnail:
        def __init__(self) -> None:
            self.data = bytearray(20000)

    kept: list[Thumbnail] = []
    leaks: list[Report] = []

    @aws_lambda.watched(on_leak=leaks.append)
    def handler(event: int, context: object) -> None:
        kept.extend(Thumbnail() for _ in range(20))

    watcher = handler.memwatch  # type: ignore[attr-defined]
    try:
        for n in range(2000):
            handler(n, None)
            if leaks:
                break
            while watcher.looking_now:
                handler(n, None)
    finally:
        watcher.stop()
    assert leaks
    assert "thumbnails" in leaks[0].render("text").splitlines()[0]


@pytest.mark.usefixtures("function")
def test_what_a_handler_raises_is_its_own() -> None:
    @aws_lambda.watched
    def handler(event: int, context: object) -> None:
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        handler(1, None)
    assert handler.memwatch.statistics().samples == 2  # type: ignore[attr-defined]
    handler.memwatch.stop()  # type: ignore[attr-defined]


# -- Jupyter -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.io import capture_output

    shell = InteractiveShell()
    shell.captured = capture_output
    shell.run_line_magic("load_ext", "memwatch")
    yield shell
    memwatch.stop()
    shell.run_line_magic("unload_ext", "memwatch")
    shell.history_manager.end_session()


def test_a_cell_is_told_what_it_keeps_and_what_it_peaked_at(shell: Any) -> None:
    with shell.captured() as output:
        shell.run_cell_magic("memwatch", "", "temporary = bytearray(40_000_000); del temporary\nkept = bytearray(8_000_000)\n")
    assert re.search(r"the cell keeps (7\.[6-9]|8\.\d)\d? MiB", output.stdout), output.stdout
    assert "peaked at 38." in output.stdout or "peaked at 45." in output.stdout, output.stdout
    assert len(shell.user_ns["kept"]) == 8_000_000


def test_a_cell_beyond_its_growth_is_told_so_and_a_malformed_option_is_refused(shell: Any) -> None:
    with shell.captured() as output:
        shell.run_cell_magic("memwatch", "--growth 1MB", "kept = bytearray(8_000_000)")
    assert "that is above 977 KiB" in output.stdout, output.stdout
    with pytest.raises(SettingError, match="%%memwatch: '--grow 1MB' is not accepted"):
        shell.run_cell_magic("memwatch", "--grow 1MB", "pass")


def test_the_line_magic_watches_the_kernel_and_its_report_shows_as_text_in_html(shell: Any) -> None:
    found = shell.run_line_magic("memwatch", "interval=50ms directory=off name=<script>")
    assert memwatch.current() is not None
    assert "&lt;script&gt;" in found._repr_html_()
    assert "<script>" not in found._repr_html_()
    shell.run_line_magic("memwatch", "stop")
    assert memwatch.current() is None


def test_a_watchdog_that_is_too_short_for_the_interval_is_told_of(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    given = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "5000000"}
    sink = SystemdSink(environ=given)
    told = report()
    told = replace(told, process=replace(told.process, interval_s=10.0))
    for _ in range(2):
        sink.ticked(Sample(0.0, 0.0, {}), told)
    assert caplog.text.count("WatchdogSec= is 5.0 s and samples come every 10 s") == 1


def test_the_kill_switch_holds_for_a_handler(monkeypatch: pytest.MonkeyPatch, function: None) -> None:
    monkeypatch.setenv("MEMWATCH_DISABLE", "1")
    handler = aws_lambda.watched(lambda event, context: event + context)
    assert handler(1, 2) == 3
    assert handler.memwatch.samples == 0  # type: ignore[attr-defined]
