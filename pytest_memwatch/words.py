"""Amounts in words, the same wherever a result is shown.

Law: a count is never shown as bytes.
"""

from __future__ import annotations

from memwatch import units
from memwatch.gate.blocks import NOUNS, counted
from pytest_memwatch.results import Row


def amount(metric: str | None, value: int) -> str:
    """`4.77 MiB`, `2 open descriptors`, `3 new objects`."""
    if metric in NOUNS:
        return counted(value, str(metric))
    if metric == "objects":
        return f"{value:,} new object{'' if value == 1 else 's'}"
    if metric == "resources":
        return f"{value:,} resource{'' if value == 1 else 's'}"
    return units.format_size(value)


def warm_up(row: Row) -> str:
    """What the first run kept and the repetitions did not: `1 open descriptor on the first run, none again`."""
    told = []
    for one in row.warmed:
        again = max(0, *one["again"]) if one["again"] else 0
        noun = " at its peak" if one["metric"] == "peak" else ""
        told.append(
            f"{amount(one['metric'], one['first'])}{noun} on the first run, "
            f"{amount(one['metric'], again) if again else 'none'} again"
        )
    return "; ".join(told)
