"""`memwatch report` and `memwatch ps`: reading records, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases
from click.testing import CliRunner

from memwatch.cli import commands, main
from memwatch.model import Report, Sample, Verdict
from memwatch.record import RecordWriter, read_report
from memwatch.report import render
from memwatch.report.layout import cells
from memwatch.vitals import identity

MEMWATCH = [sys.executable, "-m", "memwatch"]


def memwatch(*words: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    # The environment as Python knows it: readline, which pytest imports, sets COLUMNS behind its back.
    known = dict(os.environ) if env is None else env
    return subprocess.run(
        [*MEMWATCH, *map(str, words)], env=known, capture_output=True, text=True, timeout=60, check=False, **options
    )


def record(directory: Path, report: Report, *, ended: str | None = "normal exit") -> Path:
    """Write *report* as its process would have."""
    process = replace(report.process, ended=None, fate="running", end=None)
    writer = RecordWriter(directory, process)
    values = {name: summary.current for name, summary in report.statistics.channels.items() if summary.current is not None}
    for index in range(report.statistics.samples and 3):
        writer.write(Sample(cases.NOW_S - 30 + 10 * index, 10.0 * index, values), report)
    return cases.finish(writer, report, cases.NOW_S, ended)


@pytest.fixture(autouse=True)
def _a_pipe_of_no_particular_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


@pytest.fixture
def leak(directory: Path) -> Path:
    return record(directory, cases.leak())


# -- report --------------------------------------------------------------------------------------------------------------------


def test_a_page_and_pictures_are_written_to_files_or_to_standard_output(leak: Path, tmp_path: Path) -> None:
    place = tmp_path / "leak.html"
    done = memwatch("report", leak, "--html", place)
    assert (done.returncode, done.stdout) == (0, "")
    assert place.read_text("utf-8").startswith("<!doctype html>") and "_STORE" in place.read_text("utf-8")
    assert memwatch("report", leak, "--format", "html").stdout == place.read_text("utf-8")
    assert memwatch("report", leak, "--html", "-", cwd=tmp_path).stdout == place.read_text("utf-8")
    drawn = memwatch("report", leak, "--format", "svg", "-o", tmp_path / "leak.svg")
    assert drawn.returncode == 0 and (tmp_path / "leak.svg").read_text("utf-8").startswith("<svg ")
    picture = subprocess.run([*MEMWATCH, "report", leak, "--format", "png"], capture_output=True, timeout=60, check=True).stdout
    assert picture.startswith(b"\x89PNG") and int.from_bytes(picture[16:20]) == 1920
    assert memwatch("report", leak, "--output", tmp_path / "leak.txt").returncode == 0
    assert (tmp_path / "leak.txt").read_text("utf-8").startswith("LEAK  api-worker[4242]")


def test_a_file_that_cannot_be_written_is_named_and_the_one_before_it_is_kept(leak: Path, small_disk: Path) -> None:
    place = small_disk / "leak.html"
    place.write_text("the one before")
    (small_disk / "ballast").write_bytes(bytes(2**20 - 8192))
    done = memwatch("report", leak, "--html", place)
    assert done.returncode == 1
    assert done.stderr.strip() == f"memwatch: cannot write {place}: No space left on device"
    assert place.read_text() == "the one before"
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "leak.html"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--html", "a.html", "--json"), "--json and --html contradict each other"),
        (("--html", "a.html", "--format", "svg"), "--html and --format svg contradict each other"),
        (("--html", "a.html", "--output", "b.html"), "--html and --output both name a file; give one"),
        (("--html", ""), "--html: the name of the file is empty"),
        (("-o", ""), "--output: the name of the file is empty"),
        (("--format", "pdf"), "'pdf' is not one of text, json, html, markdown, svg, speedscope, collapsed, png"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error_that_says_which(
    leak: Path, words: tuple[str, ...], told: str
) -> None:
    done = memwatch("report", leak, *words)
    assert done.returncode == 2 and told in done.stderr


def test_a_curve_of_one_reading_is_an_error_that_says_so(directory: Path) -> None:
    done = memwatch("report", record(directory, replace(cases.empty(), process=cases.process())), "--format", "svg")
    assert done.returncode == 2 and "fewer than two readings were kept" in done.stderr


def test_json_is_exactly_the_report_of_the_record(leak: Path) -> None:
    shown = memwatch("report", leak, "--json")
    assert shown.returncode == 0 and shown.stderr == ""
    assert json.loads(shown.stdout) == read_report(leak).to_dict()
    assert json.loads(shown.stdout)["schema"] == 1


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_a_report_is_what_its_renderer_says(format: str, leak: Path) -> None:
    assert memwatch("report", leak, "--format", format).stdout == render(read_report(leak), format)


@pytest.mark.parametrize("format", ["speedscope", "collapsed"])
def test_the_stacks_of_a_record_are_drawn(format: str, leak: Path) -> None:
    assert memwatch("report", leak, "--format", format).stdout == render(read_report(leak), format)


@pytest.mark.parametrize("format", ["speedscope", "collapsed"])
def test_a_report_without_stacks_says_why_there_is_nothing_to_draw(format: str, directory: Path) -> None:
    refused = memwatch("report", record(directory, cases.tasks()), "--format", format)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"--format {format}: there are no allocation stacks of sse[900] to draw" in refused.stderr
    assert "unless evidence is off" in refused.stderr and "--format text" in refused.stderr


def test_the_newest_record_is_the_default(directory: Path, leak: Path) -> None:
    newest = record(directory, cases.tasks())
    os.utime(leak, (1, 1))
    assert memwatch("report", "--directory", directory).stdout == memwatch("report", newest).stdout


@pytest.mark.parametrize("target", ["4242", "api-worker"])
def test_a_process_is_found_by_pid_and_by_name(target: str, directory: Path, leak: Path) -> None:
    record(directory, cases.tasks())
    assert memwatch("report", target, "--directory", directory).stdout == memwatch("report", leak).stdout


def test_of_a_directory_the_worst_verdict_is_shown_and_the_others_are_counted(directory: Path, leak: Path) -> None:
    for index, state in enumerate(("stable", "growing", "warming-up")):
        report = cases.leak()
        verdict = Verdict("rss", state, reason="because")  # type: ignore[arg-type]
        record(directory, replace(report, process=replace(report.process, pid=index + 1), verdict=verdict))
    shown = memwatch("report", directory, "--json")
    assert json.loads(shown.stdout)["process"]["pid"] == 4242
    assert shown.stderr == f"memwatch: the worst of 4 records in {directory}; 3 others: memwatch ps\n"


def test_among_equal_verdicts_the_record_with_the_most_samples_is_shown(directory: Path) -> None:
    for pid, samples in ((1, 50), (2, 70), (3, 60)):
        report = cases.leak()
        record(
            directory,
            replace(report, process=replace(report.process, pid=pid), statistics=replace(report.statistics, samples=samples)),
        )
    assert json.loads(memwatch("report", directory, "--json").stdout)["process"]["pid"] == 2


@pytest.mark.parametrize(
    ("state", "fail_on", "status"),
    [
        ("leaking", "leaking", 1), ("leaking", "growing", 1), ("growing", "growing", 1), ("growing", "leaking", 0),
        ("stable", "growing", 0), ("recovering", "growing", 0), ("leaking", None, 0),
    ],
)  # fmt: skip
def test_the_exit_status_tells_a_finding_only_when_asked(state: str, fail_on: str | None, status: int, directory: Path) -> None:
    path = record(directory, replace(cases.leak(), verdict=Verdict("heap", state, reason="because")))  # type: ignore[arg-type]
    assert memwatch("report", path, *(["--fail-on", fail_on] if fail_on else [])).returncode == status


@pytest.mark.parametrize("target", ["4711", "nobody", "/no/such/file.memwatch"])
def test_no_such_record_is_exit_status_3_in_one_line(target: str, directory: Path, leak: Path) -> None:
    missing = memwatch("report", target, "--directory", directory)
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (3, "", 1)
    assert "there are records of api-worker" in missing.stderr


def test_an_empty_directory_says_how_to_make_a_record(tmp_path: Path) -> None:
    missing = memwatch("report", "--directory", tmp_path)
    assert missing.returncode == 3 and "memwatch run -- CMD" in missing.stderr


def test_a_file_that_is_no_record_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.memwatch"
    path.write_text("dear diary " * 1000)
    refused = memwatch("report", path)
    assert (refused.returncode, refused.stdout) == (3, "") and "not a memwatch record" in refused.stderr
    assert path.read_text() == "dear diary " * 1000 and list(tmp_path.iterdir()) == [path]


def test_a_process_without_goodbye_is_killed_and_a_live_one_runs(directory: Path) -> None:
    me = identity()
    report = cases.leak()
    mine = replace(report.process, pid=os.getpid(), start_ticks=me.start_ticks, boot=me.boot, host=socket.gethostname())
    alive = record(directory, replace(report, process=mine), ended=None)
    dead = record(directory, replace(report, process=replace(mine, pid=2**22 - 7, started=1.0)), ended=None)
    assert json.loads(memwatch("report", alive, "--json").stdout)["process"]["fate"] == "running"
    assert json.loads(memwatch("report", dead, "--json").stdout)["process"]["fate"] == "killed"


def test_a_process_on_another_host_runs_as_long_as_its_record_is_written(directory: Path) -> None:
    report = cases.leak()
    now_s = time.time()
    for name, age_s, fate in (("fresh", 5.0, "running"), ("stale", 500.0, "killed")):
        writer = RecordWriter(directory, replace(report.process, name=name, host="elsewhere"))
        writer.write(Sample(now_s - age_s, 0.0, {"rss": 1.0}), report)
        writer.close()
        assert json.loads(memwatch("report", writer.path, "--json").stdout)["process"]["fate"] == fate


# -- how it is shown -----------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_no_colour_unless_forced_and_no_color_wins(leak: Path) -> None:
    plain = memwatch("report", leak).stdout
    forced = memwatch("report", leak, env=os.environ | {"FORCE_COLOR": "1"}).stdout
    assert "\x1b[" not in plain and "\x1b[31m\x1b[1mLEAK" in forced
    assert re.sub(r"\x1b\[\d*m", "", forced) == plain
    assert memwatch("report", leak, env=os.environ | {"FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout == plain


@pytest.mark.parametrize("columns", ["60", "120"])
def test_columns_are_honoured(columns: str, leak: Path) -> None:
    shown = memwatch("report", leak, env=os.environ | {"COLUMNS": columns}).stdout
    assert shown == render(read_report(leak), width=int(columns))


def test_a_reader_that_has_seen_enough_is_not_told_about_it(directory: Path) -> None:
    noise = replace(cases.leak(), evidence=cases.leak().evidence * 400)
    path = record(directory, noise)
    words = " ".join([*MEMWATCH, "report", str(path), "--json"])
    done = subprocess.run(["bash", "-c", f"{words} | head -c 10"], capture_output=True, text=True, check=True)
    assert (len(done.stdout), done.stderr) == (10, "")


def test_a_terminal_that_cannot_show_a_character_gets_its_number(leak: Path) -> None:
    shown = memwatch("report", leak, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert shown.returncode == 0 and "\\u2192" in shown.stdout


# -- ps ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(directory: Path) -> Iterator[Path]:
    record(directory, cases.lookalike())
    record(directory, cases.leak(), ended=None)
    record(directory, cases.tasks())
    record(directory, cases.hostile())
    return directory


def test_ps_has_one_line_a_record_the_worst_first(several: Path) -> None:
    shown = memwatch("ps", "--directory", several)
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0 and len(lines) == 5
    assert [line.split("  ")[0] for line in lines[1:]] == ["LEAK", "LEAK", "GROWING", "NOT A LEAK"]
    assert re.search(
        r"LEAK +api-worker\[4242\] +Python heap +\+12.4 MiB/min +1.21 of 2.00 GiB +for 60 min, gone \(no good", shown.stdout
    )
    assert [char for char in shown.stdout if not char.isprintable() and char != "\n"] == []


def test_ps_json_has_the_verdict_and_the_file_of_each(several: Path) -> None:
    rows = json.loads(memwatch("ps", "--json", "--directory", several).stdout)
    assert [row["verdict"]["state"] for row in rows] == ["leaking", "leaking", "growing", "stable"]
    assert all(Path(row["record"]).is_file() for row in rows)
    assert (rows[0]["rss"], rows[0]["memory_limit"]) == (1.21 * cases.GIB, 2 * cases.GIB)


def test_ps_is_a_sentence_a_record_where_columns_do_not_fit(several: Path) -> None:
    shown = memwatch("ps", "--directory", several, env=os.environ | {"COLUMNS": "60"}).stdout
    assert max(map(cells, shown.splitlines())) <= 60
    assert shown.startswith("LEAK  api-worker[4242]  Python heap  +12.4 MiB/min") and "; gone: no goodbye: killed by a" in " ".join(
        shown.split()
    )


def test_ps_without_records_says_so_and_is_fine(tmp_path: Path) -> None:
    empty = memwatch("ps", "--directory", tmp_path)
    assert (empty.returncode, empty.stdout) == (0, "") and "no records" in empty.stderr
    assert memwatch("ps", "--json", "--directory", tmp_path).stdout == "[]\n"


def test_ps_names_a_record_that_cannot_be_read_and_shows_the_others(several: Path) -> None:
    (several / "broken.memwatch").write_text("not a database, but long enough to be taken for one " * 99)
    shown = memwatch("ps", "--directory", several)
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 5 and "broken.memwatch" in shown.stderr


# -- what is damaged, odd or in the way ----------------------------------------------------------------------------------------


def damage(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


DAMAGES = (
    "UPDATE meta SET value = '{' WHERE key = 'latest'",
    "UPDATE meta SET value = '[3]' WHERE key = 'process'",
    "UPDATE meta SET value = json_set(value, '$.verdict.rate', 'fast') WHERE key = 'latest'",
    "UPDATE meta SET value = json_set(value, '$.name', 3) WHERE key = 'process'",
    "UPDATE events SET details = x'ff'",
    "UPDATE events SET time_s = 'now'",
)


@pytest.mark.parametrize("sql", DAMAGES)
def test_a_damaged_record_is_one_line_and_the_others_are_shown(sql: str, several: Path, tmp_path: Path) -> None:
    report = cases.tasks()
    path = record(several, replace(report, process=replace(report.process, pid=77777)))
    damage(path, sql)
    listed = memwatch("ps", "--directory", several)
    assert (listed.returncode, len(listed.stdout.splitlines()), listed.stderr.count("\n")) == (0, 5, 1)
    assert f"cannot read the record {path}" in listed.stderr
    of_all = memwatch("report", several, "--json")
    assert of_all.returncode == 0 and str(path) in of_all.stderr and json.loads(of_all.stdout)["verdict"]["state"] == "leaking"
    assert memwatch("report", "--directory", several).returncode == 0  # the newest is the damaged one: the next is shown
    itself = memwatch("report", path)
    assert (itself.returncode, itself.stdout, itself.stderr.count("\n")) == (3, "", 1)


def test_pipes_and_folders_called_records_are_passed_over(several: Path) -> None:
    os.mkfifo(several / "pipe.memwatch")
    (several / "folder.memwatch").mkdir()
    listed = memwatch("ps", "--directory", several)
    assert (listed.returncode, len(listed.stdout.splitlines()), listed.stderr) == (0, 5, "")


def test_a_name_that_is_no_text_is_shown_written_out(directory: Path) -> None:
    report = cases.leak()
    name = "n\udcfe"
    path = record(directory, replace(report, process=replace(report.process, name=name, command=("python", name))))
    assert "n\\udcfe[4242]" in memwatch("ps", "--directory", directory).stdout
    assert json.loads(memwatch("ps", "--json", "--directory", directory).stdout)[0]["process"]["name"] == name
    assert json.loads(memwatch("report", path, "--json").stdout)["process"]["name"] == name
    assert "n\\udcfe[4242]" in memwatch("report", path).stdout


def test_without_a_home_the_sentence_says_what_to_set(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_STATE_HOME")}
    start = "import pwd; pwd.getpwuid = {}.__getitem__; from memwatch.cli import main; main()"
    for command in ("ps", "top", "report"):
        refused = subprocess.run(
            [sys.executable, "-c", start, command], env=environment, capture_output=True, text=True, check=False
        )
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "no home directory" in refused.stderr and "MEMWATCH_DIR" in refused.stderr
    told = subprocess.run([sys.executable, "-c", start, "doctor"], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "no home directory" in told.stdout


@pytest.mark.parametrize("words", [["ps"], ["ps", "--json"], ["report"]])
@pytest.mark.parametrize(("sink", "status", "says"), [("| true", 0, ""), ("> /dev/full", 1, "No space"), (">&-", 1, "Bad file")])
def test_where_nobody_takes_the_data(words: list[str], sink: str, status: int, says: str, several: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("elsewhere: there is no /dev/full")
    line = f"set -o pipefail; {shlex.join([*MEMWATCH, *words, '--directory', str(several)])} {sink}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (status, bool(says)), done.stderr
    assert says in done.stderr


def test_the_help_on_a_full_disk_is_one_line() -> None:
    done = subprocess.run(["bash", "-c", f"{shlex.join(MEMWATCH)} --help > /dev/full"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def of_this_process(directory: Path, name: str, *, began_s: float, last_s: float) -> Path:
    """A record of the process of this test that was written from *began_s* to *last_s*, without goodbye."""
    me, report = identity(), cases.leak()
    process = replace(
        report.process, pid=me.pid, name=name, host=socket.gethostname(), started=me.started_s, start_ticks=me.start_ticks,
        boot=me.boot,
    )  # fmt: skip
    channels = {"rss": cases.channel(1e9, taken=last_s)}
    statistics = replace(report.statistics, uptime_s=last_s - began_s, channels=channels)
    return record(directory, replace(report, process=process, statistics=statistics, events=()), ended=None)


def test_a_program_that_was_replaced_by_another_one_is_not_running(directory: Path) -> None:
    now_s = time.time()
    old = of_this_process(directory, "first", began_s=now_s - 500, last_s=now_s - 300)
    new = of_this_process(directory, "second", began_s=now_s - 299, last_s=now_s)
    fates = {
        Path(row["record"]): row["process"]["fate"] for row in json.loads(memwatch("ps", "--json", "--directory", directory).stdout)
    }
    assert fates == {old: "exited", new: "running"}
    process = json.loads(memwatch("report", old, "--json").stdout)["process"]
    assert (process["fate"], process["end"]) == ("exited", "replaced by another program (exec)")
    assert (
        json.loads(memwatch("report", str(os.getpid()), "--json", "--directory", directory).stdout)["process"]["name"] == "second"
    )


def test_two_watches_of_one_process_go_on_side_by_side(directory: Path) -> None:
    now_s = time.time()
    of_this_process(directory, "inside", began_s=now_s - 500, last_s=now_s - 8)
    of_this_process(directory, "outside", began_s=now_s - 3, last_s=now_s)
    of_this_process(directory, "another", began_s=now_s - 100, last_s=now_s - 5)
    rows = json.loads(memwatch("ps", "--json", "--directory", directory).stdout)
    assert [row["process"]["fate"] for row in rows] == ["running"] * 3


# -- usage ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"], ["report", "--format", "pdf"], ["report", "--json", "--format", "text"], ["report", "--fail-on", "x"],
        ["run"], ["watch"], ["watch", "zero"], ["watch", "1", "--duration", "10"], ["ps", "--no-such-option"],
    ],
)  # fmt: skip
def test_usage_errors_are_exit_status_2(words: list[str]) -> None:
    assert CliRunner().invoke(commands, words).exit_code == 2


def test_a_format_that_is_not_there_says_which_are() -> None:
    assert "'pdf' is not one of text, json, html, markdown" in CliRunner().invoke(commands, ["report", "--format", "pdf"]).output


@pytest.mark.parametrize("command", ["ps", "top", "report", "doctor"])
def test_a_malformed_setting_is_exit_status_2_and_named(command: str) -> None:
    refused = memwatch(command, env=os.environ | {"MEMWATCH_INTERVAL": "10"})
    assert refused.returncode == 2 and "MEMWATCH_INTERVAL: '10'" in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_a_setting_in_pyproject_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.memwatch]\ninterval = 10\n")
    refused = memwatch("ps", cwd=tmp_path)
    assert refused.returncode == 2 and "[tool.memwatch]" in refused.stderr


def test_help_lists_the_commands_that_exist_and_no_others() -> None:
    listed = re.findall(r"^  (\w+)  ", CliRunner().invoke(commands, ["--help"]).output.partition("Commands:")[2], re.MULTILINE)
    assert listed == ["run", "ps", "top", "report", "diff", "watch", "gc", "serve", "soak", "doctor", "demo"]


def test_main_leaves_with_the_status_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path)])
    assert left.value.code == 3
