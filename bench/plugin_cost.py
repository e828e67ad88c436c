"""CPU time of 500 empty tests over no plugin, side by side in one run: `python bench/plugin_cost.py [--tests 500] [--rounds 3]`.

Setups take turns, so that all see the same load; of the rounds the least CPU time counts
(user and system, children included), less that of a run without the plugin in the same environment.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from plugin_peers import ROOT, python_of, python_of_monitor

NINE, COMMON = python_of(9), ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:asyncio"]
# Name: interpreter, arguments, what the test file has to be, and the setup it is compared with.
SETUPS: dict[str, tuple[Path, list[str], str, str | None]] = {
    "no plugin": (NINE, ["-p", "no:memray"], "plain", None),
    "memwatch installed, off": (NINE, ["-p", "no:memray", "-p", "pytest_memwatch.plugin"], "plain", "no plugin"),
    "memwatch on": (NINE, ["-p", "no:memray", "-p", "pytest_memwatch.plugin", "--memwatch"], "plain", "no plugin"),
    "pytest-memray installed, off": (NINE, [], "plain", "no plugin"),
    "pytest-memray --memray": (NINE, ["--memray"], "plain", "no plugin"),
    "pytest-memray limit_leaks": (NINE, ["--memray"], "marked", "no plugin"),
    "psleak execute() (30 tests)": (NINE, ["-p", "no:memray"], "psleak", "no plugin"),
    "no plugin, pytest 8": (python_of_monitor(), ["-p", "no:monitor"], "plain", None),
    "pytest-monitor (pytest 8)": (python_of_monitor(), [], "plain", "no plugin, pytest 8"),
}


def write(kind: str, number: int, folder: Path) -> int:
    """Write the test file; returns how many tests it has."""
    if kind == "psleak":
        lines = ["import psleak", "class TestIt(psleak.MemoryLeakTestCase):"]
        number = min(number, 30)
        lines += [f"    def test_{one}(self): self.execute(lambda: None)" for one in range(number)]
    else:
        mark = '@pytest.mark.limit_leaks("1 MB")\n' if kind == "marked" else ""
        lines = ["import pytest", *(f"{mark}def test_{one}(): pass" for one in range(number))]
    (folder / "test_it.py").write_text("\n".join(lines) + "\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    return number


def measure(python: Path, arguments: list[str], kind: str, number: int) -> tuple[float, int]:
    """CPU seconds of one run, and the number of its tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = folder / "packages"
        packages.mkdir()
        for package in ("memwatch", "pytest_memwatch"):
            (packages / package).symlink_to(ROOT / package)
        count = write(kind, number, folder)
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        if kind == "psleak":
            environment["PYTHONMALLOC"] = "malloc"
        command = [str(python), "-m", "pytest", *COMMON, *arguments, "test_it.py"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            print(done.stdout[-2000:], done.stderr[-500:], file=sys.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, count


def main() -> int:
    """Print the table; the exit status is 1 if memwatch is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="setups whose name has this, and what they are compared with")
    arguments = parser.parse_args()
    wanted = {name for name in SETUPS if arguments.only in name}
    wanted |= {str(SETUPS[name][3]) for name in wanted if SETUPS[name][3]}
    least: dict[str, tuple[float, int]] = {}
    for _ in range(arguments.rounds):
        for name, (python, options, kind, _) in SETUPS.items():
            if name in wanted and python.exists():
                found = measure(python, options, kind, arguments.tests)
                least[name] = min(least.get(name, found), found)
    print("| setup | CPU in all | per test over no plugin |\n| --- | --- | --- |")
    over: dict[str, float] = {}
    for name, (cpu_s, count) in least.items():
        base = SETUPS[name][3]
        if base is None:
            print(f"| {name} | {cpu_s:.2f} s | |")
            continue
        # A smaller run is compared with the part of the base that does not grow with the tests: start-up, measured with one test.
        base_s = least[base][0]
        if count != arguments.tests:
            base_s = measure(SETUPS[base][0], SETUPS[base][1], "plain", 1)[0]
        over[name] = 1000 * (cpu_s - base_s) / count
        print(f"| {name} | {cpu_s:.2f} s | {over[name]:.2f} ms |")
    return 0 if over.get("memwatch on", 0) <= 1.5 and over.get("memwatch installed, off", 0) <= 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
