"""Runs of pytest with the plugin, each in a process of its own, for the plugin's tests."""

from __future__ import annotations

import json
import textwrap
from importlib.metadata import entry_points
from typing import Any

import pytest

INSTALLED = any(entry.value == "pytest_memwatch.plugin" for entry in entry_points(group="pytest11"))
LOADED = () if INSTALLED else ("-p", "pytest_memwatch.plugin")
MIB = 2**20


class Outcome:
    """One run: its text, its exit status, and what the plugin wrote."""

    def __init__(self, result: pytest.RunResult, pytester: pytest.Pytester) -> None:
        self.result = result
        self.text = result.stdout.str()
        self.status = int(result.ret)
        path = pytester.path / "memwatch.json"
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def counts(self) -> dict[str, int]:
        """`{"passed": 2, "failed": 1}`."""
        return self.result.parseoutcomes()

    def row(self, name: str) -> dict[str, Any]:
        """The result of the test whose id ends so."""
        found = [row for row in self.data["tests"] if row["nodeid"].endswith(name)]
        assert len(found) == 1, (name, [row["nodeid"] for row in self.data["tests"]])
        return found[0]

    def verdicts(self) -> dict[str, str]:
        """Test name to verdict."""
        return {row["nodeid"].rpartition("::")[2]: row["verdict"] for row in self.data["tests"]}


def run(pytester: pytest.Pytester, source: str | None, *arguments: str, on: bool = True) -> Outcome:
    """Run a test file under the gate."""
    if source is not None:
        pytester.makepyfile(test_it=textwrap.dedent(source))
    (pytester.path / "memwatch.json").unlink(missing_ok=True)
    switched = ("--memwatch",) if on else ()
    # Hypothesis has nothing to do there and takes a third of the time.
    result = pytester.runpytest_subprocess(
        *LOADED, "-p", "no:hypothesispytest", *switched, "--memwatch-json=memwatch.json", *arguments
    )
    outcome = Outcome(result, pytester)
    assert "INTERNALERROR" not in outcome.text + result.stderr.str(), outcome.text
    return outcome
