"""CPython's own test modules with the sampler running, and without: what fails beside it must fail alone too.

    python bench/cpython_tests.py [--mean BYTES] [--python PATH …] [MODULE …]

Prints one line per Python and module: tests run, failures with the sampler (a sample every 4 KiB), failures without, and seconds.
Exits with 1 if anything fails only beside the sampler. About 10 minutes per Python; each needs memwatch (`pip install -e .`) and
its own test suite.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    *("test_gc", "test_threading", "test_fork1", "test_subprocess", "test_json", "test_pickle", "test_asyncio", "test_sys"),
    *("test_tracemalloc", "test_list", "test_dict", "test_set", "test_bytes", "test_unicode", "test_generators", "test_coroutines"),
    *("test_weakref", "test_threading_local", "test_capi", "test_io", "test_re", "test_functools", "test_zlib", "test_ctypes"),
    *("test_faulthandler", "test_signal", "test_concurrent_futures"),
]
TIMEOUT_S = 900

RUN = """
import sys, unittest
sys.path.insert(0, {root!r})
if {mean}:
    import memwatch.evidence._sampler as sampler
    sampler.start({mean})
from test.libregrtest.main import main
sys.argv = ["regrtest"]
main([{module!r}], verbose=1)
"""


def run(python: str, module: str, mean: int) -> tuple[set[str], int | None, bool, float]:
    """The names that failed, the tests run, whether it ended well, and the seconds it took."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [python, "-c", RUN.format(root=str(ROOT), mean=mean, module=module)],
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = (error.stdout or b"").decode(errors="replace") + "\nFAIL: timeout\n", 1
    failed = set(re.findall(r"^(?:FAIL|ERROR): (.+)$", output, re.MULTILINE))
    if status != 0 and not failed:
        failed = {f"exit status {status}"}
    counts = [int(count) for count in re.findall(r"^Ran (\d+) tests? in", output, re.MULTILINE)]
    return failed, sum(counts) if counts else None, status == 0, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mean", type=int, default=4096)
    parser.add_argument("--python", action="append")
    parser.add_argument("modules", nargs="*", default=MODULES)
    options = parser.parse_args()
    worse = False
    for python in options.python or [sys.executable]:
        version = subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True
        )
        print(f"\nPython {version.stdout.strip()}, a sample every {options.mean} bytes")
        print(f"{'module':<28}{'tests':>8}{'with':>8}{'without':>9}{'s':>8}   fails only with it")
        for module in options.modules:
            failed, count, _, seconds = run(python, module, options.mean)
            alone = run(python, module, 0)[0] if failed else set()
            only = sorted(failed - alone)
            worse = worse or bool(only)
            print(f"{module:<28}{count if count is not None else '–':>8}{len(failed):>8}{len(alone) if failed else '–':>9}"
                  f"{seconds:>8.1f}   {', '.join(only)}", flush=True)  # fmt: skip
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
