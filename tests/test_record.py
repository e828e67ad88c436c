from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from memwatch.model import (
    CHANNELS,
    Census,
    ChannelSummary,
    Event,
    Evidence,
    Process,
    Report,
    Sample,
    Statistics,
    Suspect,
    Verdict,
)
from memwatch.record import (
    NoSuchRecord,
    Record,
    RecordError,
    RecordWriter,
    append_end,
    default_directory,
    find_records,
    prune_records,
    read_report,
    record_name,
)

START = 1_800_000_000.0
PROCESS = Process(4242, "api worker", ("python", "app.py"), started=START)


def report_of(state: str = "stable", samples: int = 1) -> Report:
    return Report(PROCESS, Verdict("rss", state, reason="why"), Statistics(samples, 1.0, {"rss": ChannelSummary(1.0, 1.0, 1.0)}))


def sample_at(index: int, interval_s: float = 10.0, **values: float) -> Sample:
    return Sample(START + index * interval_s, index * interval_s, {"rss": 1000.0 + index, **values})


@pytest.fixture
def writer(tmp_path: Path):
    writer = RecordWriter(tmp_path, PROCESS)
    yield writer
    writer.close()


def test_what_is_written_is_read_back_while_the_writer_is_open(writer: RecordWriter) -> None:
    everything = {channel.name: 1.5 + index for index, channel in enumerate(CHANNELS)} | {"requests": 7.0}
    writer.write(sample_at(0), report_of())
    writer.write(sample_at(1, **everything), report_of("leaking", 2), [Event(START + 10, "verdict", {"state": "leaking"})])
    with Record(writer.path) as record:
        assert list(record.samples()) == [sample_at(0), sample_at(1, **everything)]
        assert record.process() == PROCESS
        report = record.report()
    assert report.verdict.state == "leaking"
    assert report.statistics.samples == 2
    assert report.events == (Event(START + 10, "verdict", {"state": "leaking"}),)
    assert [point.time_s for point in report.history] == [START, START + 10]


def test_a_channel_that_was_not_read_is_absent_and_not_zero(writer: RecordWriter) -> None:
    writer.write(sample_at(0, heap=0.0))
    writer.write(sample_at(1, native=float("nan")))
    with Record(writer.path) as record:
        first, second = record.samples()
    assert first.values == {"rss": 1000, "heap": 0}
    assert second.values == {"rss": 1001}


def test_the_file_its_log_and_a_new_directory_are_for_the_owner_alone(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "new" / "state", PROCESS)
    writer.write(sample_at(0))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "state").iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "new" / "state").stat().st_mode) == 0o700
    writer.close()


def test_the_name_tells_who_it_is_and_survives_any_process_name() -> None:
    assert record_name(PROCESS) == "api-worker-4242-20270115T080000.memwatch"
    assert record_name(replace(PROCESS, name="../../etc/\x1b[31m")) == "etc-31m-4242-20270115T080000.memwatch"
    assert record_name(replace(PROCESS, name="///")) == "python-4242-20270115T080000.memwatch"


def test_two_watchers_in_one_process_write_two_records(writer: RecordWriter, tmp_path: Path) -> None:
    second = RecordWriter(tmp_path, PROCESS)
    assert second.path != writer.path
    second.close()


def test_a_watcher_started_again_goes_on_in_the_same_record(tmp_path: Path) -> None:
    for index in range(2):
        writer = RecordWriter(tmp_path, PROCESS)
        writer.write(sample_at(index))
        writer.end(START + index, "stopped")
        writer.close()
    with Record(writer.path) as record:
        assert len(list(record.samples())) == 2


def test_a_day_at_ten_seconds_and_a_month_of_history_fit_and_old_samples_go(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, PROCESS)
    for index in range(0, 40 * 8640, 30):  # forty days, a sample every 5 minutes
        writer.write(sample_at(index))
    with Record(writer.path) as record:
        fine = [sample.time_s for sample in record.samples()]
        coarse = [time_s for time_s, *_ in record.coarse()]
    assert 0.95 * 86400 <= fine[-1] - fine[0] <= 1.05 * 86400
    assert 29 * 86400 <= coarse[-1] - coarse[0] <= 30.1 * 86400
    writer.close()


def test_the_record_stays_within_its_limit_whatever_is_written(tmp_path: Path) -> None:
    limit = 2 * 2**20
    writer = RecordWriter(tmp_path, PROCESS, limit_bytes=limit)
    values = {channel.name: 123456789.123 + index for index, channel in enumerate(CHANNELS)}
    largest = 0
    for index in range(10_000):  # every second: twice what the limit holds
        event = [Event(START, "note", {"note": "x" * 500})] if index % 5 == 0 else []
        writer.write(sample_at(index, 1.0, **values), events=event)
        if index % 500 == 0:
            largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    with Record(writer.path) as record:
        newest = max(sample.time_s for sample in record.samples())
    assert largest <= limit
    assert newest == START + 9_999
    writer.close()


def evidence_of(index: int, suspects: int = 1) -> tuple[Evidence, ...]:
    rows = tuple(Suspect(f"app.Type{row}", 100.0 * index, index, trail=("app/a.py:1 f",)) for row in range(suspects))
    return (Evidence("types", rows, 0.5),)


def test_evidence_and_a_census_of_a_tick_are_written_with_it(writer: RecordWriter) -> None:
    census = Census(START + 10, evidence_of(7))
    writer.write(sample_at(0), report_of())
    writer.write(sample_at(1), report_of("leaking"), evidence=evidence_of(1), census=census)
    writer.write_evidence(START + 20, "f", evidence_of(2))
    with Record(writer.path) as record:
        assert record.evidence() == evidence_of(2)
        assert record.all_evidence() == ((START + 10, evidence_of(1)), (START + 20, evidence_of(2)))
        assert record.censuses() == (census,)
        assert record.report().censuses == (census,)
        assert (record.report().evidence, record.report().evidence_taken) == (evidence_of(2), START + 20)


def test_a_tick_whose_census_cannot_be_written_is_not_written_at_all(writer: RecordWriter) -> None:
    connection = sqlite3.connect(writer.path)
    connection.execute("DROP TABLE censuses")
    connection.close()
    with pytest.raises(RecordError, match="censuses"):
        writer.write(sample_at(0), report_of(), evidence=evidence_of(1), census=Census(START, ()))
    with Record(writer.path) as record:
        assert (list(record.samples()), record.all_evidence()) == ([], ())


def test_the_newest_200_censuses_are_kept_oldest_first(writer: RecordWriter) -> None:
    for index in range(205):
        writer.write_census(Census(START + index, evidence_of(index)))
    with Record(writer.path) as record:
        times = [census.time_s - START for census in record.censuses()]
        assert [census.time_s - START for census in record.censuses(newest=2)] == [203, 204]
        assert [census.time_s - START for census in record.report().censuses] == [202, 203, 204]
    assert times == [*range(5, 205)]


def test_huge_censuses_stay_within_the_limit_and_say_what_was_left_out(tmp_path: Path) -> None:
    limit = 2 * 2**20
    writer = RecordWriter(tmp_path, PROCESS, limit_bytes=limit)
    for index in range(100):
        census = Census(START + index, evidence_of(index, suspects=2000))
        writer.write(sample_at(index), report_of("leaking"), evidence=census.evidence, census=census)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    with Record(writer.path) as record:
        newest = record.censuses()[-1]
    assert newest.time_s == START + 99
    assert newest.evidence[0].suspects == census.evidence[0].suspects[: len(newest.evidence[0].suspects)]
    assert f"only the first {len(newest.evidence[0].suspects)} of 2000 were recorded" in (newest.evidence[0].note or "")
    writer.close()


def test_evidence_that_was_found_once_outlives_the_samples_that_push_it_out(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, PROCESS, limit_bytes=2 * 2**20)
    writer.write(sample_at(0), report_of("leaking"), evidence=evidence_of(1), census=Census(START, evidence_of(1)))
    values = {channel.name: 123456789.123 + index for index, channel in enumerate(CHANNELS)}
    for index in range(1, 9000):
        writer.write(sample_at(index, 1.0, **values))
    with Record(writer.path) as record:
        assert len(list(record.samples())) < 8999
        assert record.evidence() == evidence_of(1)
        assert len(record.censuses()) == 1
    writer.close()


def test_a_record_made_before_there_were_censuses_is_read_and_gone_on_with(writer: RecordWriter) -> None:
    writer.write(sample_at(0), report_of())
    writer.close()
    connection = sqlite3.connect(writer.path)
    connection.execute("DROP TABLE censuses")
    connection.close()
    with Record(writer.path) as record:
        assert record.censuses() == ()
        assert record.report().censuses == ()
    again = RecordWriter(writer.path.parent, PROCESS)
    again.write_census(Census(START, evidence_of(1)))
    assert again.path == writer.path
    with Record(writer.path) as record:
        assert record.censuses() == (Census(START, evidence_of(1)),)
    again.close()


def test_the_coarse_history_keeps_minimum_mean_and_maximum(writer: RecordWriter) -> None:
    for index in range(60):  # two steps of five minutes
        writer.write(sample_at(index))
    with Record(writer.path) as record:
        time_s, low, mean, high = next(iter(record.coarse()))
    assert (time_s, low["rss"], mean["rss"], high["rss"]) == (START, 1000.0, 1014.5, 1029.0)


def test_a_history_begins_with_the_first_sample_and_not_where_its_coarse_step_does(writer: RecordWriter) -> None:
    for index in range(8, 60):  # from the middle of a step of five minutes on
        writer.write(sample_at(index))
    with Record(writer.path) as record:
        assert record.history()[0].time_s == START + 80


def test_a_thinned_history_keeps_its_ends_and_the_readings_taken_rarely(writer: RecordWriter) -> None:
    for index in range(1000):
        rare = {"uss": 5.0} if index % 100 == 50 else {}
        writer.write(sample_at(index, **rare))
    with Record(writer.path) as record:
        history = record.history(100)
    assert 90 <= len(history) <= 120
    assert history[-1].time_s == START + 9990
    assert sum("uss" in point.values for point in history) == 10


def test_a_thinned_history_keeps_the_one_peak_that_somebody_looks_for(writer: RecordWriter) -> None:
    for index in range(1000):
        writer.write(sample_at(index, **({"rss": 9e9} if index == 777 else {"rss": 1.0} if index == 333 else {})))
    with Record(writer.path) as record:
        history = record.history(100)
    values = [point.values["rss"] for point in history]
    assert (max(values), min(values)) == (9e9, 1.0)
    assert history[values.index(9e9)].time_s == START + 7770
    assert [point.time_s for point in history] == sorted(point.time_s for point in history)


def test_a_reader_sees_whole_ticks_while_the_writer_writes(writer: RecordWriter) -> None:
    writing = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not writing.is_set():
            with Record(writer.path) as record:
                seen = [int(sample.values["rss"]) - 1000 for sample in record.samples()]
            if seen != list(range(len(seen))):
                wrong.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(300):
        writer.write(sample_at(index), report_of())
    writing.set()
    reader.join()
    assert wrong == []


def test_an_end_written_from_outside_tells_how_unless_the_process_said_goodbye(writer: RecordWriter) -> None:
    writer.write(sample_at(0), report_of())
    append_end(writer.path, time_s=START + 1, fate="killed", how="signal 9 (SIGKILL)")
    process = read_report(writer.path).process
    assert (process.fate, process.end, process.ended) == ("killed", "signal 9 (SIGKILL)", START + 1)
    other = RecordWriter(writer.path.parent, replace(PROCESS, pid=1))
    other.end(START + 5, "normal exit")
    other.close()
    append_end(other.path, time_s=START + 9, fate="exited", how="exit status 3")
    process = read_report(other.path).process
    assert (process.fate, process.end, process.ended) == ("exited", "exit status 3", START + 5)


def test_an_end_cannot_be_written_into_a_damaged_record_and_that_is_said(writer: RecordWriter) -> None:
    writer.close()
    connection = sqlite3.connect(writer.path)
    with connection:
        connection.execute("UPDATE meta SET value = '{bad' WHERE key = 'process'")
    connection.close()
    with pytest.raises(RecordError, match=str(writer.path)):
        append_end(writer.path, time_s=START, fate="killed", how="signal 9")


def test_a_death_without_goodbye_shows_as_killed_at_its_last_sample(writer: RecordWriter) -> None:
    writer.write(sample_at(3), report_of())
    alive = read_report(writer.path, is_running=lambda process: True).process
    dead = read_report(writer.path, is_running=lambda process: False).process
    assert (alive.fate, alive.ended) == ("running", None)
    assert (dead.fate, dead.ended) == ("killed", START + 30)


def test_a_missing_record_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NoSuchRecord, match=r"there is no record .*nothing\.memwatch"):
        Record(tmp_path / "nothing.memwatch")


def test_a_corrupt_file_a_foreign_one_and_an_empty_one_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    corrupt, foreign, empty = (tmp_path / f"{name}.memwatch" for name in ("corrupt", "foreign", "empty"))
    corrupt.write_bytes(b"not a database, but long enough to look at" * 100)
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    empty.touch()
    before = {path: path.read_bytes() for path in (corrupt, foreign, empty)}
    for path in before:
        with pytest.raises(RecordError, match=rf"{path.name} is not a memwatch record"):
            Record(path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_writer_takes_another_name_where_a_foreign_or_corrupt_file_has_its_own(tmp_path: Path) -> None:
    taken = tmp_path / record_name(PROCESS)
    taken.write_bytes(b"somebody else's" * 1000)
    writer = RecordWriter(tmp_path, PROCESS)
    writer.write(sample_at(0))
    writer.close()
    assert taken.read_bytes() == b"somebody else's" * 1000
    assert read_report(writer.path).process == PROCESS


def test_a_record_of_a_newer_schema_is_refused_with_the_advice_to_upgrade(writer: RecordWriter) -> None:
    writer.close()
    connection = sqlite3.connect(writer.path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(RecordError, match=r"newer memwatch \(schema 7; this one reads up to 1\): upgrade"):
        Record(writer.path)


def test_a_damaged_page_is_an_error_that_names_the_file_and_not_a_traceback_of_sqlite(writer: RecordWriter) -> None:
    for index in range(2000):
        writer.write(sample_at(index))
    writer.close()
    content = bytearray(writer.path.read_bytes())
    content[3 * 4096 :] = os.urandom(len(content) - 3 * 4096)
    writer.path.write_bytes(content)
    with pytest.raises(RecordError, match=str(writer.path)), Record(writer.path) as record:
        list(record.samples())


def test_a_path_through_a_symbolic_link_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"")
    (tmp_path / record_name(PROCESS)).symlink_to(target)
    with pytest.raises(RecordError):
        RecordWriter(tmp_path, PROCESS)
    assert target.read_bytes() == b""


def test_a_file_in_place_of_the_directory_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"cannot write a record in .*file.*MEMWATCH_DIR"):
        RecordWriter(tmp_path / "file", PROCESS)


def test_a_full_disk_is_a_record_error_nothing_written_is_lost_and_writing_goes_on_when_there_is_room(small_disk: Path) -> None:
    writer = RecordWriter(small_disk, PROCESS)
    filler = small_disk / "filler"
    written = 0
    for _ in range(10):
        writer.write(sample_at(written), report_of())
        written += 1
    filler.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(RecordError, match=str(writer.path)):
        for _ in range(2000):
            writer.write(sample_at(written), report_of())
            written += 1
    with Record(writer.path) as record:
        assert len(list(record.samples())) == written
    filler.unlink()
    writer.write(sample_at(written), report_of())
    with Record(writer.path) as record:
        assert len(list(record.samples())) == written + 1
    writer.close()


def test_a_record_can_be_read_from_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A killed process leaves its log; reading that needs an index beside it, which may not be made here."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import os, signal
from pathlib import Path
from test_record import *
writer = RecordWriter(Path(sys.argv[1]), PROCESS)
for index in range(5): writer.write(sample_at(index), report_of())
os.kill(os.getpid(), signal.SIGKILL)
"""
    place = tmp_path / "place"
    subprocess.run([sys.executable, "-c", program, place], check=False)
    (path,) = find_records(place)
    Path(f"{path}-shm").unlink()
    if os.geteuid() == 0:
        mounted = subprocess.run(["mount", "--bind", "-o", "ro", place, place], capture_output=True, check=False)
        remounted = subprocess.run(["mount", "-o", "remount,ro,bind", place], capture_output=True, check=False)
        if mounted.returncode or remounted.returncode:
            pytest.skip("elsewhere: no read-only mount can be made here")
    else:
        place.chmod(0o500)
    try:
        with Record(path) as record:
            assert len(list(record.samples())) == 5
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", place], check=True)
        else:
            place.chmod(0o700)


def test_records_are_listed_newest_first_and_other_files_are_not(tmp_path: Path) -> None:
    for age, name in enumerate(["new.memwatch", "old.memwatch"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (START - age, START - age))
    (tmp_path / "note.txt").touch()
    assert [path.name for path in find_records(tmp_path)] == ["new.memwatch", "old.memwatch"]
    assert find_records(tmp_path / "missing") == []


def test_what_is_no_regular_file_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.memwatch")
    (tmp_path / "folder.memwatch").mkdir()
    assert find_records(tmp_path) == []


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(RecordError, match="no home directory; give a writable directory with MEMWATCH_DIR"):
        default_directory({})


def test_old_records_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for name, age_days in (("dead-old", 31), ("alive-old", 31), ("dead-new", 1)):
        (tmp_path / f"{name}.memwatch").touch()
        os.utime(tmp_path / f"{name}.memwatch", (START - age_days * 86400,) * 2)
    deleted = prune_records(tmp_path, lambda path: path.name.startswith("dead"), now_s=START)
    assert [path.name for path in deleted] == ["dead-old.memwatch"]
    assert {path.name for path in tmp_path.iterdir()} == {"alive-old.memwatch", "dead-new.memwatch"}


def test_the_default_directory_is_the_users_state_directory() -> None:
    assert default_directory({"XDG_STATE_HOME": "/state"}) == Path("/state/memwatch")
    assert default_directory({"XDG_STATE_HOME": "relative"}) == Path("~/.local/state/memwatch").expanduser()


KILLED_WRITER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_record import *
writer = RecordWriter(Path(sys.argv[1]), replace(PROCESS, pid=os.getpid()))
index = 0
while True:
    writer.write(sample_at(index), report_of(samples=index + 1))
    sys.stdout.write(f"{{index}}\\n"); sys.stdout.flush()  # this sample is committed
    index += 1
"""


def test_kill_9_at_random_moments_loses_at_most_the_sample_being_taken(tmp_path: Path) -> None:
    """Sixty processes killed at moments spread over their first samples, the creation of the file included."""
    for round_number in range(60):
        place = tmp_path / str(round_number)
        process = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, place], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        committed = -1
        for _ in range(round_number * 7 % 200):
            committed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
        complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        if complete:
            committed = int(complete[-1])
        records = find_records(place)
        if committed >= 0:
            assert len(records) == 1
        for path in records:
            with Record(path) as record:
                found = [int(sample.values["rss"]) - 1000 for sample in record.samples()]
                report = record.report(is_running=lambda process: False)
            assert found == list(range(len(found)))
            assert committed + 1 <= len(found) <= committed + 2
            assert report.process.fate == "killed"


def test_an_outline_begins_with_the_first_sample_however_short_the_record(writer: RecordWriter) -> None:
    for index in range(15, 55):  # begins in the midst of a step of the coarse history, and is longer than one
        writer.write(sample_at(index))
    with Record(writer.path) as record:
        outline = record.outline("rss", 20)
    assert outline[0] == (START + 150, 1015.0) and outline[-1][0] == START + 540
