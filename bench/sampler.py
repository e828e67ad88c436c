"""What the sampler costs and how right it is, on the running Python, beside an empty hook, tracemalloc and memray.

    python bench/sampler.py [instructions] [time] [accuracy] [--quick | --all] [--rounds N]      default: all three

instructions: executed by the workload alone (a run of N rounds less a run without any, under valgrind's callgrind), relative to no
hook. The empty hook passes every call through: what any hook costs at least. Exact, but for about half a percent that the layout of
the heap makes.
time: CPU seconds of the same workloads in one process, with and without in turn (A B A B …), the median of the ratios.
accuracy: root mean square error of live bytes per site, 20 sites of 5 MB, against the truth, with the theory's sqrt(R / L).

Needs gcc (the empty hook is compiled here); instructions need valgrind; memray is left out where it is not installed. On an idle
machine --quick takes about 3 minutes, the default 8, --all half an hour.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EMPTY_HOOK = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static PyMemAllocatorEx old[3];
static const PyMemAllocatorDomain domains[3] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
#define HOOKS(d) \
static void *m##d(void *c, size_t n) { (void)c; return old[d].malloc(old[d].ctx, n); } \
static void *c##d(void *c, size_t n, size_t s) { (void)c; return old[d].calloc(old[d].ctx, n, s); } \
static void *r##d(void *c, void *p, size_t n) { (void)c; return old[d].realloc(old[d].ctx, p, n); } \
static void f##d(void *c, void *p) { (void)c; old[d].free(old[d].ctx, p); }
HOOKS(0) HOOKS(1) HOOKS(2)
static PyObject *start(PyObject *self, PyObject *all) {
    PyMemAllocatorEx ours[3] = {{NULL, m0, c0, r0, f0}, {NULL, m1, c1, r1, f1}, {NULL, m2, c2, r2, f2}};
    for (int d = 0; d < 3; d++) {
        PyMem_GetAllocator(domains[d], &old[d]);
        ours[d].ctx = old[d].ctx;
        if (d != 0 && !PyObject_IsTrue(all)) ours[d].free = old[d].free;   /* as the sampler does over pymalloc */
        PyMem_SetAllocator(domains[d], &ours[d]);
    }
    Py_RETURN_NONE;
}
static PyObject *stop(PyObject *self, PyObject *none) {
    for (int d = 0; d < 3; d++) PyMem_SetAllocator(domains[d], &old[d]);
    Py_RETURN_NONE;
}
static PyMethodDef methods[] = {{"start", start, METH_O, ""}, {"stop", stop, METH_NOARGS, ""}, {NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "empty_hook", NULL, -1, methods};
PyMODINIT_FUNC PyInit_empty_hook(void) { return PyModule_Create(&definition); }
"""


# --- Workloads: one round each, of a few milliseconds ----------------------------------------------------


class Item:
    def __init__(self, number: int) -> None:
        self.number = number
        self.next: Item | None = None


def object_churn() -> object:
    head = None
    for number in range(3000):
        item = Item(number)
        if number % 10:
            item.next = head
        head = item if number % 100 else None
    return head


DOCUMENT = {"users": [{"id": n, "name": f"user {n}", "tags": ["a", "b", str(n)], "score": n * 1.5} for n in range(60)]}


def json_mix() -> object:
    return json.loads(json.dumps(DOCUMENT))


def dicts_and_lists() -> object:
    return [{"key": number, "values": [number, number + 1, number + 2], "more": (number, None)} for number in range(1500)]


def strings() -> object:
    parts = [f"{number:06d}-{number * 7}" for number in range(1500)]
    return ",".join(parts).upper().split(",")


def request_like() -> object:
    answers = []
    for number in range(40):
        query = dict(pair.split("=") for pair in f"user={number}&page=2&sort=name&limit=20".split("&"))
        rows: list[dict[str, Any]] = [
            {"id": row, "title": f"row {row} of {query['user']}", "open": row % 2 == 0} for row in range(int(query["limit"]))
        ]
        found = sorted((row for row in rows if re.match(r"row \d+", str(row["title"]))), key=lambda row: -int(row["id"]))
        answers.append(json.dumps({"page": query["page"], "rows": found}))
    return answers


def int_loop() -> object:
    """The worst case: nothing but allocations of small integers."""
    total = 0
    for number in range(20_000):
        total += number + 1000
    return total


WORKLOADS: dict[str, Callable[[], object]] = {
    "object churn": object_churn,
    "json mix": json_mix,
    "dicts and lists": dicts_and_lists,
    "strings": strings,
    "request-like": request_like,
    "tight int loop": int_loop,
}


# --- Who watches -----------------------------------------------------------------------------------------


def build_empty_hook(directory: Path) -> None:
    source = directory / "empty_hook.c"
    source.write_text(EMPTY_HOOK)
    target = directory / f"empty_hook{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_paths()["include"]
    subprocess.run(["gcc", "-O2", "-w", "-shared", "-fPIC", f"-I{include}", "-o", target, source], check=True)


def switch(who: str, on: bool, keep: dict[str, Any]) -> None:
    name, _, argument = who.partition(" ")
    if name == "empty":
        import empty_hook  # type: ignore[import-not-found]

        empty_hook.start(argument == "all") if on else empty_hook.stop()
    elif name == "sampler":
        from memwatch.evidence import _sampler as sampler

        sampler.start(int(argument) * 1024) if on else sampler.stop()
    elif name == "tracemalloc":
        tracemalloc.start(int(argument)) if on else tracemalloc.stop()
    elif name == "memray":
        import memray

        if on:
            keep["file"] = os.path.join(tempfile.mkdtemp(dir=os.environ["SAMPLER_BENCH"]), "out.bin")  # noqa: PTH118
            keep["tracker"] = memray.Tracker(keep["file"], trace_python_allocators=True)
            keep["tracker"].__enter__()
        else:
            keep["tracker"].__exit__(None, None, None)
            os.unlink(keep["file"])  # noqa: PTH108


def watchers(every: bool) -> list[str]:
    found = ["empty malloc", "sampler 64", "tracemalloc 1"]
    if every:
        found += ["empty all", "sampler 16", "sampler 512", "tracemalloc 25"]  # the last takes minutes per workload
    return found + (["memray"] if importlib.util.find_spec("memray") else [])


LABELS = {"empty malloc": "empty hook", "empty all": "…and free", "sampler 64": "sampler 64K", "sampler 16": "16K",
          "sampler 512": "512K", "tracemalloc 1": "tracemalloc", "tracemalloc 25": "…25 frames"}  # fmt: skip


def table(title: str, columns: list[str], rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    print(f"{'workload':<18}" + "".join(f"{LABELS.get(column, column):>13}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<18}" + "".join(f"{row[column]:>13.3f}" if column in row else f"{'–':>13}" for column in columns))
    means = {column: math.exp(sum(math.log(row[column]) for row in rows.values()) / len(rows)) for column in columns}
    print(f"{'geometric mean':<18}" + "".join(f"{means[column]:>13.3f}" for column in columns), flush=True)


# --- The three measurements ------------------------------------------------------------------------------


def count_instructions(who: str, workload: str, rounds: int, directory: Path) -> int:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "SAMPLER_BENCH": str(directory), "PYTHONPATH": f"{directory}:{ROOT}"}
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
         sys.executable, __file__, "--child", who, workload, str(rounds)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"valgrind failed with {who} on {workload}:\n{done.stderr[-2000:]}")
    return int(found.group(1))


def child(who: str, workload: str, rounds: int) -> None:
    # Everything is imported whoever watches: the heap must look the same, or pymalloc's pools make differences of some percent.
    import empty_hook  # noqa: F401

    from memwatch.evidence import _sampler  # noqa: F401

    if who == "memray":
        import memray  # noqa: F401
    run = WORKLOADS[workload]
    run(), run()  # inline caches and specialisation
    keep: dict[str, Any] = {}
    switch(who, True, keep)
    run()
    for _ in range(rounds):
        run()
    sys.stdout.flush()
    os._exit(0)


def instructions(directory: Path, rounds: int, columns: list[str]) -> None:
    rows: dict[str, dict[str, float]] = {}
    for workload in WORKLOADS:
        costs = {}
        for who in ["bare", *columns]:
            few, many = (count_instructions(who, workload, number, directory) for number in (0, rounds))
            costs[who] = many - few
        rows[workload] = {who: costs[who] / costs["bare"] for who in columns}
        print(f"  {workload}: " + ", ".join(f"{who} {ratio:.3f}" for who, ratio in rows[workload].items()), flush=True)
    table(f"Instructions relative to no hook, {rounds} rounds", columns, rows)
    over = {workload: {"sampler/empty": row["sampler 64"] / row["empty malloc"]} for workload, row in rows.items()}
    table("Sampler at 64 KiB relative to the empty hook", ["sampler/empty"], over)


def cpu_time(directory: Path, rounds: int, columns: list[str]) -> None:
    os.environ["SAMPLER_BENCH"] = str(directory)
    rows: dict[str, dict[str, float]] = {}
    for workload, run in WORKLOADS.items():
        rows[workload] = {}
        started = time.process_time()
        for _ in range(5):
            run()
        repeat = max(1, int(0.1 / max((time.process_time() - started) / 5, 1e-6)))

        def cost(run: Callable[[], object] = run, repeat: int = repeat) -> float:
            begun = time.process_time()
            for _ in range(repeat):
                run()
            return time.process_time() - begun

        for who in columns:
            ratios: list[float] = []
            for _ in range(rounds if not who.startswith(("tracemalloc", "memray")) else max(3, rounds // 4)):
                bare = cost()
                keep: dict[str, Any] = {}
                switch(who, True, keep)
                watched = cost()
                switch(who, False, keep)
                ratios.append(watched / min(bare, cost()) if not ratios else watched / bare)
            rows[workload][who] = sorted(ratios)[len(ratios) // 2]
    table(f"CPU time relative to no hook, median of {rounds} turns", columns, rows)


SITES = 20
SITE_BYTES = 5_000_000


def accuracy(repeats: int) -> None:
    from memwatch.evidence import _sampler as sampler

    sizes = [20, 60, 150, 300, 450, 700, 2000, 9000, 30000, 90000] * (SITES // 10)
    lines = "".join(
        f"def site_{number}(count):\n"
        f" made = [None] * count\n"
        f" for place in range(count):\n"
        f"  made[place] = bytes({size})\n"
        f" return made\n"
        for number, size in enumerate(sizes)
    )
    space: dict[str, Any] = {}
    exec(compile(lines, "sites.py", "exec"), space)
    print(f"\nError of live bytes per site, {SITES} sites of {SITE_BYTES / 1e6:g} MB of blocks of 20 B to 90 kB, {repeats} repeats")
    print(
        f"{'mean':>8}{'rms error':>12}{'theory':>10}{'small only':>12}{'sqrt(R/L)':>12}{'bias':>9}{'± (1 s.e.)':>12}{'samples':>10}"
    )
    for kib in (16, 32, 64, 128, 256, 512):
        errors, expected, small, samples = [], [], [], 0.0
        for _ in range(repeats):
            sampler.start(kib * 1024)
            kept, truths = [], []
            for number, size in enumerate(sizes):
                kept.append(space[f"site_{number}"](SITE_BYTES // (size + 33)))
                truths.append(sum(map(sys.getsizeof, kept[-1])))
            found = [0.0] * SITES
            for key, size_bytes, _, count, _, _ in sampler.live():
                samples += count
                for filename, name, _ in sampler.stack(key) or ():
                    if filename == "sites.py":
                        found[int(name.removeprefix("site_"))] += size_bytes
                        break
            sampler.stop()
            for number, size in enumerate(sizes):
                count = len(kept[number])
                holder = sys.getsizeof(kept[number])  # the list itself: one block
                mean = kib * 1024.0
                p, q = -math.expm1(-(size + 33) / mean), -math.expm1(-holder / mean)
                truth = truths[number] + holder
                errors.append(found[number] / truth - 1)
                expected.append((count * (size + 33) ** 2 * (1 - p) / p + holder**2 * (1 - q) / q) / truth**2)
                if size <= 450:
                    small.append(errors[-1])
            del kept
        rms = math.sqrt(sum(error**2 for error in errors) / len(errors))
        theory = math.sqrt(sum(expected) / len(expected))
        rms_small = math.sqrt(sum(error**2 for error in small) / len(small))
        bias = sum(errors) / len(errors)
        print(f"{kib:>7}K{rms:>12.3f}{theory:>10.3f}{rms_small:>12.3f}{math.sqrt(kib * 1024 / SITE_BYTES):>12.3f}"
              f"{bias:>+9.4f}{theory / math.sqrt(len(errors)):>12.4f}{samples / repeats:>10.0f}", flush=True)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["instructions", "time", "accuracy", []], default=[])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and only the empty hook and the default mean")
    parser.add_argument("--all", action="store_true", help="other means too, an empty hook of free, tracemalloc with 25 frames")
    parser.add_argument("--rounds", type=int, help="of each workload under callgrind, and turns of A B")
    options = parser.parse_args()
    what = options.what or ["instructions", "time", "accuracy"]
    columns = ["empty malloc", "sampler 64"] if options.quick else watchers(options.all)
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    directory = Path(tempfile.mkdtemp(prefix="sampler-bench-"))
    try:
        build_empty_hook(directory)
        sys.path.insert(0, str(directory))
        if "instructions" in what:
            if shutil.which("valgrind"):
                instructions(directory, options.rounds or (5 if options.quick else 10), columns)
            else:
                print("\nno valgrind: no instructions counted")
        if "time" in what:
            cpu_time(directory, options.rounds or (9 if options.quick else 21), columns)
        if "accuracy" in what:
            accuracy(2 if options.quick else 8)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
