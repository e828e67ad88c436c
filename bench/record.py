#!/usr/bin/env python3
"""What recording one tick costs: CPU time and wall time of a write with every channel, and the size of a day.

bench/record.py [--ticks 8640]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from memwatch.model import CHANNELS, ChannelSummary, Process, Report, Sample, Statistics, Verdict
from memwatch.record import RecordWriter


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=8640)
    ticks = parser.parse_args().ticks
    process = Process(1, "bench", started=1.8e9)
    summary = ChannelSummary(1e8, 1e8, 1e8, "stable", "stable", 0.0, "resident memory is flat", 1.8e9)
    report = Report(process, Verdict("rss", "stable", reason="flat"), Statistics(1, 1.0, {c.name: summary for c in CHANNELS}))
    wall_s, cpu_s = [], []
    with tempfile.TemporaryDirectory() as directory:
        writer = RecordWriter(Path(directory), process)
        for index in range(ticks):
            values = {channel.name: 1e8 + index for channel in CHANNELS}
            begun, used = time.perf_counter(), time.thread_time()
            writer.write(Sample(1.8e9 + 10 * index, 10.0 * index, values), report)
            wall_s.append(time.perf_counter() - begun)
            cpu_s.append(time.thread_time() - used)
        writer.close()
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
    print(f"one write, CPU                     {statistics.median(cpu_s) * 1e6:8.0f} µs (median of {ticks})")
    late_us = sorted(wall_s)[ticks * 99 // 100] * 1e6
    print(f"one write, wall                    {statistics.median(wall_s) * 1e6:8.0f} µs (99 %: {late_us:.0f})")
    print(f"file after {ticks} samples           {size / 2**20:8.2f} MiB")


if __name__ == "__main__":
    main()
