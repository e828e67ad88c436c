"""`memwatch doctor`: what works here and why not."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from memwatch import __version__, config
from memwatch.cli import OK, USAGE, options
from memwatch.cli.screen import is_coloured, put, put_json, width
from memwatch.model import CHANNELS
from memwatch.record import find_records
from memwatch.report.layout import padded, shown, wrapped
from memwatch.report.words import amount
from memwatch.units import format_duration, format_size
from memwatch.vitals import Vitals, all_limits

ABSENT: Mapping[str, str] = {
    "file": "needs /proc",
    "heap": "needs CPython with pymalloc (PYTHONMALLOC decides) and glibc",
    "large_blocks": "needs pymalloc",
    "native": "needs glibc, or psutil 7.2 or later",
    "retained": "needs glibc and pymalloc",
    "sockets": "needs /proc",
    "tasks": "no event loop has run in this process; read in services that have one",
    "uss": "not read: it would hold the memory map too long, or smaps_rollup cannot be read",
    "gc_objects": "not read: it would hold the GIL too long",
    "limit": "no limit was found",
    "pressure": "the kernel has no pressure information (PSI) here",
    "caches": "no memwatch cache is in this process",
}
"""Why a channel is missing, where no source said so itself."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing looked at."""

    name: str
    state: str
    """`ok`, `absent`, `warning` or `info`."""
    text: str

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "text": self.text}


MARKS = {"ok": ("ok", "green"), "absent": ("--", "yellow"), "warning": ("!!", "red"), "info": ("  ", "")}


@click.command("doctor", short_help="What works here and why not.")
@click.option("--json", "as_json", is_flag=True, help="The same as an object, a list of lines per section.")
@options.settings()
def command(as_json: bool, **given: Any) -> int:
    """What works here and why not: Python, vitals, limits, settings, the record directory, known causes, evidence."""
    problem: config.SettingError | None = None
    try:
        loaded = options.load(**given)
    except config.SettingError as error:
        problem, loaded = error, config.Config()
    sections = {
        "python": list(_python()),
        "vitals": list(_vitals()),
        "limits": list(_limits(loaded)),
        "settings": [Line("error", "warning", str(problem))] if problem else list(_settings(loaded)),
        "record": list(_record(loaded)),
        "known causes": list(known_causes(_this_python(), os.environ, os.cpu_count() or 1)),
        "evidence": list(_evidence(loaded)),
    }
    if as_json:
        put_json({name.replace(" ", "_"): [line.to_dict() for line in lines] for name, lines in sections.items()})
    else:
        put("\n".join(_rendered(sections)) + "\n")
    return USAGE if problem else OK


def _rendered(sections: Mapping[str, list[Line]]) -> Iterator[str]:
    columns, colour = width(), is_coloured(sys.stdout)
    yield f"memwatch {__version__}"
    for title, lines in sections.items():
        yield ""
        yield click.style(title, bold=True) if colour else title
        name_width = max((len(line.name) for line in lines), default=0)
        for line in lines:
            mark, tint = MARKS[line.state]
            first = f"  {mark}  {padded(line.name, name_width)}  "
            rest = None if columns >= 72 else " " * 8
            broken = wrapped(shown(line.text), columns, first=first, rest=rest)
            if colour and tint:
                broken[0] = broken[0].replace(mark, click.style(mark, fg=tint), 1)
            yield from broken


def _python() -> Iterator[Line]:
    build = [platform.python_implementation(), platform.python_version()]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        build.append("free-threaded")
    if hasattr(sys, "gettotalrefcount"):
        build.append("debug build")
    yield Line("python", "ok", f"{' '.join(build)}, {sys.executable}")
    libc = " ".join(part for part in platform.libc_ver() if part) or "C library not recognised"
    yield Line("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}, {libc}")
    allocator = os.environ.get("PYTHONMALLOC") or "pymalloc (default)"
    yield Line("allocator", "ok" if "pymalloc" in allocator else "absent", allocator)


def _vitals() -> Iterator[Line]:
    with Vitals() as vitals:
        vitals.read()
        values = dict(vitals.latest) | vitals.read(complete=True)
        failed, cost_s = vitals.failed, vitals.cost_s
    for channel in CHANNELS:
        if channel.name in values:
            yield Line(channel.name, "ok", f"{amount(channel.name, values[channel.name])}: {channel.what}")
        elif channel.name in failed:
            yield Line(channel.name, "absent", failed[channel.name])
        else:
            yield Line(channel.name, "absent", ABSENT.get(channel.name, "not available here"))
    for name, why in failed.items():
        if name not in {channel.name for channel in CHANNELS}:
            yield Line(f"source {name}", "absent", why)
    costs = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in sorted(cost_s.items(), key=lambda item: -item[1]))
    yield Line("cost", "info", f"{format_duration(sum(cost_s.values()))} CPU for one complete reading, in µs: {costs}")


def _limits(loaded: config.Config) -> Iterator[Line]:
    found = sorted(all_limits(), key=lambda limit: limit.bytes)
    if loaded.memory_limit_bytes is not None:
        yield Line(format_size(loaded.memory_limit_bytes), "ok", f"rules: set by {loaded.origins.get('memory_limit', 'default')}")
    for position, limit in enumerate(found):
        rules = position == 0 and loaded.memory_limit_bytes is None
        soft = "" if limit.hard else ", throttles before it kills"
        yield Line(format_size(limit.bytes), "ok" if rules else "info", f"{'rules: ' if rules else ''}{limit.source}{soft}")
    if not found and loaded.memory_limit_bytes is None:
        yield Line("none", "absent", "no limit was found: time to exhaustion is not known; give one with --memory-limit")


def _settings(loaded: config.Config) -> Iterator[Line]:
    for name, value, origin in config.described(loaded):
        yield Line(name, "info", f"{value} ({origin})")
    if config.is_disabled():
        yield Line(config.DISABLE, "warning", "is set: memwatch.start() does nothing")


def _record(loaded: config.Config) -> Iterator[Line]:
    if loaded.directory is False:
        yield Line("directory", "absent", "records are switched off")
        return
    try:
        directory = options.record_directory(loaded)
    except config.SettingError as error:
        yield Line("directory", "warning", str(error))
        return
    existing = directory.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        yield Line("directory", "warning", f"{directory}: {existing} is not a directory")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Line("directory", "warning", f"{directory}: not writable; give another with MEMWATCH_DIR, or MEMWATCH_DIR=off")
    else:
        yield Line("directory", "ok", f"{directory}{'' if directory.exists() else ', made when first needed'}")
        free = shutil.disk_usage(existing).free
        enough = free > 2 * loaded.record_limit_bytes
        yield Line(
            "free space",
            "ok" if enough else "warning",
            f"{format_size(free)}; a record takes at most {format_size(loaded.record_limit_bytes)}",
        )
    yield Line("records", "info", str(len(find_records(directory))))
    if importlib.util.find_spec("sqlite3") is None:
        yield Line("sqlite3", "warning", "this Python was built without it: no records can be written or read")


@dataclass(frozen=True, slots=True)
class Python:
    """What `known_causes` asks about an interpreter."""

    version: tuple[int, int, int]
    free_threaded: bool
    glibc: bool


def _this_python() -> Python:
    return Python(sys.version_info[:3], bool(sysconfig.get_config_var("Py_GIL_DISABLED")), platform.libc_ver()[0] == "glibc")


def known_causes(python: Python, environ: Mapping[str, str], processors: int) -> Iterator[Line]:
    """Growth that is not the program's fault, as far as it can be told from here."""
    if (3, 14, 0) <= python.version <= (3, 14, 4):
        # Reverted in 3.14.5 (May 2026); mypy #21403, botocore #3719.
        yield Line(
            "collector",
            "warning",
            "CPython 3.14.0 to 3.14.4 keep garbage longer (incremental collector): upgrade to 3.14.5 or later",
        )
    if python.free_threaded:
        yield Line(
            "collector", "warning", "free-threaded CPython defers collections: memory is higher than with the GIL (cpython #148937)"
        )
    arenas = environ.get("MALLOC_ARENA_MAX")
    tunables = re.search(r"glibc\.malloc\.arena_max=(\d+)", environ.get("GLIBC_TUNABLES", ""))
    if python.glibc and arenas is None and tunables is None and processors > 1:
        yield Line(
            "malloc",
            "info",
            f"glibc may keep up to {8 * processors} arenas in a threaded program; against fragmentation try MALLOC_ARENA_MAX=2",
        )
    if environ.get("PYTHONMALLOC", "pymalloc").startswith("malloc"):
        yield Line("PYTHONMALLOC", "warning", "pymalloc is off: the Python heap cannot be told from the native one")
    elif "debug" in environ.get("PYTHONMALLOC", ""):
        yield Line("PYTHONMALLOC", "warning", "debug hooks make every block larger")
    if environ.get("PYTHONTRACEMALLOC", "0") not in ("", "0"):
        yield Line("PYTHONTRACEMALLOC", "warning", "tracemalloc keeps a trace for every block: memory grows with the heap")
    if "jemalloc" in environ.get("LD_PRELOAD", "") or "tcmalloc" in environ.get("LD_PRELOAD", ""):
        yield Line("LD_PRELOAD", "info", "another malloc is in use: native memory is read from RSS alone")


def _evidence(loaded: config.Config) -> Iterator[Line]:
    """What grows, where, and held by whom: tried out here, in this process."""
    if loaded.evidence == "off":
        yield Line("evidence", "absent", f"is switched off ({loaded.origins.get('evidence', 'default')})")
        return
    why_no_sampler = _sampler_refusal(loaded)
    every = "64 KiB or more" if loaded.sample_bytes is None else format_size(loaded.sample_bytes)
    if loaded.evidence == "tracemalloc":
        yield Line("sites", "ok", "tracemalloc, while something is suspected: makes a program 2 to 12 times slower meanwhile")
    elif why_no_sampler is None:
        yield Line("sites", "ok", f"the sampler: one allocation in {every} on average is followed")
    else:
        instead = "" if loaded.evidence == "sampling" else "; tracemalloc stands in while a leak is confirmed"
        yield Line("sites", "absent", f"{why_no_sampler}{instead}")
    why_no_child, seconds = _census()
    if why_no_child is None:
        yield Line("types, holders", "ok", f"a forked child counted this process in {format_duration(seconds)}")
    else:
        yield Line("types, holders", "absent", f"{why_no_child}; small heaps are counted in the process itself")
    proc = Path("/proc/self/fd").is_dir()
    yield Line(
        "resources", "ok" if proc else "absent", "descriptors, threads, child processes, asyncio tasks" if proc else "needs /proc"
    )


def _sampler_refusal(loaded: config.Config) -> str | None:
    from memwatch.evidence.sources import Sampling

    try:
        Sampling(loaded.sample_bytes).stop()
    except ImportError as error:
        return f"the sampler is not built here ({error})"
    except (RuntimeError, OSError, ValueError) as error:
        return str(error)
    return None


def _census() -> tuple[str | None, float]:
    """Why no child can look at a heap here, and how long one took."""
    from memwatch.evidence.census import Task
    from memwatch.evidence.child import Child, refusal

    why = refusal(None, None)
    if why is not None:
        return why, 0.0
    began = time.perf_counter()
    try:
        child = Child(Task(list, None, False))
    except (OSError, RuntimeError) as error:
        return f"no child could be forked ({error})", 0.0
    while not child.poll():
        time.sleep(0.005)
    told = any(line.get("what") == "types" for line in child.lines)
    return None if told else f"the child {child.died or 'told nothing'}", time.perf_counter() - began
