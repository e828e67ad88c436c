"""Labelled traces of process life: packed on disk, unpacked to arrays.  Needs numpy; the watched process never does.

A corpus is a folder with `labels.csv` (one row a trace), `traces.npz` (what a detector may see) and `truth.npz` (what it
may not).  Integers are delta and zig-zag coded and split into byte planes, which zip well.
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
DEV = HERE / "traces" / "dev"

CHANNELS = {
    "t": 0.01, "rss": 4096.0, "heap": 1024.0, "file": 4096.0, "blocks": 16.0,
    "fds": 1.0, "threads": 1.0, "cpu": 0.01, "gc2": 1.0, "epoch": 1.0,
}  # fmt: skip
"""Channel to unit: a stored integer times the unit is the reading."""

TRUTH = {"leak": 1024.0, "live": 1024.0}


@dataclass
class Trace:
    """One process, from its start to the end of the recording."""

    id: int
    label: dict[str, Any]
    channels: dict[str, np.ndarray]
    """By name; `t` is seconds since the start.  A channel nobody could read is absent."""
    leak: np.ndarray
    """Bytes leaked so far."""
    live: np.ndarray
    """Bytes in use, were everything collectable collected."""

    @property
    def kind(self) -> str:
        return str(self.label["kind"])

    @property
    def leaks(self) -> bool:
        return bool(self.label["leak"])


def load(folder: Path = DEV) -> list[Trace]:
    """Read a corpus, in the order of its labels."""
    seen, hidden = _unpack(folder / "traces.npz", CHANNELS), _unpack(folder / "truth.npz", TRUTH)
    with (folder / "labels.csv").open(newline="") as file:
        labels = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    traces = []
    for number, label in enumerate(labels):
        channels = {name: seen[name][number] for name in CHANNELS}
        if not label["has_heap"]:
            del channels["heap"], channels["blocks"]
        traces.append(Trace(number, label, channels, hidden["leak"][number], hidden["live"][number]))
    return traces


def decimate(trace: Trace, keep: int) -> Trace:
    """The same life sampled *keep* times more rarely."""
    label = trace.label | {"dt": trace.label["dt"] * keep, "n": trace.label["n"] // keep}
    channels = {name: column[::keep] for name, column in trace.channels.items()}
    return Trace(trace.id, label, channels, trace.leak[::keep], trace.live[::keep])


def compress(trace: Trace, times: float) -> Trace:
    """The same life lived *times* faster: hours become minutes, bytes stay."""
    label = trace.label | {"dt": trace.label["dt"] / times, "onset_s": trace.label["onset_s"] / times if trace.leaks else -1.0}
    channels = trace.channels | {name: trace.channels[name] / times for name in ("t", "cpu")}
    return Trace(trace.id, label, channels, trace.leak, trace.live)


def _number(text: str) -> Any:
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def _unpack(path: Path, units: dict[str, float]) -> dict[str, list[np.ndarray]]:
    packed = np.load(path)
    offsets = packed["offsets"]
    return {name: [np.cumsum(part) * unit for part in _deltas(packed["c_" + name], offsets)] for name, unit in units.items()}


def _deltas(planes: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    zigzag = np.zeros(planes.shape[1], np.int64)
    for number, plane in enumerate(planes):
        zigzag |= plane.astype(np.int64) << (8 * number)
    deltas = (zigzag >> 1) ^ -(zigzag & 1)
    return [deltas[a:b] for a, b in itertools.pairwise(offsets)]
