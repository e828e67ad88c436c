"""`memwatch doctor`: what works here and why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memwatch import config
from memwatch.cli.doctor import Python, known_causes
from memwatch.model import CHANNELS
from memwatch.report.layout import cells

MEMWATCH = [sys.executable, "-m", "memwatch"]


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEMWATCH, "doctor", *words], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_channel_is_there_or_says_why_not() -> None:
    lines = json.loads(doctor("--json").stdout)["vitals"]
    by_name = {line["name"]: line for line in lines}
    assert {channel.name for channel in CHANNELS} <= set(by_name)
    assert by_name["rss"]["state"] == "ok"
    assert all(line["text"] for line in lines)


def test_every_setting_is_told_with_where_it_came_from(tmp_path: Path) -> None:
    sections = json.loads(doctor("--json", "--growth-limit", "5%/h", MEMWATCH_INTERVAL="2s", MEMWATCH_DIR=str(tmp_path)).stdout)
    texts = {line["name"]: line["text"] for line in sections["settings"]}
    assert list(texts) == [setting.name for setting in config.SETTINGS]
    assert texts["interval"] == "2.0 s (environment variable MEMWATCH_INTERVAL)"
    assert texts["growth_limit"].endswith("(argument)") and texts["name"].endswith("(default)")


def test_one_limit_rules_and_the_one_set_by_hand_rules_above_all() -> None:
    found = json.loads(doctor("--json").stdout)["limits"]
    assert [line["state"] for line in found].count("ok") == 1
    given = json.loads(doctor("--json", MEMWATCH_MEMORY_LIMIT="64MiB").stdout)["limits"]
    assert given[0] == {
        "name": "64.0 MiB", "state": "ok", "text": "rules: set by environment variable MEMWATCH_MEMORY_LIMIT",
    }  # fmt: skip
    assert all(line["state"] == "info" for line in given[1:])


def test_a_setting_that_is_wrong_is_shown_and_the_rest_is_examined_all_the_same() -> None:
    wrong = doctor(MEMWATCH_INTRVAL="1s")
    assert wrong.returncode == 2 and "did you mean MEMWATCH_INTERVAL?" in wrong.stdout and "resident" in wrong.stdout


def test_a_directory_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = [
        line
        for line in json.loads(doctor("--json", MEMWATCH_DIR=str(tmp_path / "file")).stdout)["record"]
        if line["name"] == "directory"
    ]
    assert line["state"] == "warning" and "is not a directory" in line["text"]


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_no_line_is_wider_than_the_terminal(columns: str) -> None:
    shown = doctor(COLUMNS=columns)
    assert shown.returncode == 0 and [line for line in shown.stdout.splitlines() if cells(line) > int(columns)] == []


CALM = {"MALLOC_ARENA_MAX": "2"}


@pytest.mark.parametrize(
    ("version", "warned"), [((3, 13, 9), False), ((3, 14, 0), True), ((3, 14, 4), True), ((3, 14, 5), False), ((3, 15, 0), False)]
)
def test_the_collector_of_some_versions_is_a_known_cause(version: tuple[int, int, int], warned: bool) -> None:
    found = list(known_causes(Python(version, free_threaded=False, glibc=True), CALM, 8))
    assert [line.name for line in found] == (["collector"] if warned else [])


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "malloc"),
        (CALM | {"PYTHONMALLOC": "malloc"}, "PYTHONMALLOC"),
        (CALM | {"PYTHONMALLOC": "debug"}, "PYTHONMALLOC"),
        (CALM | {"PYTHONTRACEMALLOC": "1"}, "PYTHONTRACEMALLOC"),
        (CALM | {"LD_PRELOAD": "/lib/libjemalloc.so.2"}, "LD_PRELOAD"),
    ],
)
def test_what_the_environment_does_to_memory_is_a_known_cause(environ: dict[str, str], name: str) -> None:
    assert [line.name for line in known_causes(Python((3, 12, 0), free_threaded=False, glibc=True), environ, 8)] == [name]


def test_arenas_are_no_matter_without_glibc_or_with_the_tunable() -> None:
    assert list(known_causes(Python((3, 12, 0), free_threaded=False, glibc=False), {}, 8)) == []
    tuned = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert list(known_causes(Python((3, 12, 0), free_threaded=False, glibc=True), tuned, 8)) == []
