"""Run the plugin's own tests again and again under CPU load: `python bench/plugin_flakes.py [--times 50] [--jobs 4] [TEST …]`.

The load is other runs of the same tests: by default twice as many at once as there are cores.  Prints each failure; the exit status
is 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("semantics", "resources", "options", "outcome")


def once(number: int, wanted: list[str]) -> bool:
    """One run; whether something failed in it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.strip().splitlines()
    shown = [f"{number}: {lines[-1] if lines else run.stderr}"]
    shown += [f"   {line}" for line in lines if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(shown), flush=True)
    if run.returncode:
        (ROOT / "build" / f"flake-{number}.txt").write_text(run.stdout + run.stderr)
    return run.returncode != 0


def main() -> int:
    """Repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="runs at once")
    parser.add_argument("tests", nargs="*", help="test files or pytest's arguments")
    arguments = parser.parse_args()
    wanted = arguments.tests or [f"tests/test_plugin_{name}.py" for name in TESTS]
    (ROOT / "build").mkdir(exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(pool.map(lambda number: once(number, wanted), range(1, arguments.times + 1)))
    print(f"{arguments.times} runs, {arguments.jobs} at once on {os.cpu_count()} cores: {failed} with a failure")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
