"""Runs a small leaking program and takes evidence of it, without a trend: the verdict is given.

    python tests/examined.py CHANNEL KIND < program

The program defines `grow()`; what it defines and imports before that is the state it leaks into.  It is the module `app` of a file
of its own, so that evidence can name it.  Prints the conclusion as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from memwatch.evidence import Conclusion, Inquiry, Moment
from memwatch.model import Verdict
from memwatch.vitals import Vitals, read_pools_with


def examine(
    channel: str = "heap",
    kind: str = "python-heap",
    mode: str = "auto",
    rounds: int = 10,
    sample_bytes: int | str = 65536,
    **options: Any,
) -> Conclusion:
    """Import `app`, let it grow between two moments, and return what was concluded."""
    vitals = Vitals()
    inquiry = Inquiry(mode, sample_bytes=int(sample_bytes), **options)
    inquiry.begin()
    if inquiry.sampling is not None:
        read_pools_with(inquiry.sampling.module.pymalloc_statistics)
    app = importlib.import_module("app")
    start = vitals.read(complete=True)

    def moment(state: Any) -> Moment:
        now = vitals.read(complete=True)
        grown = max(1.0, now.get(channel, 0.0) - start.get(channel, 0.0))
        verdict = Verdict(channel, state, "increasing", rate=1.0, grown=grown, kind=kind)  # type: ignore[arg-type]
        return Moment(time.monotonic(), verdict, began_s, now)

    began_s = time.monotonic()
    assert inquiry.observe(moment("growing")) is None
    settle(inquiry)
    assert inquiry.observe(moment("growing")) is None
    for _ in range(rounds):
        if inquiry.sampling is not None:
            inquiry.sampling.module.govern(0.0)  # what takes minutes in a service is done here in milliseconds
        app.grow()
        inquiry.observe(moment("growing"))
    time.sleep(0.02)  # nothing of the growth is younger than a moment
    for _ in range(50):
        conclusion = inquiry.observe(moment("leaking"))
        if conclusion is not None:
            inquiry.end()
            return conclusion
        settle(inquiry)
    raise AssertionError("no conclusion")


def settle(inquiry: Inquiry) -> None:
    deadline_s = time.monotonic() + 60
    while inquiry.looking and time.monotonic() < deadline_s:
        inquiry.poll()
        time.sleep(0.005)


def plain(conclusion: Conclusion) -> dict[str, Any]:
    return {
        "evidence": {item.collector: item.to_dict() for item in conclusion.evidence},
        "bounded": None if conclusion.bounded is None else list(conclusion.bounded),
        "cycles_share": conclusion.cycles_share,
        "tracing": tracemalloc.is_tracing(),
    }


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(sys.stdin.read())
        sys.path.insert(0, folder)
        conclusion = examine(**options)
        print(json.dumps(plain(conclusion)))
    sys.stdout.flush()
    os._exit(0)  # whatever the program has started


if __name__ == "__main__":
    main()
