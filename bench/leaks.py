#!/usr/bin/env python3
"""Run real leaks in real libraries, and things that only look like leaks, under memwatch; check the verdicts.

    bench/leaks.py [NN ...] [--jobs 2] [--interval 0.5s] [--seconds S] [--json FILE]

Each folder of bench/leaks holds `case.py` (a service loop that leaks with one version of a library and not with another),
`requirements-leaky.txt`, `requirements-fixed.txt` and `case.json` (what the case is, and what a right diagnosis says).  Each
variant runs in a virtual environment of its own, kept under --venvs, with memwatch installed from this checkout:

    python -m memwatch run --interval 0.5s --directory D -- python case.py --seconds S --rate R
    python -m memwatch report D --json

Right is: a leaky variant was `leaking` with a kind the case allows, and one of the names that the case gives for the culprit stands
in the first three suspects of some collector; a fixed variant or a look-alike never was, at any moment.
Exit status 1 if any was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent


def find_python(version: str) -> str | None:
    """Path of an interpreter of that version, or None."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = subprocess.run([HERE / "find-python", version], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def environment(case: Path, variant: str, version: str, venvs: Path) -> Path:
    """A virtual environment with the case's requirements and this checkout; made once, and again when the requirements change."""
    python = find_python(version)
    if python is None:
        raise LookupError(f"no Python {version}")
    with _building:
        return _environment(case, variant, python, venvs)


_building = threading.Lock()
"""Builds of this checkout share its folders."""


def _environment(case: Path, variant: str, python: str, venvs: Path) -> Path:
    path = venvs / f"{case.name}-{variant}"
    stamp = path / ".requirements"
    wanted = f"{python}\n{PROJECT}\n" + (case / f"requirements-{variant}.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(path, ignore_errors=True)
        subprocess.run([python, "-m", "venv", path], check=True)
        pip = [path / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", case / f"requirements-{variant}.txt", "-e", PROJECT], check=True)
        stamp.write_text(wanted)
    return path / "bin" / "python"


def run(case: Path, variant: str, *, venvs: Path, interval: str = "0.5s", seconds: float | None = None) -> dict[str, Any]:
    """Run one variant under memwatch; returns its JSON report.

    Raises:
        RuntimeError: there is no report; the message has what was said instead.
    """
    meta = json.loads((case / "case.json").read_text())
    python = environment(case, variant, meta["variants"][variant]["python"], venvs)
    duration = seconds or meta["seconds"]
    program = [python, case / "case.py", "--seconds", str(duration), "--rate", str(meta["rate"])]
    with tempfile.TemporaryDirectory(prefix="memwatch-leak-") as directory:
        watched = [python, "-m", "memwatch", "run", "--interval", interval, "--directory", directory, "--", *program]
        env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", **meta.get("env", {}))
        ran = subprocess.run(watched, cwd=directory, env=env, capture_output=True, text=True, timeout=duration + 120, check=False)
        told = subprocess.run(
            [python, "-m", "memwatch", "report", directory, "--json"], capture_output=True, text=True, check=False
        )
        if told.returncode != 0 or ran.returncode != 0:
            raise RuntimeError(
                f"run: status {ran.returncode} {ran.stderr[-500:]}; report: status {told.returncode} {told.stderr[-500:]}"
            )
        return dict(json.loads(told.stdout))


def judge(case: Path, variant: str, report: dict[str, Any]) -> tuple[bool, str]:
    """Whether the report is right, and what it said."""
    meta = json.loads((case / "case.json").read_text())
    verdict = report["verdict"]
    flagged = [verdict] if verdict["state"] == "leaking" else []
    flagged += [event for event in report["events"] if event.get("state") == "leaking"]
    said = f"{verdict['state']} ({verdict['kind']}): {verdict['reason']}"
    if variant == "fixed":
        return not flagged, said if not flagged else f"was leaking ({flagged[-1]['kind']}): {flagged[-1]['reason']}"
    if not flagged:
        return False, "not found; " + said
    kinds = meta.get("kinds")
    if kinds and verdict["kind"] not in kinds:
        return False, f"another kind than {', '.join(kinds)}; {said}"
    names = meta.get("names") or []
    found = [name for name in names if any(name in text for text in first_suspects(report))]
    explained = report.get("explained")
    part = "" if explained is None else f", {explained:.0%} explained"
    if names and not found:
        return False, f"culprit not named{part}; {said}"
    return True, f"{verdict['kind']}{part}, names {', '.join(found)}; {verdict['reason']}"


def first_suspects(report: dict[str, Any]) -> list[str]:
    """The first three suspects of each collector, with their trails."""
    return [
        " ".join([str(suspect["label"]), *map(str, suspect["trail"])])
        for evidence in report["evidence"]
        for suspect in evidence["suspects"][:3]
    ]


def variants(only: list[str]) -> list[tuple[Path, str]]:
    """Every case folder with each of its variants."""
    found = []
    for case in sorted((HERE / "leaks").glob("[0-9][0-9]-*")):
        meta = json.loads((case / "case.json").read_text())
        if not only or meta["id"] in only:
            found += [(case, variant) for variant in ("leaky", "fixed") if variant in meta["variants"]]
    return found


def main() -> int:
    """Run all, print a line each and a closing count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "memwatch-leak-venvs")
    parser.add_argument("--interval", default="0.5s")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    def attempt(which: tuple[Path, str]) -> tuple[bool, str, dict[str, Any] | None]:
        try:
            report = run(*which, venvs=arguments.venvs, interval=arguments.interval, seconds=arguments.seconds)
        except (OSError, LookupError, RuntimeError, subprocess.SubprocessError) as error:
            return False, f"could not run: {error}", None
        return *judge(*which, report), report

    chosen = variants(arguments.ids)
    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (case, variant), (right, said, report) in zip(chosen, pool.map(attempt, chosen), strict=True):
            print(f"{case.name:28} {variant:6} {'right' if right else 'WRONG':6} {said}", flush=True)
            rows.append({"case": case.name, "variant": variant, "right": right, "said": said, "report": report})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    wrong = sum(not row["right"] for row in rows)
    print(f"{len(rows) - wrong} passed, {wrong} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
