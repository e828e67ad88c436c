"""What each tool says of fifteen small tests, side by side: `python bench/plugin_table.py [--json FILE] [CASE …]`.

Every case runs in a process of its own with each tool: memwatch with `--memwatch`;
pytest-memray with `--memray` and `limit_leaks("1 MB")`; pytest-monitor, which records a number and never fails a test; psleak with
its `MemoryLeakTestCase` and PYTHONMALLOC=malloc, without which it skips.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from plugin_peers import ROOT, python_of, python_of_monitor

TOOLS = ("memwatch", "pytest-memray", "pytest-monitor", "psleak")


class Case(NamedTuple):
    """One small test."""

    name: str
    leaks: bool
    head: str
    """Imports and globals."""
    body: str
    """Of the test."""
    fixture: str = ""
    """Definition of the fixture `given`, if the test uses one."""


CASES = (
    Case("empty", False, "", "pass"),
    Case("5 MB in one global list", True, "KEPT = []", "KEPT.append(bytearray(5_000_000))"),
    Case("5 MB in 50 000 small lists", True, "KEPT = []", "KEPT.append([[] for _ in range(50_000)])"),
    Case("5 MB of malloc through ctypes", True, "import ctypes; C = ctypes.CDLL(None); C.malloc.restype = ctypes.c_void_p",
         "ctypes.memset(C.malloc(5_000_000), 1, 5_000_000)"),
    Case("200 MB freed", False, "", "bytearray(b'x') * 200_000_000"),
    Case("a file left open", True, "KEPT = []", "KEPT.append(open(__file__))"),
    Case("a socket left open", True, "import socket; KEPT = []", "KEPT.append(socket.socket())"),
    Case("a thread left running", True, "import threading, time", "threading.Thread(target=time.sleep, args=(300,), daemon=True).start()"),  # noqa: E501
    Case("an asyncio task left", True, "import asyncio; LOOP = asyncio.new_event_loop(); KEPT = []",
         "KEPT.append(LOOP.create_task(asyncio.sleep(600))); LOOP.run_until_complete(asyncio.sleep(0))"),
    Case("first use of a session fixture, 50 MB", False, "", "pass",
         "@pytest.fixture(scope='session')\ndef given():\n    return bytearray(b'x') * 50_000_000\n"),
    Case("warm-up of an lru_cache, 30 MB", False,
         "import functools\n@functools.lru_cache\ndef table():\n    return bytearray(b'x') * 30_000_000\n", "table()"),
    Case("imports", False, "", "import decimal, email.mime.multipart, http.server, sqlite3, unittest.mock, xml.dom.minidom, xml.sax"),  # noqa: E501
    Case("5 MB freed in the tear-down", False, "KEPT = []", "KEPT.append(bytearray(5_000_000))",
         "@pytest.fixture\ndef given():\n    yield\n    KEPT.clear()\n"),
    Case("a cycle not yet collected, 5 MB", False, "", "pair = [bytearray(5_000_000)]; pair.append(pair)"),
    Case("a leak inside a fixture, 5 MB", True, "KEPT = []", "pass",
         "@pytest.fixture\ndef given():\n    KEPT.append(bytearray(5_000_000))\n"),
    Case("thirty leaks of 0.9 MB", True, "KEPT = []", "\n    ".join(f"KEPT.append(bytearray(900_000))  # {n}" for n in range(30))),
)  # fmt: skip


class Verdict(NamedTuple):
    """What one tool said."""

    flagged: bool | None
    """None: it has no verdict, or cannot express the case."""
    words: str


def source_for(tool: str, case: Case) -> str:
    """The test file of a case for one tool."""
    argument = "given" if case.fixture else ""
    mark = '@pytest.mark.limit_leaks("1 MB")\n' if tool == "pytest-memray" else ""
    head = f"import pytest\n{case.head}\n{case.fixture}\n"
    if tool == "psleak":
        return (
            f"{head}import psleak\ndef body():\n    {case.body}\n"
            "class TestIt(psleak.MemoryLeakTestCase):\n    times, retries, warmup_times = 10, 5, 2\n"
            "    def test_case(self):\n        self.execute(body)\n"
        )
    return f"{head}{mark}def test_case({argument}):\n    {case.body}\n{mark}def test_again({argument}):\n    {case.body}\n"


def ask(tool: str, case: Case, folder: Path) -> Verdict:
    """Run one case with one tool."""
    if tool == "psleak" and case.fixture:
        return Verdict(None, "knows no fixtures")
    (folder / "test_it.py").write_text(source_for(tool, case))
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = dict(os.environ)
    command: list[str | Path] = [python_of(9), "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    if tool == "memwatch":
        packages = folder / "packages"
        packages.mkdir(exist_ok=True)
        for name in ("memwatch", "pytest_memwatch"):
            if not (packages / name).exists():
                (packages / name).symlink_to(ROOT / name)
        environment["PYTHONPATH"] = str(packages)
        command += ["-p", "pytest_memwatch.plugin", "--memwatch", "-p", "no:memray"]
    elif tool == "pytest-memray":
        command += ["--memray"]
    elif tool == "pytest-monitor":
        command = [python_of_monitor(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--db", str(folder / "monitor.db")]
    else:
        environment["PYTHONMALLOC"] = "malloc"
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    text = done.stdout
    if tool == "pytest-monitor":
        return Verdict(None, monitored(folder / "monitor.db"))
    flagged = done.returncode == 1
    if done.returncode not in (0, 1):
        return Verdict(None, f"exit status {done.returncode}: {(text + done.stderr).strip().splitlines()[-1]}")
    if tool == "memwatch" and "warm-ups, not leaks" in text and not flagged:
        return Verdict(flagged, "passes, with a note: a warm-up")
    return Verdict(flagged, first_words(tool, text) if flagged else "passes")


def first_words(tool: str, text: str) -> str:
    """The line that says why a test failed."""
    for line in text.splitlines():
        if tool == "memwatch" and line.startswith("MemoryGrowth: "):
            return line.removeprefix("MemoryGrowth: ").split("; ")[0]
        if tool == "pytest-memray" and line.startswith("Test was allowed"):
            return line[:70]
        if tool == "psleak" and line.startswith("E ") and "psleak" in line:
            return line.removeprefix("E").strip().split(":", 1)[0].removeprefix("psleak.")
    return "fails"


def monitored(path: Path) -> str:
    """What pytest-monitor has recorded of the two tests: RSS since the session began, at most, in MB."""
    if not path.exists():
        return "nothing recorded"
    with sqlite3.connect(path) as database:
        rows = database.execute("select MEM_USAGE from TEST_METRICS order by rowid").fetchall()
    return "records " + ", ".join(f"{row[0]:.1f} MB" for row in rows) if rows else "nothing recorded"


def main() -> int:
    """Print the table; the exit status is 1 if memwatch is wrong on a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("cases", nargs="*", help="part of a name; all by default")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if not arguments.cases or any(part in case.name for part in arguments.cases)]
    rows, right = [], dict.fromkeys(TOOLS, 0)
    print("| case | leak? | " + " | ".join(TOOLS) + " |\n| --- | --- |" + " --- |" * len(TOOLS))
    for case in chosen:
        cells = []
        for tool in TOOLS:
            with tempfile.TemporaryDirectory() as folder:
                verdict = ask(tool, case, Path(folder))
            correct = verdict.flagged is not None and verdict.flagged == case.leaks
            right[tool] += correct
            sign = "–" if verdict.flagged is None else "right" if correct else "WRONG"
            cells.append(f"{sign}: {verdict.words.replace('|', '/')}")
            rows.append({"case": case.name, "leaks": case.leaks, "tool": tool, **verdict._asdict(), "right": correct})
        print(f"| {case.name} | {'yes' if case.leaks else 'no'} | " + " | ".join(cells) + " |", flush=True)
    print("| right | | " + " | ".join(f"{right[tool]} of {len(chosen)}" for tool in TOOLS) + " |")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if right["memwatch"] == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
