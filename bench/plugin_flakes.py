"""Run the plugin's own tests again and again under CPU load: `python bench/plugin_flakes.py [--times 50] [--burners 2] [TEST …]`.

Prints each failure; the exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("semantics", "resources", "options", "outcome")


def main() -> int:
    """Repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--burners", type=int, default=os.cpu_count() or 1, help="processes that keep a core busy")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after this long")
    parser.add_argument("tests", nargs="*", help="test files or pytest's arguments")
    arguments = parser.parse_args()
    wanted = arguments.tests or [f"tests/test_plugin_{name}.py" for name in TESTS]
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.burners)]
    failed, done, began_s = 0, 0, time.monotonic()
    try:
        for number in range(arguments.times):
            if time.monotonic() - began_s > 60 * arguments.minutes:
                break
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            lines = run.stdout.strip().splitlines()
            done += 1
            failed += run.returncode != 0
            print(f"{number + 1}: {lines[-1] if lines else run.stderr}", flush=True)
            for line in lines:
                if line.startswith(("FAILED", "ERROR")):
                    print(f"   {line}", flush=True)
    finally:
        for burner in burners:
            burner.kill()
    print(f"{done} runs under {arguments.burners} burners, load {os.getloadavg()[0]:.1f}: {failed} with a failure")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
