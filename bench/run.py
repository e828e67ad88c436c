#!/usr/bin/env python3
"""All benchmarks, one after the other; each prints a table.  `make bench` runs it (about 35 minutes)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("service.py", "tick.py", "record.py", "score.py", "sampler.py", "pause.py", "caches.py", "cache_service.py")


def main() -> int:
    """Run them; the exit status is that of the first that failed."""
    for name in BENCHMARKS:
        print(f"\n== bench/{name}", flush=True)
        status = subprocess.run([sys.executable, HERE / name], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
