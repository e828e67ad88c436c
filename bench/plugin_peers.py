"""Install what the pytest plugin lives with beside pytest 8 and 9: `python bench/plugin_peers.py` (a minute, from PyPI).

Each environment is `build/peers/<Python>/<major>/`; tests/test_plugin_lives_with.py and the other plugin benchmarks make the ones
they need by the functions here.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "build" / "peers" / "{}.{}".format(*sys.version_info)
MAJORS = (8, 9)


def python_of(major: int) -> Path:
    """The interpreter of pytest 8 or 9 with all the peers."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["peers"]
    return installed(PEERS / str(major), [f"pytest=={major}.*", "click", "rich", *wanted])


def python_of_monitor() -> Path:
    """The interpreter of pytest-monitor, which fails on pytest 9.2 and brings memory_profiler along."""
    return installed(PEERS / "monitor", ["pytest==8.*", "pytest-monitor", "setuptools<81"])


def installed(folder: Path, requirements: list[str]) -> Path:
    """An environment is made anew when what it should hold has changed, or when making it did not come to its end."""
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    text = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != text:
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *requirements]
        subprocess.run(command, check=True)
        stamp.write_text(text)
    return python


def main() -> None:
    """Make what is missing, and tell the versions."""
    for name, python in (*((f"pytest {major}", python_of(major)) for major in MAJORS), ("pytest-monitor", python_of_monitor())):
        shown = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True)
        print(f"{name}: {', '.join(line for line in shown.stdout.splitlines() if not line.startswith(('pip=', 'setuptools=')))}")


if __name__ == "__main__":
    sys.exit(main())
