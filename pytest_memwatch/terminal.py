"""What people read in the terminal: a failure of at most ten lines, and the summary of the session.

Law: text is made from plain data; the same leak is told once.
"""

from __future__ import annotations

from typing import Any

import pytest
from _pytest._code.code import ExceptionChainRepr, ReprEntryNative, ReprFileLocation, ReprTraceback

from memwatch import units
from memwatch.gate.judging import MemoryGrowth
from pytest_memwatch import files, words
from pytest_memwatch.baseline import Comparison
from pytest_memwatch.options import Settings
from pytest_memwatch.results import LEAK, SUSPECT, WARMUP, Results, Row, size_of

MOST_LINES = 10


def failure(item: pytest.Item, error: MemoryGrowth) -> ExceptionChainRepr:
    """A failure as pytest shows it, sends it between processes and puts it into JUnit."""
    lines = str(error).splitlines()[:MOST_LINES]
    path, line, _ = item.location
    text = "\n".join([f"MemoryGrowth: {lines[0]}", *(f"  {more}" for more in lines[1:])])
    crash = ReprFileLocation(str(path), (line or 0) + 1, f"MemoryGrowth: {lines[0]}")
    return ExceptionChainRepr([(ReprTraceback([ReprEntryNative([text + "\n"])], None, "native"), crash, None)])


def crash_text(told: dict[str, Any]) -> str:
    """Of a worker that was killed."""
    resident = f"; RSS when it began: {units.format_size(told['rss'])}" if told.get("rss") is not None else ""
    where = f"worker {told['worker']}" if told.get("worker") else "a worker"
    return f"{where} was killed or crashed while it ran {told['nodeid']}{resident}"


def summary(reporter: Any, results: Results, settings: Settings, stale: list[dict[str, Any]], comparison: Comparison) -> None:
    """The section at the end."""
    write = reporter.write_line
    leaks, warm, suspects = results.of(LEAK), results.of(WARMUP), results.of(SUSPECT)
    quiet = reporter.config.get_verbosity() < 0
    if files.annotates(settings):
        for line in files.workflow_commands(results):
            write(line)
    if not (leaks or warm or suspects or stale or results.crashes or comparison.worse or comparison.is_empty) and quiet:
        return
    reporter.section("memwatch", sep="=")
    for told in [*stale, *results.crashes]:
        write("killed: " + crash_text(told))
    groups = list(results.groups().values())
    for rows in groups[: settings.top]:
        _group(write, rows, whole=settings.mode == "report")
    if len(groups) > settings.top:
        write(f"and {len(groups) - settings.top:,} more")
    for row in suspects[: settings.top]:
        write(f"suspect: {row.nodeid}: {row.note}")
    if warm:
        write(f"warm-ups, not leaks (what the first run alone kept): {len(warm)}")
        for row in warm[: settings.top]:
            write(f"  {row.nodeid}: {words.warm_up(row)}")
    for line in comparison.lines():
        write(line)
    _worst(write, results, settings.top)
    fixtures = sorted(results.fixtures.values(), key=lambda row: -row.growth)[: settings.top]
    if any(row.growth >= 2**16 for row in fixtures):
        write("fixtures by growth (set-up of those wider than a function; not charged to a test):")
        for fixture in fixtures:
            if fixture.growth >= 2**16:
                times = f", {fixture.setups} set-ups" if fixture.setups > 1 else ""
                write(f"  {units.format_size(fixture.growth):>9}  {fixture.name}  [{fixture.scope}{times}]")
    peak = "" if results.peak_rss is None else f", peak RSS {units.format_size(results.peak_rss)}"
    total = "" if results.growth is None else f", suite growth {units.format_size(results.growth, sign=True)}"
    write(f"{results.checked} tests checked: {words.counts(results)}{total}{peak}")


def _group(write: Any, rows: list[Row], *, whole: bool) -> None:
    """One line for all tests of one leak; the *whole* of it where no failure and no warning has told it above."""
    first = rows[0]
    others = ", ".join(row.nodeid for row in rows[1:4])
    alike = f" (alike in {len(rows) - 1} more: {others}{' …' if len(rows) > 4 else ''})" if len(rows) > 1 else ""
    write(f"{first.label}: {first.nodeid}: {words.headline(first)}{alike}")
    for line in (first.message or "").splitlines()[1:] if whole else ():
        if line.startswith(("allocated at", "opened at", "made at", "held by", "left open")):
            write(f"      {line}")


def _worst(write: Any, results: Results, top: int) -> None:
    rows = [row for row in results.rows.values() if (row.growth or 0) >= 2**16 and row.verdict not in (WARMUP, LEAK)]
    if rows:
        write("worst tests within their limits (first run, garbage not collected):")
        for row in sorted(rows, key=size_of, reverse=True)[:top]:
            peak = f", peak {units.format_size(row.peak)}" if row.peak is not None else ""
            write(f"  {units.format_size(row.growth):>9}  {row.nodeid}{peak}")
