"""Install what the pytest plugin lives with beside pytest 8 and 9: `python bench/plugin_peers.py` (a minute, from PyPI).

Each environment is `build/peers/<major>/`; tests/test_plugin_lives_with.py and the other plugin benchmarks use them.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAJORS = (8, 9)
MONITOR = ROOT / "build" / "peers" / "monitor" / "bin" / "python"


def python_of(major: int) -> Path:
    """The interpreter of one environment."""
    return ROOT / "build" / "peers" / str(major) / "bin" / "python"


def main() -> None:
    """Make what is missing."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["peers"]
    for major in MAJORS:
        python = python_of(major)
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True)
        command = [python, "-m", "pip", "install", "-q", f"pytest=={major}.*", "click", "rich", *wanted]
        subprocess.run(command, check=True)
        shown = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True)
        versions = [line for line in shown.stdout.splitlines() if "pytest" in line or line.split("==")[0] in wanted]
        print(f"pytest {major}: {', '.join(versions)}")
    # pytest-monitor fails on pytest 9.2, and brings memory_profiler along.
    if not MONITOR.exists():
        venv.create(MONITOR.parent.parent, with_pip=True)
    subprocess.run([MONITOR, "-m", "pip", "install", "-q", "pytest==8.*", "pytest-monitor", "setuptools<81"], check=True)


if __name__ == "__main__":
    sys.exit(main())
