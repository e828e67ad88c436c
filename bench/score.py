#!/usr/bin/env python3
"""Score leak detectors side by side on labelled traces.

    python bench/score.py                     every detector on the development corpus (235 traces)
    python bench/score.py --every 3           a fast look
    python bench/score.py --detector memwatch one of them; repeat for more; --list names them
    python bench/score.py --families 4        on simulated families that the corpus lacks, 4 seeds each
    python bench/score.py --kinds             a line for each kind of life too

Needs numpy.  The columns are defined in bench/scoring.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import corpus  # noqa: E402
import families  # noqa: E402
import scoring  # noqa: E402
from baselines import DETECTORS  # noqa: E402

_traces: list[corpus.Trace] = []
_only: list[str] | None = None


def _score(task: tuple[str, int]) -> scoring.Score:
    name, number = task
    return scoring.score(_traces[number], DETECTORS[name], _only)


def run(name: str, workers: int) -> list[scoring.Score]:
    """Score one detector over the traces loaded; workers inherit them by fork."""
    tasks = [(name, number) for number in range(len(_traces))]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return pool.map(_score, tasks, chunksize=4)


def main() -> None:
    global _only
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path, default=corpus.DEV, help="folder of a corpus")
    parser.add_argument("--detector", action="append", choices=DETECTORS, metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0, help="with --every: which of them (cross-validation)")
    parser.add_argument("--families", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--decimate", type=int, default=1, metavar="N", help="take every Nth sample only")
    parser.add_argument("--compress", type=float, default=1.0, metavar="K", help="let time pass K times faster")
    parser.add_argument("--channels", help="comma-separated; what a detector may see (default: all)")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.list:
        print(*DETECTORS, sep="\n")
        return
    _only = options.channels.split(",") if options.channels else None
    if options.families:
        _traces[:] = families.generate(range(options.first_seed, options.first_seed + options.families))
    else:
        _traces[:] = corpus.load(options.corpus)
    _traces[:] = _traces[options.offset :: options.every]
    if options.decimate > 1:
        _traces[:] = [corpus.decimate(trace, options.decimate) for trace in _traces]
    if options.compress != 1.0:
        _traces[:] = [corpus.compress(trace, options.compress) for trace in _traces]
    print(f"{len(_traces)} traces, {sum(trace.leaks for trace in _traces)} with a leak")
    print(scoring.HEADER, flush=True)
    for name in options.detector or DETECTORS:
        scores = run(name, options.workers)
        print(scoring.line(name, scoring.summarise(scores)), flush=True)
        if options.kinds:
            print(scoring.by_kind(scores), flush=True)


if __name__ == "__main__":
    main()
