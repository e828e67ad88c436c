"""Amounts in words, the same wherever a result is shown.

Law: a count is never shown as bytes.
"""

from __future__ import annotations

import re
from collections import Counter

from memwatch import units
from memwatch.gate.blocks import NOUNS, counted
from pytest_memwatch.results import LEAK, SUSPECT, WARMUP, Results, Row


def amount(metric: str | None, value: int) -> str:
    """`4.77 MiB`, `2 open descriptors`, `3 new objects`."""
    if metric in NOUNS:
        return counted(value, str(metric))
    if metric == "objects":
        return f"{value:,} new object{'' if value == 1 else 's'}"
    if metric == "resources":
        return f"{value:,} resource{'' if value == 1 else 's'}"
    return f"{units.format_size(value)} at its peak" if metric == "peak" else units.format_size(value)


def counts(results: Results) -> str:
    """`4 leak, 1 peak, 0 suspect, 2 warm up`."""
    found = Counter(row.label for row in results.rows.values())
    peaks = f", {found['peak']} peak" if found["peak"] else ""
    return f"{found[LEAK]} leak{peaks}, {found[SUSPECT]} suspect, {found[WARMUP]} warm up"


def headline(row: Row) -> str:
    """The first line of what was found, without the numbers of each repetition."""
    lines = (row.message or row.note or "").splitlines()
    return re.sub(r"; (in )?each of \d+ re-runs: .*", "", lines[0]) if lines else ""


def warm_up(row: Row) -> str:
    """What the first run kept and the repetitions did not: `1 open descriptor on the first run, none again`."""
    told = []
    for one in row.warmed:
        again = max(0, *one["again"]) if one["again"] else 0
        told.append(
            f"{amount(one['metric'], one['first'])} on the first run, {amount(one['metric'], again) if again else 'none'} again"
        )
    return "; ".join(told)
