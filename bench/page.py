#!/usr/bin/env python3
"""The report as a page: how large it is, how long it takes to write, and how long a browser takes to draw it.

    bench/page.py [--rounds 7]

A day of readings every 10 s (8,640 of five channels), the same thinned to a month with its coarse history, and an hour.  The
browser is Debian's Chromium without a window; *drawn* is from the start of navigation until the curves are on their canvases,
*script* what drawing them again takes.  Medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import browsing
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    day = cases.a_day(cases.leak())
    coarse = tuple(replace(one, time_s=one.time_s - 86_400 - 29 * 300 * index) for index, one in enumerate(reversed(day.history)))
    pages: dict[str, Report] = {
        "an hour": replace(day, history=day.history[-360:]),
        "a day": day,
        "a month": replace(day, history=tuple(sorted(coarse, key=lambda one: one.time_s))[::2] + day.history[::2]),
    }
    print(f"{'':10} {'readings':>9} {'KB':>6} {'written':>9} {'drawn':>8} {'script':>8}")
    with tempfile.TemporaryDirectory() as folder, browsing.browser() as browser:
        for name, report in pages.items():
            place = Path(folder) / "page.html"
            written, drawn, script = [], [], []
            for _ in range(rounds):
                began = time.perf_counter()
                text = reports.render(report, "html")
                written.append(time.perf_counter() - began)
                place.write_text(text, encoding="utf-8")
                with browsing.opened(browser, place.as_uri()) as seen:
                    took = seen.page.evaluate(
                        """new Promise(resolve => requestAnimationFrame(() => setTimeout(() => resolve([performance.now(), (() => {
                            const data = JSON.parse(document.getElementById('memwatch-data').textContent);
                            const began = performance.now();
                            memwatch.show(data);
                            return performance.now() - began;
                        })()]), 0)))"""
                    )
                    drawn.append(took[0])
                    script.append(took[1])
            size = len(text.encode()) / 1000
            print(
                f"{name:10} {len(report.history):9,} {size:6.0f} {statistics.median(written) * 1000:6.0f} ms "
                f"{statistics.median(drawn):5.0f} ms {statistics.median(script):5.0f} ms"
            )


if __name__ == "__main__":
    main()
