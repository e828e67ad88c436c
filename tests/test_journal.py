from __future__ import annotations

import time
from pathlib import Path

import pytest

from memwatch.journal import FINDINGS_KEPT, RETRY_S, Journal
from memwatch.model import Census, Evidence, Process, Report, Sample, Statistics, Suspect, Verdict
from memwatch.record import Record, RecordError, RecordWriter, find_records

START = float(int(time.time()))  # records of dead processes go by their age
PROCESS = Process(4242, "api", started=START)
REPORT = Report(PROCESS, Verdict("rss", "leaking", reason="why"), Statistics(1, 1.0, {}))


def evidence_of(index: int) -> tuple[Evidence, ...]:
    return (Evidence("types", (Suspect(f"app.Type{index}", 1.0, 1, 0.9),)),)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A disk that may be full."""
    state = {"full": False}
    for name in ("write", "write_evidence", "write_census"):
        whole = getattr(RecordWriter, name)

        def write(self, *arguments, whole=whole, **named) -> None:
            if state["full"]:
                raise RecordError("database or disk is full")
            whole(self, *arguments, **named)

        monkeypatch.setattr(RecordWriter, name, write)
    return state


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal(tmp_path, lambda: PROCESS, lambda text: None, limit_bytes=2**25)
    yield journal
    journal.close(START, "over")


def tick(journal: Journal, index: int, now_s: float) -> None:
    found, census = evidence_of(index), Census(START + index, evidence_of(index))
    journal.write(Sample(START + index, index, {"rss": 1.0}), REPORT, (), now_s=now_s, evidence=found, census=census)


def read(directory: Path) -> tuple[list[float], list[float]]:
    (path,) = find_records(directory)
    with Record(path) as record:
        return [time_s - START for time_s, _ in record.all_evidence()], [item.time_s - START for item in record.censuses()]


def test_what_is_found_is_written_with_its_tick(journal: Journal, tmp_path: Path) -> None:
    tick(journal, 0, 0.0)
    journal.write(Sample(START + 1, 1, {"rss": 1.0}), REPORT, (), now_s=1.0)
    assert read(tmp_path) == ([0], [0])


def test_what_is_found_while_the_disk_is_full_is_written_later_at_its_own_time_and_once(
    journal: Journal, disk: dict[str, bool], tmp_path: Path
) -> None:
    tick(journal, 0, 0.0)
    disk["full"] = True
    tick(journal, 1, 10.0)
    tick(journal, 2, 20.0)
    disk["full"] = False
    tick(journal, 3, 20.0 + RETRY_S)
    tick(journal, 4, 30.0 + RETRY_S)
    assert read(tmp_path) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_of_what_is_found_while_the_disk_is_full_the_newest_is_kept(
    journal: Journal, disk: dict[str, bool], tmp_path: Path
) -> None:
    disk["full"] = True
    for index in range(100):
        tick(journal, index, 10.0 * index)
    disk["full"] = False
    tick(journal, 100, 1e6)
    newest = [*range(100 - FINDINGS_KEPT, 101)]
    assert read(tmp_path) == (newest, newest)


def test_what_was_found_is_written_before_the_goodbye(journal: Journal, disk: dict[str, bool], tmp_path: Path) -> None:
    tick(journal, 0, 0.0)
    disk["full"] = True
    tick(journal, 1, 10.0)
    disk["full"] = False
    journal.close(START + 2, "normal exit")
    assert read(tmp_path) == ([0, 1], [0, 1])


def test_without_a_record_nothing_that_was_found_is_kept() -> None:
    journal = Journal(False, lambda: PROCESS, lambda text: None, limit_bytes=2**25)
    tick(journal, 0, 0.0)
    assert (journal._evidence, journal._censuses) == ([], [])
