"""Whatever is in a record's file: it is read, or it is a `RecordError`; and what has been read can be rendered."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Census, Event, Report, Sample
from memwatch.record import Record, RecordError, RecordWriter, default_directory, find_records, read_report

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, -1e300, 10**30, 10**400, 2**63, float("nan"), float("inf"), "", "text", "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+23:59", "0001-01-01", "2026-11-22T08:00:00Z", "\ud800\udcfe", "\x00\x1b[2J", "x" * 3000, [], {}, [1],
    ["a", None], {"a": 1}, {"state": "leaking"}, {"": None}, [[[[]]]],
)  # fmt: skip
ODD_JSON = ("", "{", "nul", "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 600 + "1" + "}" * 600, "1" * 5000, b"\xff\xfe", 3, 1.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A record with something of everything in it."""
    report = cases.leak()
    writer = RecordWriter(tmp_path_factory.mktemp("whole"), replace(report.process, ended=None, fate="running", end=None))
    for index in range(400):
        writer.write(Sample(cases.NOW_S - 4000 + 10 * index, 10.0 * index, {"rss": 1e9 + index, "heap": 5e8, "requests": 3}))
    writer.write(None, report, report.events)
    details = {"type": "Session", "alive_s": 3.0, "held_by": ["a", "b"], "reason": "why", "note": "more"}
    writer.write(None, report, [Event(cases.NOW_S, what, details) for what in ("finding", "block", "note", "end", "teleport")])
    writer.write_evidence(cases.NOW_S, report.fingerprint, report.evidence)
    writer.write_census(Census(cases.NOW_S, report.evidence))
    writer.close()
    return writer.path.read_bytes()


def outcome(path: Path) -> str:
    """Read a record and render what came of it, as every face of ours does."""
    try:
        report = read_report(path, is_running=lambda process: False)
    except RecordError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return "refused"
    for format in reports.FORMATS:
        with contextlib.suppress(reports.NoStacks):
            reports.render(report, format)
    reports.headline(report)
    assert Report.from_dict(json.loads(reports.render(report, "json"))).verdict.state == report.verdict.state
    return "rendered"


@pytest.mark.parametrize("seed", range(300))
def test_damaged_bytes_are_refused_or_rendered(seed: int, whole: bytes, tmp_path: Path) -> None:
    rng, content = random.Random(seed), bytearray(whole)
    match seed % 4:
        case 0:  # bits, many of them in the pages that say where the others are
            for _ in range(rng.choice((1, 10, 100, 1000))):
                content[rng.randrange(rng.choice((4096, 40960, len(content))))] ^= 1 << rng.randrange(8)
        case 1:
            del content[rng.randrange(len(content)) :]
        case 2:  # pages that went elsewhere
            for _ in range(rng.choice((1, 3))):
                place, source = (rng.randrange(len(content) // 4096) * 4096 for _ in range(2))
                content[place : place + 4096] = rng.choice((bytes(4096), rng.randbytes(4096), content[source : source + 4096]))
        case 3:  # text, which SQLite does not check
            for _ in range(rng.choice((5, 50))):
                place = content.find(rng.choice((b'"', b":", b"20", b"null", b"leak")), rng.randrange(len(content)))
                content[place] = rng.choice(b'\xff\x00"{}[]9-eN')
    path = tmp_path / "damaged.memwatch"
    path.write_bytes(content)
    outcome(path)


def places(value: Any) -> list[list[Any]]:
    """The way to everything in a JSON value."""
    found: list[list[Any]] = [[]]
    if isinstance(value, dict):
        found += [[key, *rest] for key, item in value.items() for rest in places(item)]
    elif isinstance(value, list):
        found += [[index, *rest] for index, item in enumerate(value) for rest in places(item)]
    return found


def changed(value: Any, place: list[Any], odd: Any) -> Any:
    if not place:
        return odd
    whole = dict(value) if isinstance(value, dict) else list(value)
    whole[place[0]] = changed(whole[place[0]], place[1:], odd)
    return whole


@pytest.mark.parametrize("seed", range(300))
def test_odd_values_are_refused_or_rendered(seed: int, whole: bytes, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "odd.memwatch"
    path.write_bytes(whole)
    connection = sqlite3.connect(path)
    table, column = rng.choice(
        (
            ("meta", "value"),
            ("meta", "value"),
            ("events", "details"),
            ("evidence", "body"),
            ("censuses", "body"),
            ("coarse", "mean"),
            ("samples", "extra"),
        )
    )
    rows = connection.execute(
        f"SELECT rowid, {column} FROM {table}" if table != "meta" else "SELECT key, value FROM meta"
    ).fetchall()
    key, text = rng.choice(rows)
    where = "key" if table == "meta" else "rowid"
    if rng.random() < 0.2:
        new: Any = rng.choice(ODD_JSON)
    else:
        value = json.loads(text)
        for _ in range(rng.choice((1, 1, 3))):
            value = changed(value, rng.choice(places(value)), rng.choice(ODD))
        new = json.dumps(value)
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where} = ?", (new, key))
    for table, column in (
        ("samples", "time_s"),
        ("samples", "rss"),
        ("events", "time_s"),
        ("censuses", "time_s"),
        ("events", "what"),
    ):
        if rng.random() < 0.1:
            odd = rng.choice((-1, 1e300, -1e300, float("inf"), "", "text", "\x00\x1b[2J", b"\xff", "x" * 3000))
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM {table})", (odd,))
    connection.commit()
    connection.close()
    outcome(path)


def test_a_record_without_damage_is_rendered(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "whole.memwatch").write_bytes(whole)
    assert outcome(tmp_path / "whole.memwatch") == "rendered"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.memwatch")
    (tmp_path / "folder.memwatch").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(RecordError, match="it is not a file"):
            Record(path)
    assert find_records(tmp_path) == []


def test_without_a_home_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(RecordError, match="no home directory; give a writable directory with MEMWATCH_DIR"):
        default_directory({})
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(RecordError, match="no home directory"):
        default_directory({})


def test_a_damage_found_while_samples_are_iterated_names_the_file(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.memwatch"
    path.write_bytes(whole)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE samples SET extra = '{'")
    connection.commit()
    connection.close()
    with Record(path) as record, pytest.raises(RecordError, match=r"odd\.memwatch: it is damaged \(JSONDecodeError"):
        list(record.samples())
