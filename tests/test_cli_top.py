"""`memwatch top`: drawn by the real application over real records, driven by its keys."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_cases as cases
from rich.console import Console
from textual.geometry import Offset
from textual.pilot import Pilot
from textual.widgets import DataTable

from memwatch.cli.top import rows
from memwatch.cli.top.app import FleetScreen, Help, Top
from memwatch.cli.top.draw import BLOCKS, Line, picture, spark
from memwatch.cli.top.near import clock
from memwatch.cli.top.process import ProcessScreen
from memwatch.cli.top.reading import Reader
from memwatch.fleet import Found
from memwatch.model import Report, Sample
from memwatch.record import RecordWriter, read_report
from memwatch.report.layout import cells

PATIENCE_S = 30.0
MIB = cases.MIB
ESCAPE = "\x1b"


def record(directory: Path, report: Report, *, ended: str | None = None, curve: tuple[float, ...] = (1e8, 2e8, 3e8)) -> Path:
    """Write *report* as its process would have, on another host, until a moment ago; it counts as running."""
    writer = RecordWriter(directory, replace(report.process, ended=None, fate="running", end=None, host="elsewhere"))
    now_s = time.time()
    for index, rss in enumerate(curve):
        taken_s = now_s - len(curve) + index
        writer.write(Sample(taken_s, float(index), {"rss": rss, "heap": rss / 2}), report)
    return cases.finish(writer, report, now_s, ended)


def named(report: Report, name: str, pid: int, *, rss: float | None = None) -> Report:
    channels = dict(report.statistics.channels)
    if rss is not None:
        channels["rss"] = cases.channel(rss)
    statistics = replace(report.statistics, channels=channels)
    return replace(report, process=replace(report.process, name=name, pid=pid), statistics=statistics)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def seen(app: Top) -> list[str]:
    """The lines on the screen, as plain text."""
    console = Console(
        width=app.size.width, height=app.size.height, file=io.StringIO(), record=True, force_terminal=True, legacy_windows=False
    )
    console.print(app.screen._compositor.render_update(full=True))
    return console.export_text(styles=False).split("\n")[: app.size.height]


Play = Callable[[Pilot[None], Top], Awaitable[None]]


def play(directory: Path, act: Play, *, size: tuple[int, int] = (80, 24), opened: Path | None = None, every_s: float = 0.2) -> None:
    """Run the application in a terminal of *size*, and *act* in it once the records were looked at."""

    async def go() -> None:
        app = Top(directory, opened=opened, every_s=every_s)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: "reading …" not in "".join(seen(app)), "the records are read")
            await act(pilot, app)

    asyncio.run(go())


async def until(pilot: Pilot[None], condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"it never came to be that {what}:\n" + "\n".join(seen(pilot.app))  # type: ignore[arg-type]
        await pilot.pause(0.02)


async def shows(pilot: Pilot[None], *texts: str) -> None:
    """Wait until all of *texts* are on the screen."""
    app: Any = pilot.app
    await until(pilot, lambda: all(text in "\n".join(seen(app)) for text in texts), f"the screen shows {texts}")


def names(app: Top) -> list[str]:
    """The processes from above, by name."""
    found = (re.search(r"(\S+)\[\d+\]", line) for line in seen(app))
    return [match[1] for match in found if match]


# -- the table -----------------------------------------------------------------------------------------------------------------


def test_at_80_by_24_each_row_tells_state_process_rate_memory_and_time_left_whole(directory: Path) -> None:
    record(directory, named(cases.lookalike(), "importer", 7))
    record(directory, cases.leak())
    record(directory, cases.tasks())

    async def act(pilot: Pilot[None], app: Top) -> None:
        lines = seen(app)
        assert all(cells(line) <= 80 for line in lines)
        header, *table = [" ".join(line.split()) for line in lines[1:5]]
        assert header == "STATE▼ PROCESS RATE RSS TIME LEFT CURVE"
        assert "LEAK api-worker[4242] +12.4 MiB/min 1.21 of 2.00 GiB 64 min" in "\n".join(table)
        assert any(line.startswith("NOT A LEAK importer[7] ") for line in table)
        assert any(line.startswith("LEAK sse[900] +25/min ") for line in table)
        await shows(pilot, "▁▅█")  # its curve, a little later

    play(directory, act)


def test_a_wide_terminal_tells_the_kind_of_growth_and_for_how_long_too(directory: Path) -> None:
    record(directory, cases.leak())

    async def act(pilot: Pilot[None], app: Top) -> None:
        assert "KIND" in seen(app)[1] and "WATCHED" in seen(app)[1]
        assert "Python heap" in seen(app)[2] and "60 min" in seen(app)[2]
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "KIND" not in seen(app)[1] and "64 min" in seen(app)[2], "the columns fit 80 cells")

    play(directory, act, size=(140, 40), every_s=600)


@pytest.mark.parametrize("width", range(60, 200, 7))
def test_no_row_is_wider_than_its_terminal_and_only_names_are_cut(width: int) -> None:
    reports = [cases.leak(), cases.tasks(), cases.killed(), cases.empty(), named(cases.lookalike(), "名前" * 40, 2**22)]
    table = [rows.row(Found(Path(str(index)), report), (1.0, 2.0, 5.0)) for index, report in enumerate(reports)]
    columns, gap = rows.columns(table, width), 1 if width < 100 else 2
    assert sum(column.width for column in columns) <= max(width, 74)
    for row in table:
        for column in columns:
            text = rows.cell(row, column, gap)
            assert cells(text) == column.width
            if column.key not in ("process", "curve"):
                assert text.strip() == row.texts[column.key]
    assert rows.cell(table[-1], next(column for column in columns if column.key == "process"), gap).rstrip().endswith("…[4194304]")


@pytest.mark.parametrize("size", [(40, 10), (20, 5), (300, 90)])
def test_a_terminal_of_any_size_can_be_looked_at(size: tuple[int, int], directory: Path) -> None:
    path = record(directory, cases.leak())

    async def act(pilot: Pilot[None], app: Top) -> None:
        assert all(cells(line) <= size[0] for line in seen(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FleetScreen), "the table is there")
        await until(pilot, lambda: "LEAK" in "".join(seen(app)), "its row is there")
        await pilot.press("question_mark", "escape")

    play(directory, act, opened=path, size=size)


def test_a_process_that_has_ended_says_so_in_words(directory: Path) -> None:
    record(directory, cases.leak(), ended="normal exit")

    async def act(pilot: Pilot[None], app: Top) -> None:
        assert "0 running; 1 ended" in seen(app)[0]
        assert "exited" in seen(app)[2] and "64 min" not in seen(app)[2]

    play(directory, act)


def test_s_sorts_by_the_next_column_r_reverses_and_a_click_on_a_header_sorts_by_it(directory: Path) -> None:
    record(directory, named(cases.lookalike(), "a-calm", 1, rss=2 * 1024**3))
    record(directory, named(cases.leak(), "c-leak", 2, rss=1e9))
    record(directory, named(cases.native(), "b-native", 3, rss=1e8))

    async def act(pilot: Pilot[None], app: Top) -> None:
        worst = names(app)
        assert worst[-1] == "a-calm" and len(worst) == 3
        await pilot.press("s")
        await until(pilot, lambda: names(app) == ["a-calm", "b-native", "c-leak"], "they are sorted by name")
        assert "sorted by name" in "\n".join(seen(app)) and "PROCESS▼" in seen(app)[1]
        await pilot.press("r")
        await until(pilot, lambda: names(app) == ["c-leak", "b-native", "a-calm"], "that is reversed")
        await pilot.press("s", "s")
        await until(pilot, lambda: names(app) == ["a-calm", "c-leak", "b-native"], "the largest is first")
        await pilot.click(DataTable, offset=Offset(12, 0))
        await until(pilot, lambda: names(app) == ["a-calm", "b-native", "c-leak"], "they are sorted by name again")

    play(directory, act)


def test_the_chosen_process_stays_chosen_when_the_order_changes(directory: Path) -> None:
    for index, name in enumerate(("b", "c", "a")):
        record(directory, named(cases.leak(), name, index + 1, rss=1e9 - index))

    async def act(pilot: Pilot[None], app: Top) -> None:
        table = app.screen.query_one(DataTable)
        await pilot.press("s")
        await until(pilot, lambda: names(app) == ["a", "b", "c"], "they are sorted by name")
        await pilot.press("home", "down", "down")
        await pilot.press("r", "s", "s")
        await until(pilot, lambda: names(app) == ["b", "c", "a"], "the largest is first")
        assert table.cursor_row == 1
        await pilot.press("enter")
        await shows(pilot, "LEAK  c[2]")

    play(directory, act)


def test_the_filter_leaves_those_whose_name_or_pid_matches_and_escape_shows_all(directory: Path) -> None:
    record(directory, named(cases.leak(), "worker", 11))
    record(directory, named(cases.leak(), "web", 22))

    async def act(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("slash", *"WORK")
        await until(pilot, lambda: names(app) == ["worker"], "one is left")
        await pilot.press("backspace", "backspace", "backspace", "backspace", "2", "enter")
        await until(pilot, lambda: names(app) == ["web"], "the other is left")
        await pilot.press("slash", "x")
        await shows(pilot, "no process matches '2x'; escape shows all")
        await pilot.press("escape")
        await until(pilot, lambda: sorted(names(app)) == ["web", "worker"], "both are back")

    play(directory, act)


def test_an_empty_directory_says_how_to_begin_and_the_first_record_takes_its_place(directory: Path) -> None:
    async def act(pilot: Pilot[None], app: Top) -> None:
        said = " ".join(" ".join(seen(app)).split())
        assert "start one with 'memwatch run -- CMD'" in said and "no records in" in said
        record(directory, cases.leak())
        await shows(pilot, "api-worker[4242]", "1 running, 1 leaking")
        assert "no records in" not in "".join(seen(app))
        await pilot.press("enter")  # the keys are the table's again
        await shows(pilot, "1 Evidence")

    play(directory, act)


def test_a_record_that_cannot_be_read_is_named_and_hides_no_other(directory: Path) -> None:
    record(directory, cases.leak())
    (directory / "broken-1-x.memwatch").write_bytes(b"this is no database at all, and never was" * 100)

    async def act(pilot: Pilot[None], app: Top) -> None:
        assert names(app) == ["api-worker"]

        def said() -> str:
            return "".join(line.strip() for line in seen(app)[-4:])

        # The line is written first, and laid out anew, over two lines, then.
        await until(pilot, lambda: "broken-1-x.memwatch" in said(), "the record is named")
        assert "is not a memwatch record, or is corrupt" in said()

    play(directory, act)


def test_a_record_that_vanishes_while_it_is_open_is_told_and_what_was_read_stays(directory: Path) -> None:
    path = record(directory, cases.leak())

    async def act(pilot: Pilot[None], app: Top) -> None:
        await shows(pilot, "LEAK  api-worker[4242]")
        path.unlink()
        await shows(pilot, "there is no record", "LEAK  api-worker[4242]")
        await pilot.press("escape")
        await shows(pilot, "no records in")

    play(directory, act, opened=path)


def test_keys_act_while_a_record_takes_its_time(directory: Path) -> None:
    path = record(directory, cases.leak())
    holding = sqlite3.connect(path, isolation_level=None)
    holding.execute("PRAGMA journal_mode=DELETE")
    Path(f"{path}-wal").touch()  # as if somebody wrote: whoever reads waits for the lock, two seconds
    holding.execute("BEGIN EXCLUSIVE")

    async def act() -> None:
        app = Top(directory, every_s=0.2)
        async with app.run_test(size=(80, 24)) as pilot:
            screen: Any = await until(pilot, lambda: isinstance(app.screen, FleetScreen) and app.screen, "it has begun")
            await until(pilot, lambda: screen._looking, "it looks at the records")
            await pilot.press("question_mark")
            assert isinstance(app.screen, Help) and screen._looking and screen._look is None
            holding.execute("ROLLBACK")
            await pilot.press("escape")
            await shows(pilot, "memwatch top")

    try:
        asyncio.run(act())
    finally:
        holding.close()


def test_the_curve_of_a_record_is_not_read_again_at_every_look(directory: Path) -> None:
    path = record(directory, cases.leak(), curve=(1.0, 2.0))
    reader = Reader(directory)
    assert reader.look().curves[path] == (1.0, 2.0)
    record(directory, cases.leak(), curve=(1.0, 2.0, 3.0))
    again = reader.look()
    assert again.curves[path] == (1.0, 2.0) and len(again.found) == 1


# -- one process ---------------------------------------------------------------------------------------------------------------


def test_enter_opens_a_process_with_its_curve_and_its_pages(directory: Path) -> None:
    leak = cases.leak()
    cache = {"name": "thumbnails", "bytes": 2 * 1024**2, "entries": 17, "hits": 3, "misses": 1, "hit_ratio": 0.75}
    record(directory, replace(leak, caches=(cache,)), curve=tuple(1e8 + 1e6 * index for index in range(50)))

    async def act(pilot: Pilot[None], app: Top) -> None:
        await pilot.press("enter")
        await shows(pilot, "LEAK  api-worker[4242]  Python heap  +12.4 MiB/min", "resident memory", "Python heap 71.0 MiB", "UTC")
        assert all(cells(line) <= 80 for line in seen(app))
        await shows(pilot, "91 %   +157 MiB  1,204,332 × app.sessions.Session", "held by")
        await pilot.press("2")
        await shows(pilot, "thumbnails  2.00 MiB, 17 entries, 75 % hits of 4 reads")
        await pilot.press("3")
        await shows(pilot, "relief log, the newest first:")
        await pilot.press("right")
        await shows(pilot, "mapped" if "mapped" in leak.statistics.channels else "resident memory     1.21 GiB")
        await pilot.press("5")
        await shows(pilot, "labels    version=1.4.2")
        await pilot.press("c")
        await shows(pilot, "no curve of descriptors, threads, tasks and children yet")
        await pilot.press("escape")
        await shows(pilot, "sorted worst first")

    play(directory, act, size=(80, 40))


def test_the_events_are_told_in_the_zone_of_the_reader_with_utc_beside(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert clock(cases.NOW_S) == "13:30:00 (08:00:00 UTC)"
        path = record(directory, cases.leak())
        event = read_report(path).events[-1]

        async def act(pilot: Pilot[None], app: Top) -> None:
            await shows(pilot, "LEAK  api-worker[4242]")
            await pilot.press("3")
            await shows(pilot, clock(event.time_s))

        play(directory, act, opened=path, size=(100, 50))
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_a_process_that_has_ended_cannot_be_asked_and_the_view_says_so(directory: Path) -> None:
    path = record(directory, cases.leak(), ended="normal exit")

    async def act(pilot: Pilot[None], app: Top) -> None:
        await shows(pilot, "LEAK  api-worker[4242]")
        for key in ("e", "g"):
            await pilot.press(key)
            await shows(pilot, "process 4242 does not run any more: nobody can be asked")

    play(directory, act, opened=path)


def test_a_process_of_another_host_is_not_mistaken_for_one_of_this(directory: Path) -> None:
    path = record(directory, replace(cases.leak(), process=replace(cases.leak().process, pid=os.getpid())))

    async def act(pilot: Pilot[None], app: Top) -> None:
        await shows(pilot, "LEAK  api-worker")
        await pilot.press("e")
        await shows(pilot, "runs on elsewhere: ask it there")

    play(directory, act, opened=path)


# -- a real process ------------------------------------------------------------------------------------------------------------

GROWING = """
import sys, time, memwatch
memwatch.start(interval="200ms", directory=sys.argv[1], name="grower", socket=sys.argv[2])
kept = []
print("started", flush=True)
while True:
    kept.append(bytearray(100_000))
    time.sleep(0.02)
"""


@contextlib.contextmanager
def grower(directory: Path, runtime: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    runtime.mkdir(mode=0o700)
    env = os.environ | {"XDG_RUNTIME_DIR": str(runtime)}
    process = subprocess.Popen([sys.executable, "-c", GROWING, str(directory), mode], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_running_process_moves_takes_evidence_at_a_key_and_collects_when_that_is_confirmed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))

    async def act(pilot: Pilot[None], app: Top) -> None:
        def told() -> str:
            return next((line for line in seen(app) if "grower[" in line), "")

        await until(pilot, lambda: "MiB" in told(), "its memory is told")
        first = told()
        await until(pilot, lambda: told() != first, "the row moves")
        await pilot.press("enter")
        await shows(pilot, "grower[", "resident memory", "┤")
        before = "\n".join(seen(app))
        await until(pilot, lambda: "\n".join(seen(app)) != before, "the view moves")
        assert not read_report(path()).censuses and not read_report(path()).evidence
        await pilot.press("e")
        await shows(pilot, "it has looked at itself: page 1 tells what it found")
        assert read_report(path()).censuses or read_report(path()).evidence
        await pilot.press("g")
        await shows(pilot, "collect its garbage", "y  yes")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, ProcessScreen), "the question is gone")
        assert "is collecting" not in "\n".join(seen(app))
        await pilot.press("g")
        await shows(pilot, "y  yes")
        await pilot.press("y")
        await shows(pilot, "collected ")

    def path() -> Path:
        return next(directory.glob("*.memwatch"))

    with grower(directory, tmp_path / "run", "control"):
        play(directory, act)


def test_a_process_that_may_not_be_controlled_gives_its_reason(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))

    async def act(pilot: Pilot[None], app: Top) -> None:
        await shows(pilot, "grower[")
        await pilot.press("enter")
        await shows(pilot, "1 Evidence")
        await until(pilot, lambda: getattr(app.screen, "_found", None) is not None, "the record is read")
        await pilot.press("g")
        await shows(pilot, "y  yes")
        await pilot.press("y")
        await shows(pilot, "not done: ", "control")

    with grower(directory, tmp_path / "run", "on") as process:
        play(directory, act)
        assert process.poll() is None


# -- what a record may say -----------------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    "[red]bold[/red]",
    "[@click=app.quit]x[/]",
    f"{ESCAPE}]0;owned\x07{ESCAPE}[2Jname",
    "名前\u202eabc",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_process_calls_itself_is_shown_as_text(name: str, directory: Path) -> None:
    hostile = cases.hostile()
    labels = {"long": "x" * 100_000, "[bold]": f"{ESCAPE}[31m"}
    report = replace(hostile, process=replace(hostile.process, name=name, pid=5, labels=labels))
    path = record(directory, replace(report, caches=({"name": "[red]c[/red]\x1b"},)))
    text = {HOSTILE[3]: "\\x1b]0;owned\\x07", HOSTILE[4]: "名前\\u202eabc"}.get(name, name)

    async def act(pilot: Pilot[None], app: Top) -> None:
        whole = "\n".join(seen(app))
        assert text in whole and "[5]" in whole
        assert all(char.isprintable() or char == "\n" for char in whole)
        await pilot.press("enter")
        await shows(pilot, f"GROWING  {text}")
        for page in "12345":
            await pilot.press(page)
            await pilot.pause()
            whole = "\n".join(seen(app))
            assert all(char.isprintable() or char == "\n" for char in whole)
            if page == "2":
                assert "[red]c[/red]\\x1b" in whole
            if page == "5":
                assert "more characters" in whole and app.screen.query_one("#text").size.height < 60
        assert app.is_running

    assert path.exists()
    play(directory, act, size=(120, 40))


def test_a_name_of_a_hundred_thousand_characters_hides_nothing_else(directory: Path) -> None:
    record(directory, named(cases.leak(), "x" * 100_000, 5))
    record(directory, named(cases.leak(), "calm", 6))

    async def act(pilot: Pilot[None], app: Top) -> None:
        whole = "\n".join(seen(app))
        assert "…[5]" in whole and "calm[6]" in whole and whole.count("64 min") == 2
        await pilot.press("home" if "[5]" in seen(app)[2] else "down", "enter")
        await shows(pilot, "LEAK  xxxx", "1 Evidence")

    play(directory, act)


# -- the terminal --------------------------------------------------------------------------------------------------------------


class Terminal:
    """`memwatch top` in a terminal of its own."""

    def __init__(self, *words: object, size: tuple[int, int] = (80, 24), **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memwatch", "top", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs,
            env=env | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(ours, False)
        self._ours = ours
        self.output = b""

    def shows(self, text: bytes) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.output:
            with contextlib.suppress(BlockingIOError, OSError):
                self.output += os.read(self._ours, 65536)
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.01)

    def ends(self, keys: bytes) -> int:
        os.write(self._ours, keys)
        deadline_s = time.monotonic() + PATIENCE_S
        while (status := self.process.poll()) is None:
            with contextlib.suppress(BlockingIOError, OSError):
                self.output += os.read(self._ours, 65536)
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.01)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def colours(output: bytes) -> list[bytes]:
    """The colours that a terminal was told to use, other than its own."""
    found = []
    for sequence in re.findall(rb"\x1b\[([\d;]*)m", output):
        codes = sequence.split(b";")
        found += [code for code in codes if re.fullmatch(rb"3[0-8]|4[0-8]|9\d|10[0-7]", code)]
    return found


@pytest.mark.parametrize("no_color", [True, False])
def test_without_colour_states_are_words_and_what_is_chosen_is_reversed(no_color: bool, directory: Path) -> None:
    record(directory, cases.leak())
    terminal = Terminal("--directory", directory, **({"NO_COLOR": "1"} if no_color else {}))
    try:
        terminal.shows(b"64 min")
        assert terminal.ends(b"q") == 0
    finally:
        terminal.close()
    assert bool(colours(terminal.output)) is not no_color
    assert b"LEAK" in terminal.output and re.search(rb"\x1b\[(?:\d+;)*7(?:;\d+)*mLEAK", terminal.output)


def test_no_sequence_of_a_record_reaches_the_terminal_and_ctrl_c_ends(directory: Path) -> None:
    record(directory, named(cases.leak(), HOSTILE[3], 5))
    terminal = Terminal(directory)
    try:
        terminal.shows(b"64 min")
        assert terminal.ends(b"\x03") == 0
    finally:
        terminal.close()
    assert b"\\x1b]0;" in terminal.output and b"\x1b]0;owned" not in terminal.output


def test_quitting_does_not_wait_for_a_process_that_gives_no_answer(directory: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    with grower(directory, runtime, "on") as process:
        deadline_s = time.monotonic() + PATIENCE_S
        while not any(item.report.statistics.samples for item in Reader(directory).look().found):
            assert time.monotonic() < deadline_s, "it writes no record"
            time.sleep(0.02)
        path = next(directory.glob("*.memwatch"))
        process.send_signal(signal.SIGSTOP)
        terminal = Terminal(path, XDG_RUNTIME_DIR=str(runtime))
        try:
            terminal.shows(b"1 Evidence")
            terminal.shows(b"grower[")
            os.write(terminal._ours, b"e")
            terminal.shows(b"is taking evidence")
            asked_s = time.monotonic()
            assert terminal.ends(b"q") == 0
            assert time.monotonic() - asked_s < 15  # it would be waited for 50 s
        finally:
            terminal.close()


def run(*words: object, program: str = "-mmemwatch") -> subprocess.CompletedProcess[str]:
    head = [sys.executable, program] if program.startswith("-m") else [sys.executable, "-c", program]
    return subprocess.run(
        [*head, *map(str, words)], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


def test_where_there_is_no_terminal_ps_is_named(directory: Path) -> None:
    refused = run("top", "--directory", directory)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "memwatch: memwatch top draws on a terminal, and this is none: memwatch ps lists the same processes\n"


def test_where_textual_is_missing_its_extra_is_named(directory: Path) -> None:
    program = "import sys; sys.modules['textual'] = None; from memwatch.cli import main; main(sys.argv[1:])"
    refused = run("top", "--directory", directory, program=program)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "memwatch: memwatch top needs textual: pip install 'memwatch[tui]'\n"


@pytest.mark.parametrize("every", ["2", "10ms", "soon"])
def test_a_pace_that_means_nothing_is_refused(every: str) -> None:
    refused = run("top", "--every", every)
    assert refused.returncode == 2 and "--every" in refused.stderr


# -- drawing -------------------------------------------------------------------------------------------------------------------


def test_a_line_of_blocks_rises_with_its_values_and_keeps_a_peak() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS
    assert spark([0.0] * 30 + [9.0] + [0.0] * 29, 6).count("█") == 1
    assert (spark([], 8), spark([5.0], 8), spark([5.0, 5.0], 8)) == ("", "▁", "▁▁")
    assert spark([1e9, 1.001e9], 2) == "▁▁"  # a tenth of a percent is no mountain


def test_a_picture_goes_from_the_lower_left_to_the_upper_right_and_dashes_leave_gaps() -> None:
    rising = Line([(0.0, 0.0), (1.0, 1.0)])
    drawn = picture([rising], 10, 3, times=(0.0, 1.0), levels=(0.0, 1.0))
    assert [len(row) for row in drawn] == [10, 10, 10]
    assert drawn[2][0].line == 0 and drawn[0][9].line == 0 and drawn[0][0].char == " " and drawn[2][9].char == " "
    gap = Line([(0.0, 1.0), (0.4, None), (1.0, 1.0)])
    assert [cell.char != " " for cell in picture([gap], 10, 1, times=(0.0, 1.0), levels=(0.0, 2.0))[0]].count(True) == 2
    dashed = picture([Line([(0.0, 0.0), (1.0, 0.0)], (2, 6))], 8, 1, times=(0.0, 1.0), levels=(0.0, 1.0))[0]
    assert [cell.char for cell in dashed].count(" ") == 6
