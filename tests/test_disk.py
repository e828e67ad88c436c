"""Disks that are full, read-only or missing, under a real program: its output is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memwatch.record import find_records, read_report

PROGRAM = """
import sys, time
for n in range(60):
    print("line", n, flush=True)
    time.sleep(0.01)
sys.exit(3)
"""
EXPECTED = "".join(f"line {n}\n" for n in range(60))


def run_watched(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "memwatch",
        "run",
        "--interval",
        "50ms",
        "--directory",
        directory,
        "--",
        sys.executable,
        "-c",
        PROGRAM,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def fill_disk(disk: Path) -> None:
    """Write until the disk is full."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, b"x" * 4096):
            pass
    except OSError:
        pass
    finally:
        os.close(descriptor)


def make_read_only(disk: Path) -> None:
    """As a container's root file system is."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.mark.parametrize("spoil", [fill_disk, make_read_only], ids=lambda spoil: spoil.__name__)
def test_on_a_spoilt_disk_the_programs_output_and_status_are_its_own_and_memwatch_says_one_line(
    small_disk: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(small_disk)
    done = run_watched(small_disk)
    assert done.stdout == EXPECTED
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if "without a record" in line]
    assert len(lines) == 1, done.stderr
    assert str(small_disk) in lines[0]
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_a_disk_that_fills_up_while_recording_keeps_what_was_written(small_disk: Path) -> None:
    program = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import memwatch
from pathlib import Path
from test_disk import fill_disk
watcher = memwatch.current()
while watcher.statistics().samples < 10: time.sleep(0.01)
fill_disk(Path({str(small_disk)!r}))
while watcher.statistics().samples < 400: watcher.tick()
print("done")
"""
    command = [
        sys.executable,
        "-m",
        "memwatch",
        "run",
        "--interval",
        "50ms",
        "--directory",
        small_disk,
        "--",
        sys.executable,
        "-c",
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0
    (path,) = find_records(small_disk)
    assert read_report(path).statistics.samples >= 9


def test_without_a_finding_a_watched_program_prints_what_it_prints_alone(tmp_path: Path) -> None:
    done = run_watched(tmp_path / "records")
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 3)
