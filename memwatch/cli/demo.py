"""`memwatch demo`: a leaking service and its diagnosis, in about 20 s."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memwatch.cli import FOUND, OK, records
from memwatch.cli.report import coloured
from memwatch.cli.screen import console, is_coloured, put, say, width
from memwatch.model import Report
from memwatch.record import RecordError, find_records
from memwatch.report import headline, render
from memwatch.report.palette import STATE_TERMINAL
from memwatch.report.words import amount, title

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

SHOP = Path(__file__).with_name("shop.py")
INTERVAL_S = 0.2
VISITORS_PER_S = 40
"""With about 20 KiB each: some 45 MiB/min, a leak that nobody could miss in production but only slowly sees by eye."""
MEMORY_LIMIT = "256MiB"
GIVE_UP_S = 60.0
SETTLE_S = 6.0
"""The Python heap is read less often than resident memory, so that its trend is known a few seconds later."""
LINE_EVERY_S = 3.0
CHANNELS = ("rss", "heap")
BARS = "▁▂▃▄▅▆▇█"


@click.command("demo", short_help="A leaking service and its diagnosis, in about 20 s.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema 1).")
def command(as_json: bool) -> int:
    """Start a small web service that leaks, watch it, and say what is wrong with it; takes about 20 s.

    Everything happens on this machine, in a temporary directory, and nothing is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="memwatch-demo-") as name, _Shop(Path(name)) as shop:
        with _Screen() as screen:
            report = _watched(shop, screen)
        if as_json:
            put(render(report, "json"))
        else:
            _diagnosis(report)
    if report.verdict.state != "leaking":
        say(f"no leak was found within {GIVE_UP_S:.0f} s, which should not happen: is this machine very busy?")
        return FOUND
    if not as_json:
        say("that was the demo; now watch a service of yours: memwatch run -- python app.py")
    return OK


def _watched(shop: _Shop, screen: _Screen) -> Report:
    """Follow the record until it says `leaking`, and a little longer for the Python heap to show it too; or patience ends."""
    until_s = time.monotonic() + GIVE_UP_S
    found = False
    while True:
        report = shop.report()
        if report is not None:
            screen.show(report, shop.visitors)
            if report.verdict.state == "leaking" and not found:
                found, until_s = True, time.monotonic() + SETTLE_S
            heap = report.statistics.channels.get("heap")
            if time.monotonic() > until_s or (found and (heap is None or heap.state == "leaking")):
                return report
        shop.check()
        time.sleep(INTERVAL_S)


def _diagnosis(report: Report) -> None:
    text = render(report, width=width())
    # The record goes when the demo ends: its next command would find nothing.
    text = text.rpartition("\n\nnext: ")[0] + "\n"
    if is_coloured(sys.stdout):
        text = coloured(text, report)
    put(text)


class _Shop:
    """The service under `memwatch run`, with visitors."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.visitors = 0
        self._log = directory / "log.txt"
        self._closing = threading.Event()
        self._path: Path | None = None

    def __enter__(self) -> _Shop:
        words = [sys.executable, "-m", "memwatch", "run", "--interval", f"{INTERVAL_S}s", "--memory-limit", MEMORY_LIMIT]
        words += ["--name", "shop", "--socket", "off", "--directory", str(self.directory), "--", sys.executable, "-P", str(SHOP)]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in order.
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        try:
            assert self._process.stdout is not None
            port = self._process.stdout.readline().strip()
            if not port.isdigit():
                self._process.wait()
                self.check()
            self._load = threading.Thread(target=self._visit, args=(int(port),), daemon=True)
            self._load.start()
        except BaseException:
            self._end()
            raise
        return self

    def check(self) -> None:
        """Say so if the service has ended before its time."""
        if self._process.poll() is not None:
            last = self._log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
            raise click.ClickException(f"the service of the demo ended with status {self._process.returncode}: {last}")

    def report(self) -> Report | None:
        """What the record says by now; None before there is one."""
        if self._path is None:
            self._path = next(iter(find_records(self.directory)), None)
        if self._path is None:
            return None
        try:
            return records.read(self._path, history=True).report
        except RecordError:
            return None  # being created

    def _visit(self, port: int) -> None:
        due_s = time.monotonic()
        while not self._closing.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/")
                connection.getresponse().read()
                self.visitors += 1
            due_s = max(due_s + 1 / VISITORS_PER_S, time.monotonic() - 1)
            self._closing.wait(max(0.0, due_s - time.monotonic()))

    def _end(self) -> None:
        self._process.terminate()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()  # the service ends with its standard input, whatever becomes of `memwatch run`
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._load.join(5)
        self._end()


class _Screen:
    """The vitals while they are taken: drawn in place on a terminal, a line every few seconds where there is none."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._told_s = 0.0
        self._told = ""

    def __enter__(self) -> _Screen:
        say(f"a small shop opens a session for each of its {VISITORS_PER_S} visitors a second, and forgets to close them")
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(sys.stderr), refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def show(self, report: Report, visitors: int) -> None:
        if self._live is not None:
            self._live.update(_drawn(report, visitors, width()))
            return
        now_s, state = time.monotonic(), report.verdict.state
        if now_s - self._told_s >= LINE_EVERY_S or state != self._told:
            self._told_s, self._told = now_s, state
            say(headline(report))

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()


def _drawn(report: Report, visitors: int, columns: int) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    bars = max(8, min(48, columns - 36))
    for channel in CHANNELS:
        summary = report.statistics.channels.get(channel)
        curve = [sample.values[channel] for sample in report.history if channel in sample.values]
        now = amount(channel, summary.current) if summary is not None else ""
        grid.add_row(Text(title(channel)), Text(sparkline(curve, bars), style="magenta"), Text(now, style="bold"))
    colour = STATE_TERMINAL[report.verdict.state]
    needed = 64  # samples before a verdict
    taken = report.statistics.samples
    grid.add_row(
        Text("samples"),
        ProgressBar(total=needed, completed=min(taken, needed), width=bars, complete_style=colour, finished_style=colour),
        Text(str(taken)),
    )
    grid.add_row(Text("visitors"), Text(f"{visitors:,}"))
    return Group(Text(headline(report), style=colour), grid)


def sparkline(values: list[float], columns: int) -> str:
    """A curve as one line of bars, its lowest value the lowest bar."""
    if not values:
        return ""
    step = max(1.0, len(values) / columns)
    picked = list(_every(values, step))[-columns:]
    low, high = min(picked), max(picked)
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / (high - low or 1.0) * len(BARS)))] for value in picked)


def _every(values: list[float], step: float) -> Iterator[float]:
    position = float(len(values) - 1)
    kept = []
    while position >= 0:
        kept.append(values[int(position)])
        position -= step
    yield from reversed(kept)
