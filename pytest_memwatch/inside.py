"""What `limit`, `checkpoint`, `assert_no_leak` or `assert_collected` found inside a test, as a result like the gate's own.

Law: the place is the program's own line that called, never one of ours.
"""

from __future__ import annotations

from pathlib import Path
from types import CodeType

from memwatch.evidence import names
from memwatch.gate.judging import MemoryGrowth
from memwatch.model import Suspect
from pytest_memwatch.results import INSIDE, LEAK, Row


def is_of_gate(error: MemoryGrowth) -> bool:
    """Whether the gate judged the whole test: its finding is a row."""
    return "nodeid" in error.finding


def fill(row: Row, error: MemoryGrowth, root: Path) -> None:
    """Take what was found into the result of the test."""
    finding = error.finding
    exceeded = [str(one) for one in finding.get("exceeded", ())]
    row.verdict, row.message = LEAK, str(error)
    row.metric = next(iter(exceeded), None)
    row.kind = INSIDE
    if "peak" in exceeded:
        row.peak, row.peak_engine = finding["peak"], finding["peak_engine"]
    row.sites = list(finding.get("sites", ()))
    row.resources = list(finding.get("resources", ()))
    held = list(finding.get("held_by", ()))
    row.holders = [Suspect(held[0], None, None, None, tuple(held[1:])).to_dict()] if held else []
    place = _place_of(error)
    if place is not None:
        code, line = place
        path = Path(code.co_filename)
        shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        row.location = [shown, line]
        row.message = f"{row.message}\nat  {shown}:{line}"
        row.fingerprint = "|".join((INSIDE, row.metric or "", shown, code.co_qualname))


def _place_of(error: MemoryGrowth) -> tuple[CodeType, int] | None:
    found, step = None, error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if not names.is_ours(code.co_filename) and not names.is_standard(code.co_filename):
            found = code, step.tb_lineno
        step = step.tb_next
    return found
