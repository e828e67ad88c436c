"""Comparing a session with an earlier one: what a test may be worse by is a rule, the rest is told.

Law: only tests that both sessions ran are compared, and a new test is never worse; but a comparison of nothing is no pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memwatch import units
from pytest_memwatch import files
from pytest_memwatch.options import Settings
from pytest_memwatch.results import Results, Row
from pytest_memwatch.rules import Rule

Rows = dict[str, dict[str, int]]
"""Test to its values."""
NOISE = 64 * 1024
"""Without a rule, growth that is larger by less than this is not told (guess)."""
DEFAULT = (Rule("growth", 0.2, 2**20),)


@dataclass
class Worse:
    """One test that is worse than it was."""

    nodeid: str
    metric: str
    before: int
    now: int


@dataclass
class Comparison:
    """What came of a comparison."""

    path: str | None = None
    total: int = 0
    """Tests of the baseline."""
    compared: int = 0
    worse: list[Worse] = field(default_factory=list)
    better: int = 0
    written: bool = False
    failed: str | None = None
    """Why it could not be written."""
    asked: bool = False
    """The baseline was given on the command line, for this session."""

    @property
    def is_empty(self) -> bool:
        """Whether there was something to compare with, and nothing was compared."""
        return self.total > 0 and self.compared == 0

    @property
    def fails(self) -> bool:
        """Whether the session is to fail.

        Where the baseline stands in the ini file, somebody who runs one new test has compared nothing, and that is fine.
        """
        return bool(self.worse) or (self.is_empty and self.asked and not self.written)

    def lines(self) -> list[str]:
        """For the terminal."""
        if self.path is None:
            return []
        if self.failed is not None and not self.compared:
            return []
        anew = ["baseline written anew"] if self.written else []
        if self.is_empty:
            told = f"baseline {self.path}: 0 of {self.total} tests of the baseline ran, nothing was compared"
            return [f"{told}. Names count from the rootdir, which --memwatch-baseline=FILE (with =, no space) leaves alone", *anew]
        if self.written and not self.compared:
            return [f"baseline written: {self.path}"]
        head = (
            f"baseline {self.path}: {self.compared} of {self.total} tests compared, {len(self.worse)} worse, {self.better} better"
        )
        worse = [
            f"  worse: {one.nodeid}: {one.metric} {units.format_size(one.before)} → {units.format_size(one.now)}"
            for one in self.worse
        ]
        return [head, *worse, *anew]


def compare(results: Results, settings: Settings, before: Rows | None, *, asked: bool) -> Comparison:
    """Compare with what the baseline was when the session began, and write it where it is missing or wanted anew.

    Args:
        asked: the baseline was given on the command line.
    """
    if settings.baseline is None:
        return Comparison()
    found = Comparison(settings.baseline, asked=asked)
    found.total = len(before or ())
    for nodeid, row in results.rows.items():
        if before is not None and nodeid in before:
            found.compared += 1
            _compare_row(row, before[nodeid], settings.fail_on or DEFAULT, found)
    if settings.update or before is None:
        rows = {row.nodeid: value for row in results.rows.values() if (value := _values(row))}
        text = json.dumps({"schema": 1, "memwatch": "pytest-baseline", "tests": rows}, indent=1, sort_keys=True) + "\n"
        found.failed = files.write_text(settings.baseline, text)
        found.written = found.failed is None
    return found


def read(settings: Settings) -> Rows | None:
    """The baseline that is compared with; None if there is none yet.

    Raises:
        pytest.UsageError: the file is not a baseline of this plugin; the message says where.
    """
    if settings.baseline is None:
        return None
    path = Path(settings.baseline)
    try:
        if not path.exists():
            return None
        if not path.is_file():  # a device has no end
            raise ValueError("not a regular file")
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError) as error:
        raise pytest.UsageError(f"memwatch: {path} is not a baseline of memwatch's ({error}); write one anew") from None


def _checked(content: Any) -> Rows:
    if not isinstance(content, dict) or content.get("memwatch") != "pytest-baseline":
        raise ValueError('"memwatch" is not "pytest-baseline"')
    tests = content.get("tests")
    if not isinstance(tests, dict):
        raise ValueError('"tests" is no object')
    for nodeid, values in tests.items():
        if not isinstance(values, dict):
            raise ValueError(f"tests[{nodeid!r}] is no object")
        for name in ("growth", "peak"):
            if name in values and (type(values[name]) is not int or values[name] < 0):
                raise ValueError(f"tests[{nodeid!r}].{name} is not a whole number, 0 or more")
    return tests


def _values(row: Row) -> dict[str, int]:
    """What is compared: growth of the last repetition where the test was repeated, else of the first run, never below 0."""
    growth = row.growth
    if row.repeats and row.metric in ("heap", "rss", "python"):
        growth = row.repeats[-1]
    values = {"growth": growth, "peak": row.peak}
    return {name: max(0, value) for name, value in values.items() if value is not None}


def _compare_row(row: Row, before: dict[str, int], rules: tuple[Rule, ...], found: Comparison) -> None:
    now = _values(row)
    for rule in rules:
        if rule.metric in now and rule.metric in before:
            old, new = before[rule.metric], now[rule.metric]
            if not rule.allows(old, new):
                found.worse.append(Worse(row.nodeid, rule.metric, old, new))
            elif new < old - NOISE:
                found.better += 1
