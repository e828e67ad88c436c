"""`memwatch watch`: other processes, from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memwatch
from memwatch.record import find_records, read_report

MEMWATCH = [sys.executable, "-m", "memwatch"]


@pytest.fixture
def patient() -> Iterator[subprocess.Popen[str]]:
    """A process that does nothing until its standard input ends."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def watch(*words: object, directory: Path) -> subprocess.CompletedProcess[str]:
    whole = [*MEMWATCH, "watch", "--interval", "50ms", "--directory", str(directory), *map(str, words)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60, check=False)


def test_a_process_is_sampled_into_a_record_that_says_it_was_from_outside(patient: subprocess.Popen[str], tmp_path: Path) -> None:
    done = watch("--samples", 4, "--label", "team=shop", patient.pid, directory=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"WARMING UP  cat[{patient.pid}]  too few samples yet: 4 of ")
    (path,) = find_records(tmp_path)
    report = read_report(path)
    assert report.statistics.samples == 4 and report.statistics.channels["rss"].current is not None
    assert report.process.labels == {"watched": "from outside", "team": "shop"}
    assert report.process.command == ("cat",) and report.process.end == "the watch from outside was stopped"


def test_it_ends_when_the_last_process_has_ended(tmp_path: Path) -> None:
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as first,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as second,
        subprocess.Popen(
            [*MEMWATCH, "watch", "--interval", "50ms", "--directory", str(tmp_path), "--json", str(first.pid), str(second.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watching,
    ):
        assert watching.stderr is not None and "WARMING UP" in watching.stderr.readline()
        first.communicate()
        assert watching.poll() is None
        second.communicate()
        out, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert [report["process"]["pid"] for report in json.loads(out)] == [first.pid, second.pid]
    assert {read_report(path).process.fate for path in find_records(tmp_path)} == {"exited"}
    assert all("not seen from outside" in str(read_report(path).process.end) for path in find_records(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watch_in_order(number: int, patient: subprocess.Popen[str], tmp_path: Path) -> None:
    words = [*MEMWATCH, "watch", "--interval", "10s", "--directory", str(tmp_path), str(patient.pid)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        watching.stderr.readline()
        watching.send_signal(number)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (0, "") and out.startswith("WARMING UP")
    (path,) = find_records(tmp_path)
    assert read_report(path).process.ended is not None


def test_no_such_process_is_exit_status_3(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    missing = watch(gone.pid, directory=tmp_path)
    assert (missing.returncode, missing.stderr) == (3, f"memwatch: process {gone.pid} is not there\n")
    assert find_records(tmp_path) == []


def test_a_process_that_is_watched_already_is_refused(patient: subprocess.Popen[str], tmp_path: Path) -> None:
    words = [*MEMWATCH, "watch", "--interval", "50ms", "--directory", str(tmp_path), str(patient.pid)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        watching.stderr.readline()
        second = watch(patient.pid, directory=tmp_path)
        watching.terminate()
    assert second.returncode == 2 and f"being watched already: memwatch report {patient.pid}" in second.stderr


def test_a_watch_goes_on_where_an_earlier_one_stopped(patient: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        assert watch("--samples", 3, patient.pid, directory=tmp_path).returncode == 0
    (path,) = find_records(tmp_path)
    assert len(read_report(path).history) == 6


def test_a_leak_is_seen_from_outside(tmp_path: Path) -> None:
    source = "import time\nkept = []\nwhile True:\n    kept.append(bytearray(b'x' * 200_000))\n    time.sleep(0.02)"
    with subprocess.Popen([sys.executable, "-c", source]) as leaking:
        done = watch("--duration", "6s", leaking.pid, directory=tmp_path)
        leaking.kill()
    assert done.stdout.startswith(f"LEAK  python -c[{leaking.pid}]  ")


@pytest.mark.skipif(os.geteuid() != 0, reason="elsewhere: only root can start a process of another user")
def test_a_process_of_another_user_is_watched_as_far_as_it_can_be_and_the_rest_is_said() -> None:
    import click

    nobody = 65534
    path = os.pathsep.join(str(Path(module.__file__).parent.parent) for module in (memwatch, click))
    source = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; assert sys.version_info > (3, 11); import memwatch, click"
    python = next((found for found in (sys.executable, "/usr/bin/python3") if _may(nobody, found, source)), None)
    if python is None:
        pytest.skip(
            "elsewhere: another user cannot start a Python of at least 3.11, or may not read memwatch where it is installed"
        )
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as others:
        words = [python, "-m", "memwatch", "watch", "--interval", "50ms", "--directory", "off", "--samples", "2", str(others.pid)]
        done = subprocess.run(
            words,
            env={"PYTHONPATH": path},
            user=nobody,
            group=nobody,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        others.communicate()
    assert done.returncode == 0, done.stderr
    said = f"sockets of process {others.pid} cannot be read: it belongs to another user. Run as that user or as root."
    assert said in done.stderr


def _may(user: int, python: str, source: str) -> bool:
    try:
        return subprocess.run([python, "-c", source], user=user, cwd="/", capture_output=True, check=False).returncode == 0
    except OSError:
        return False
