#!/usr/bin/env python3
"""Route attribution against hostile noise: how often the leaking route is found, another one blamed, and the interval right.

    bench/attribution.py [--runs 200] [--rows 120] [--routes 8] [--seed 1] [--only NAME] [--cost]

Simulated readings go through memwatch/routes/regression.py as they are.  One route leaks 2,048 or 8,192 bytes per request, or
nothing does.  *found*: the leaking route is blamed, alone or in a group of at most four that is said to be inseparable; *alone*: by
itself.  *false*: a route that does not leak is blamed, in no group with the leaking one.  *covers*: the 95 % interval of the
leaking route's bytes per request holds the truth, where it is judged alone.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable

from memwatch.routes.regression import attribute

KB = 1024.0
MB = 1024.0**2

Noise = Callable[[random.Random, list[list[int]], int], list[float]]
"""Random numbers, requests per route and window, windows: the level's noise in bytes."""


def white(rng: random.Random, counts: list[list[int]], rows: int, size: float = 200 * KB) -> list[float]:
    return [rng.gauss(0, size) for _ in range(rows)]


def walk(rng: random.Random, counts: list[list[int]], rows: int, size: float = 60 * KB) -> list[float]:
    level, levels = 0.0, []
    for _ in range(rows):
        level += rng.gauss(0, size)
        levels.append(level)
    return levels


def both(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    return added(white(rng, counts, rows, 150 * KB), walk(rng, counts, rows, 40 * KB))


def sticky(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    level, levels = 0.0, []
    for _ in range(rows):
        level = 0.9 * level + rng.gauss(0, 80 * KB)
        levels.append(level)
    return levels


def warm_up(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """A cache that one route fills, and a process that warms up."""
    cached, full = counts[rng.randrange(len(counts))], rng.uniform(0.05, 0.4) * rows
    done, levels = 0.0, []
    for row in range(rows):
        done += cached[row] / (sum(cached) / rows or 1.0)
        levels.append(8 * MB * (1 - math.exp(-done / full)) + 3 * MB * (1 - math.exp(-row / 10)))
    return added(levels, both(rng, counts, rows))


def steps(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """Arenas, tables that double, modules loaded late: jumps of 0.25 to 4 MiB."""
    level, levels = 0.0, []
    for _ in range(rows):
        if rng.random() < 0.04:
            level += rng.choice((0.25, 0.5, 1, 2, 4)) * MB
        levels.append(level)
    return added(levels, white(rng, counts, rows, 80 * KB))


def rounding(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    return white(rng, counts, rows, 40 * KB)


def garbage(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """One route makes garbage in cycles, 8 KiB per request; the collector takes it every 4 to 20 windows."""
    dirty, level, levels = counts[rng.randrange(len(counts))], 0.0, []
    every = rng.uniform(4, 20)
    for row in range(rows):
        level += 8 * KB * dirty[row]
        if rng.random() < 1 / every:
            level = 0.0
        levels.append(level)
    return added(levels, both(rng, counts, rows))


def load(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """Memory of requests in flight: with the load of the window, not with the sum of requests."""
    worth = [rng.uniform(0, 20 * KB) for _ in counts]
    return added(
        [sum(w * column[row] for w, column in zip(worth, counts, strict=True)) for row in range(rows)], both(rng, counts, rows)
    )


def background(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """Something leaks with time, whatever is requested."""
    speed = rng.uniform(50, 400) * KB
    return added([speed * row for row in range(rows)], both(rng, counts, rows))


def shifts(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """Levels that change for a while and come back: temporary work of 1 to 6 MiB."""
    levels = [0.0] * rows
    for _ in range(max(1, rows // 30)):
        begin, length, size = rng.randrange(rows), rng.randrange(1, 12), rng.uniform(1, 6) * MB
        for row in range(begin, min(rows, begin + length)):
            levels[row] += size
    return added(levels, both(rng, counts, rows))


def heavy(rng: random.Random, counts: list[list[int]], rows: int) -> list[float]:
    """A walk whose steps have fat tails (Student's t with 3 degrees of freedom)."""
    level, levels = 0.0, []
    for _ in range(rows):
        level += 30 * KB * rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2) / 3)
        levels.append(level)
    return levels


def added(*parts: list[float]) -> list[float]:
    return [sum(values) for values in zip(*parts, strict=True)]


NOISES: dict[str, Noise] = {
    "white": white,
    "walk": walk,
    "white and walk": both,
    "autoregressive 0.9": sticky,
    "warm-up": warm_up,
    "allocator steps": steps,
    "garbage in cycles": garbage,
    "memory with load": load,
    "leak with time": background,
    "temporary work": shifts,
    "walk, fat tails": heavy,
}


def poisson(rng: random.Random, mean: float) -> int:
    if mean > 30:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def independent(rng: random.Random, routes: int, rows: int) -> list[list[int]]:
    """Every route has its own slow waves about its mean."""
    counts = []
    for _ in range(routes):
        mean, level, column = math.exp(rng.uniform(math.log(10), math.log(200))), 0.0, []
        for _ in range(rows):
            level = 0.8 * level + rng.gauss(0, 0.15)
            column.append(poisson(rng, mean * math.exp(level)))
        counts.append(column)
    return counts


def common(rng: random.Random, routes: int, rows: int) -> list[list[int]]:
    """One tide lifts all routes; beyond it only chance tells them apart."""
    level, tide = 0.0, []
    for row in range(rows):
        level = 0.9 * level + rng.gauss(0, 0.15)
        tide.append(math.exp(level + 0.5 * math.sin(row / rows * 6.3)))
    means = [math.exp(rng.uniform(math.log(10), math.log(200))) for _ in range(routes)]
    return [[poisson(rng, mean * tide[row]) for row in range(rows)] for mean in means]


def steady(rng: random.Random, routes: int, rows: int) -> list[list[int]]:
    """A load generator: constant means, only chance varies."""
    means = [math.exp(rng.uniform(math.log(10), math.log(200))) for _ in range(routes)]
    return [[poisson(rng, mean) for _ in range(rows)] for mean in means]


def pairs(rng: random.Random, routes: int, rows: int) -> list[list[int]]:
    """Every second route is called once for each call of the one before it, but for one in a hundred."""
    counts = independent(rng, routes, rows)
    for place in range(1, routes, 2):
        counts[place] = [sum(rng.random() > 0.01 for _ in range(count)) for count in counts[place - 1]]
    return counts


TRAFFIC = {"independent": independent, "common tide": common, "steady": steady, "in proportion": pairs}


def one(
    rng: random.Random, noise: Noise, traffic: str, leak: float, routes: int, rows: int
) -> tuple[bool, bool, bool, bool | None]:
    counts = TRAFFIC[traffic](rng, routes, rows)
    guilty = rng.randrange(routes)
    cumulative = []
    for column in counts:
        total, sums = 0, []
        for count in column:
            total += count
            sums.append(float(total))
        cumulative.append(sums)
    floor = noise(rng, counts, rows)
    levels = [50 * MB + leak * cumulative[guilty][row] + floor[row] for row in range(rows)]
    found = attribute([10.0 * row for row in range(rows)], cumulative, levels)
    blamed = [effect.members for effect in found.effects if effect.blamed]
    right = leak > 0 and any(guilty in members for members in blamed)
    wrong = any(guilty not in members or leak == 0 for members in blamed)
    own = next((effect for effect in found.effects if effect.members == (guilty,)), None)
    alone = leak > 0 and (guilty,) in blamed
    return right, alone, wrong, None if own is None else own.low <= leak <= own.high


def cost() -> None:
    rng = random.Random(1)
    for routes in (4, 8, 16, 30):
        took = []
        for _ in range(10):
            began = time.perf_counter()
            one(rng, both, "independent", 2048, routes, 120)
            took.append(time.perf_counter() - began)
        print(f"{routes:3d} routes, 120 readings: {sorted(took)[5] * 1000:6.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--routes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="noises whose name holds this")
    parser.add_argument("--traffic", choices=TRAFFIC, help="one kind of traffic")
    parser.add_argument("--cost", action="store_true", help="print what one look costs, and end")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
    print(f"{options.runs} runs each, {options.routes} routes, {options.rows} readings; per cent")
    head = " | ".join(f"{size} KB: found alone false covers".rjust(31) for size in (2, 8))
    print(f"{'noise':20} {'traffic':14} | {head} | none: false")
    for name, noise in NOISES.items():
        if options.only and options.only not in name:
            continue
        for traffic in TRAFFIC if options.traffic is None else (options.traffic,):
            cells = []
            for leak in (2048.0, 8192.0, 0.0):
                rng = random.Random(f"{options.seed} {name} {traffic} {leak}")
                results = [one(rng, noise, traffic, leak, options.routes, options.rows) for _ in range(options.runs)]
                share = [100 * sum(result[place] for result in results) / len(results) for place in (0, 1, 2)]
                known = [result[3] for result in results if result[3] is not None]
                covers = f"{100 * sum(known) / len(known):6.1f}" if known else "     –"
                cells.append(f"{share[0]:11.1f} {share[1]:5.1f} {share[2]:5.1f} {covers}" if leak else f"{share[2]:11.1f}")
            print(f"{name:20} {traffic:14} | {' | '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
