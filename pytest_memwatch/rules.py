"""How much worse than the baseline a test may be: `growth:20%+1MB`.  Pure.

Law: a rule that cannot be read is refused with what is accepted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from memwatch.gate.limits import LimitError, size_of

_RULE = re.compile(r"\s*(growth|peak)\s*:\s*(?:(\d+(?:\.\d+)?)\s*%)?\s*(\+)?\s*(.*?)\s*", re.IGNORECASE)
ACCEPTED = "a rule such as growth:20%+1MB, peak:10% or growth:512KiB"


class Rule(NamedTuple):
    """One allowance: the baseline's value may be exceeded by a share of it plus a size."""

    metric: str
    share: float
    bytes: int

    def allows(self, before: int, now: int) -> bool:
        """Whether *now* is within the allowance."""
        return now <= max(0, before) * (1 + self.share) + self.bytes


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        LimitError: malformed.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise LimitError(f"{text!r} is not {ACCEPTED}")
    metric, share, plus, size = match.groups()
    if (not share and not size) or (share and size and not plus) or (plus and not (share and size)):
        raise LimitError(f"{text!r} is not {ACCEPTED}")
    try:
        number = size_of("size", size) if size else 0
    except LimitError:
        raise LimitError(f"{text!r} is not {ACCEPTED}") from None
    return Rule(metric.lower(), float(share or 0) / 100, number or 0)
