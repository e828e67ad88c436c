"""What a session found, as plain data: it crosses process borders on the reports, and everything shown is made from it.

Law: JSON-ready, and nothing in it refers to a test's objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
INSIDE = "inside the test"
"""The `kind` of what a block or a function of memwatch's found while the test ran."""
BYTES = ("heap", "rss", "python", "peak")
"""The metrics that are bytes; the others are counts."""
LEAK, WARMUP, SUSPECT, CLEAN = "leak", "warm-up", "suspect", "clean"


@dataclass
class Row:
    """One test."""

    nodeid: str
    verdict: str = CLEAN
    """`leak`, `warm-up` (the first run alone grew), `suspect` (could not be repeated), `clean`."""
    growth: int | None = None
    """Bytes that the first run retained, less what wider fixtures set up; not settled unless the test was suspicious."""
    peak: int | None = None
    peak_engine: str | None = None
    rss: int | None = None
    """Growth of RSS over the first run."""
    repeats: list[int] = field(default_factory=list)
    """Growth of each repetition, by `metric`."""
    metric: str | None = None
    """What decided: `heap`, `rss`, `python`, `peak`, `objects`, or the name of a resource."""
    kind: str | None = None
    limit: int | None = None
    message: str | None = None
    note: str | None = None
    sites: list[dict[str, Any]] = field(default_factory=list)
    types: list[dict[str, Any]] = field(default_factory=list)
    holders: list[dict[str, Any]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str | None = None
    """The same for leaks of one line, holder or resource."""
    location: list[Any] = field(default_factory=list)
    """File and line of the test."""
    reruns: int = 0
    warmed: list[dict[str, Any]] = field(default_factory=list)
    """What the first run alone exceeded: `metric`, `first`, and `again` of each repetition."""

    @property
    def label(self) -> str:
        """The verdict as people are told it: what was used at once and given back is no leak, though it fails all the same."""
        return "peak" if self.verdict == LEAK and self.metric == "peak" else self.verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Row:
        return cls(**{key: value for key, value in source.items() if key in cls.__dataclass_fields__})


@dataclass
class FixtureRow:
    """A fixture wider than a function: what its set-up allocated."""

    name: str
    scope: str
    growth: int
    setups: int = 1


@dataclass
class Results:
    """Everything that one process, or all workers together, found."""

    rows: dict[str, Row] = field(default_factory=dict)
    fixtures: dict[str, FixtureRow] = field(default_factory=dict)
    peak_rss: int | None = None
    """The highest of all processes."""
    growth: int | None = None
    """Of all processes together, from the first test to the last."""
    crashes: list[dict[str, Any]] = field(default_factory=list)
    checked: int = 0

    def add(self, row: Row) -> None:
        """Take a test's row; a later run of it replaces an earlier one."""
        self.rows[row.nodeid] = row

    def add_fixture(self, name: str, scope: str, growth: int) -> None:
        """Take one set-up of a fixture."""
        known = self.fixtures.get(name)
        if known is None:
            self.fixtures[name] = FixtureRow(name, scope, growth)
        else:
            known.growth += growth
            known.setups += 1

    def of(self, verdict: str) -> list[Row]:
        """The tests of one verdict, the largest first."""
        return sorted((row for row in self.rows.values() if row.verdict == verdict), key=size_of, reverse=True)

    def session_part(self) -> dict[str, Any]:
        """What is not on the reports: for the controller."""
        return {
            "fixtures": [asdict(row) for row in self.fixtures.values()],
            "peak_rss": self.peak_rss,
            "growth": self.growth,
            "checked": self.checked,
        }

    def merge(self, part: Mapping[str, Any]) -> None:
        """Take the session part of a worker."""
        for row in part.get("fixtures", ()):
            known = self.fixtures.get(row["name"])
            if known is None:
                self.fixtures[row["name"]] = FixtureRow(**row)
            else:
                known.growth = max(known.growth, int(row["growth"]))
                known.setups += int(row["setups"])
        if part.get("peak_rss") is not None:
            self.peak_rss = max(self.peak_rss or 0, int(part["peak_rss"]))
        if part.get("growth") is not None:
            self.growth = (self.growth or 0) + int(part["growth"])
        self.checked += int(part.get("checked", 0))

    def to_dict(self) -> dict[str, Any]:
        """The report file, schema 1."""
        return {
            "schema": SCHEMA,
            "tests": [row.to_dict() for row in self.rows.values()],
            "fixtures": [asdict(row) for row in sorted(self.fixtures.values(), key=lambda row: -row.growth)],
            "suite": {"peak_rss": self.peak_rss, "growth": self.growth, "checked": self.checked},
            "groups": [{"fingerprint": key, "tests": [row.nodeid for row in rows]} for key, rows in self.groups().items()],
            "crashes": self.crashes,
        }

    def groups(self) -> dict[str, list[Row]]:
        """Leaks, and peaks over their limits, by fingerprint."""
        found: dict[str, list[Row]] = {}
        for row in self.of(LEAK):
            found.setdefault(row.fingerprint or row.nodeid, []).append(row)
        return found


def measure(row: Row) -> tuple[str, int]:
    """What a test is shown and ranked by, metric and number: of a repetition, else of the first run."""
    if row.warmed:
        largest = max(row.warmed, key=lambda one: _rank(one["metric"], one["first"]))
        return str(largest["metric"]), int(largest["first"])
    if row.metric == "peak":
        return "peak", row.peak or 0
    if row.metric is not None and row.repeats and (row.verdict == LEAK or row.metric in BYTES):
        return row.metric, row.repeats[-1]
    return "heap", row.growth or 0


def size_of(row: Row) -> int:
    """What a test is ranked by, in bytes; a resource counts for 1 MiB each."""
    return _rank(*measure(row))


def _rank(metric: str, number: int) -> int:
    return number * (1 if metric in BYTES else 2**20)
