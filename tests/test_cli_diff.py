"""`memwatch diff`: two records, two moments of one, two releases, through the command line."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases

from memwatch.model import Census, Evidence, Sample, Suspect
from memwatch.record import RecordWriter

MEMWATCH = [sys.executable, "-m", "memwatch"]
START = cases.NOW_S - 4 * 3600
MIB = 2**20


def diff(*words: object, width: int = 100) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"} | {
        "COLUMNS": str(width),
        "TZ": "Asia/Tokyo",
    }
    return subprocess.run(
        [*MEMWATCH, "diff", *map(str, words)], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def census(time_s: float, sessions: float) -> Census:
    types = (Suspect("dict", 40 * MIB, 9000), Suspect("app.Session", sessions * 100, sessions))
    return Census(time_s, (Evidence("types", types), Evidence("sites", (Suspect("app/a.py:1 add", sessions * 90, sessions),))))


def record(
    directory: Path, *, name: str = "api", pid: int = 4242, version: str = "1.4.1", censuses: int = 3, more: float = 0
) -> Path:
    """Four hours at a sample a minute; a census each hour of the last ones; a thousand sessions more each minute."""
    process = cases.process(name=name, pid=pid, labels={"version": version}, started=START, interval_s=60.0)
    writer = RecordWriter(directory, process)
    for minute in range(241):
        values = {"rss": (100 + minute) * MIB, "threads": 4.0} | ({"uss": (90 + minute) * MIB} if minute % 10 == 0 else {})
        writer.write(Sample(START + 60 * minute, 60.0 * minute, values))
    for hour in range(5 - censuses, 5):
        writer.write_census(census(START + 3600 * hour + 30, 60_000 * hour + more))
    writer.close()
    return writer.path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def test_two_moments_of_one_process_are_compared_by_channel_type_and_site(directory: Path) -> None:
    path = record(directory)
    shown = diff(f"{path}@2026-11-22T06:00", f"{path}@last")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert lines[0] == "A api[4242] 2026-11-22 06:00:00 UTC, 2 h after its start"
    assert "one process, 2 h apart" in lines
    assert "resident memory 220 MiB 340 MiB +120 MiB +60.0 MiB" in lines
    assert "unchanged: threads" in lines
    assert "+11.4 MiB +5.72 MiB 11.4 MiB 22.9 MiB +120,000 app.Session" in lines
    assert "+10.3 MiB +5.15 MiB 10.3 MiB 20.6 MiB +120,000 app/a.py:1 add" in lines


@pytest.mark.parametrize(
    ("moment", "time", "rss", "taken"),
    [
        ("@first", "2026-11-22T04:00:00.000Z", 100, "2026-11-22T06:00:30.000Z"),
        ("@last", "2026-11-22T08:00:00.000Z", 340, "2026-11-22T08:00:30.000Z"),
        ("", "2026-11-22T08:00:00.000Z", 340, "2026-11-22T08:00:30.000Z"),
        ("@-1h", "2026-11-22T07:00:00.000Z", 280, "2026-11-22T07:00:30.000Z"),
        ("@-90m", "2026-11-22T06:30:00.000Z", 250, "2026-11-22T06:00:30.000Z"),
        ("@2026-11-22T07:01:30", "2026-11-22T07:01:00.000Z", 281, "2026-11-22T07:00:30.000Z"),
        ("@2026-11-22T08:01:30+01:00", "2026-11-22T07:01:00.000Z", 281, "2026-11-22T07:00:30.000Z"),
        ("@2027-01-01", "2026-11-22T08:00:00.000Z", 340, "2026-11-22T08:00:30.000Z"),
    ],
)
def test_a_moment_is_the_last_sample_by_then_and_the_nearest_census(
    moment: str, time: str, rss: float, taken: str, directory: Path
) -> None:
    record(directory)
    read = json.loads(diff(f"api{moment}", "api@last", "--directory", directory, "--json").stdout)
    assert (read["a"]["time"], read["channels"]["rss"]["a"], read["a"]["census"]) == (time, rss * MIB, taken)


def test_a_channel_that_is_read_rarely_has_its_last_reading(directory: Path) -> None:
    path = record(directory)
    read = json.loads(diff(f"{path}@2026-11-22T06:05", path, "--json").stdout)
    assert read["channels"]["uss"]["a"] == (90 + 120) * MIB


def test_json_holds_both_moments_all_rows_and_rates(directory: Path) -> None:
    path = record(directory)
    read = json.loads(diff(f"{path}@first", path, "--json").stdout)
    assert set(read) == {"schema", "a", "b", "same_process", "seconds", "channels", "tables", "notes"}
    assert (read["schema"], read["same_process"], read["seconds"], read["notes"]) == (1, True, 14400.0, [])
    assert [row["label"] for row in read["tables"]["types"]] == ["app.Session", "dict"]
    assert read["tables"]["types"][0]["bytes"] == {"a": 12e6, "b": 24e6, "grown": 12e6, "per_hour": 6e6}
    limited = json.loads(diff(f"{path}@first", path, "--json", "--limit", 1).stdout)
    assert [row["label"] for row in limited["tables"]["types"]] == ["app.Session"]


def test_two_releases_are_the_newest_records_with_each_label_of_one_name(directory: Path) -> None:
    old = record(directory)
    new = record(directory, pid=99, version="1.4.2", more=7e5)
    other = record(directory, name="worker", pid=98, version="1.4.2", more=9e5)
    for age, path in ((30, old), (20, new), (10, other)):
        os.utime(path, (cases.NOW_S - age,) * 2)
    shown = diff("--label", "version=1.4.1", "--label", "version=1.4.2", "--directory", directory)
    assert shown.returncode == 0 and "A  api[4242]" in shown.stdout and "B  api[99]" in shown.stdout
    assert "version=1.4.1" in shown.stdout and "version=1.4.2" in shown.stdout and "+700,000" in shown.stdout
    assert "per hour  " not in shown.stdout
    named = diff("worker", "--label", "version=1.4.2", "--label", "version=1.4.2", "--directory", directory)
    assert "A  worker[98]" in named.stdout and "B  worker[98]" in named.stdout


def test_a_label_that_no_record_has_names_those_there_are(directory: Path) -> None:
    record(directory)
    missing = diff("--label", "version=1.4.1", "--label", "version=9", "--directory", directory)
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "no record has the label version=9; there are records with version=1.4.1" in missing.stderr


@pytest.mark.parametrize("which", ["none", "one", "old"])
def test_without_two_censuses_channels_are_compared_and_that_is_said(which: str, directory: Path) -> None:
    path = record(directory, censuses=1 if which == "one" else 0)
    if which == "old":  # made before there were censuses
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE censuses")
        connection.close()
    shown = diff(f"{path}@first", path)
    said = "is the nearest to both moments" if which == "one" else "no census of A and B was recorded"
    assert shown.returncode == 0 and "resident memory" in shown.stdout and "by type" not in shown.stdout
    assert said in " ".join(shown.stdout.split()) and "only channels are compared" in " ".join(shown.stdout.split())


def test_a_moment_before_the_record_began_is_an_error_that_says_when_it_did(directory: Path) -> None:
    path = record(directory)
    missing = diff(f"{path}@-9h", path)
    assert (missing.returncode, missing.stdout) == (3, "")
    assert (
        "nothing was sampled of api[4242] by 2026-11-21 23:00:00 UTC: its record begins at 2026-11-22 04:00:00 UTC"
        in missing.stderr
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "0 were given: memwatch diff A B"),
        (("api",), 2, "1 was given: memwatch diff A B, for two moments of one process memwatch diff api@first api@last"),
        (("api", "api", "api"), 2, "3 were given"),
        (("api@yesterday", "api"), 2, "'api@yesterday' is no record, and what follows @ is no moment: first, last, -1h"),
        (("nobody", "api"), 3, "no record of 'nobody'"),
        (("api", "--label", "version=1"), 2, "--label is given twice"),
        (("--label", "version", "--label", "version=1"), 2, "'version' is not KEY=VALUE"),
        (("api", "api", "--limit", "0"), 2, "--limit"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_clear_error(words: tuple[str, ...], status: int, said: str, directory: Path) -> None:
    record(directory)
    refused = diff(*words, "--directory", directory)
    assert (refused.returncode, refused.stdout) == (status, "") and said in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


def test_a_name_with_an_at_is_a_name(directory: Path) -> None:
    record(directory, name="celery@web-1")
    shown = diff("celery@web-1@first", "celery@web-1", "--directory", directory)
    assert shown.returncode == 0 and "A  celery@web-1[4242]  2026-11-22 04:00:00 UTC" in shown.stdout


def test_of_several_records_of_a_name_it_is_said_once_which_is_meant(directory: Path) -> None:
    record(directory)
    record(directory, pid=5)
    shown = diff("api@first", "api@last", "--directory", directory)
    assert shown.stderr.count("the worst of 2 records") == 1


def test_a_damaged_record_is_one_line(directory: Path) -> None:
    path = record(directory)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE censuses SET body = '{'")
    connection.commit()
    connection.close()
    refused = diff(f"{path}@first", path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1) and "it is damaged" in refused.stderr


def test_a_record_older_than_its_fine_samples_is_compared_by_five_minute_means(directory: Path) -> None:
    process = replace(cases.process(name="old"), started=START)
    writer = RecordWriter(directory, process)
    for index in range(3 * 288):  # three days, a sample every five minutes
        writer.write(Sample(START + 300 * index, 300.0 * index, {"rss": 1e6 + index}))
    writer.close()
    read = json.loads(diff(f"{writer.path}@first", f"{writer.path}@-2d", "--json").stdout)
    assert (read["channels"]["rss"]["a"], read["channels"]["rss"]["b"]) == (1e6, 1e6 + 3 * 288 - 1 - 2 * 288)
