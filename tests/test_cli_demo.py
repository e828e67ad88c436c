"""`memwatch demo`: found in about 20 s, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memwatch.cli.demo import sparkline

MEMWATCH = [sys.executable, "-m", "memwatch"]


def shops(temporary: Path) -> list[int]:
    """Services of a demo with this temporary directory that are running."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"shop.py" in (folder / "cmdline").read_bytes() and str(temporary).encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_leak_is_found_named_and_cleaned_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MEMWATCH, "demo", "--json"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verdict"]["state"], report["verdict"]["kind"]) == ("leaking", "python-heap")
    assert report["verdict"]["exhausted_in_s"] > 0 and report["uptime_s"] < 30
    assert shops(tmp_path) == [] and list(tmp_path.iterdir()) == []
    assert "memwatch: LEAK  shop[" in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_cut_short_leaves_no_service_behind(number: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*MEMWATCH, "demo"], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        while "WARMING UP" not in demo.stderr.readline():
            pass
        before = shops(tmp_path)
        demo.send_signal(number)
        _, err = demo.communicate(timeout=30)
    assert before and "Traceback" not in err
    for pid in before:  # killed, the demo cannot wait for its service; that ends as soon as it sees its standard input end
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            assert select.select([ended], [], [], 30)[0]
            os.close(ended)
    assert shops(tmp_path) == []
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


def test_on_a_terminal_the_vitals_are_drawn_in_place(tmp_path: Path) -> None:
    pid, descriptor = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that started the tests in the background has it ignored
        os.execvpe(
            MEMWATCH[0], [*MEMWATCH, "demo"], os.environ | {"TMPDIR": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "80"}
        )
    seen = b""
    while not ("▁".encode() in seen and b"visitors" in seen):
        seen += os.read(descriptor, 4096)
    os.write(descriptor, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert shops(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_curve_is_drawn_from_its_lowest_to_its_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0], 8) == "▁▁" and sparkline([], 8) == ""
    assert len(sparkline([float(i) for i in range(1000)], 20)) == 20
