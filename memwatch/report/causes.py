"""Known causes: growth that others have had before, recognised by what the collectors found, with a link to what its library says.

Law: data.  A cause is named only for growth that is going on, and only by a suspect that holds a good part of it; it is a hint
beside the evidence, never in its place.  Each entry has a report in the tests that it is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memwatch.model import NAMES_A_LEAK, Evidence, Report, Suspect

UNSURE_BELOW = 0.5
"""A cause that no suspect names (the interpreter, the allocator) is offered only while less than this part is explained."""
MANY_THREADS = 16
"""Guess: from here on glibc's arenas (up to 8 for each CPU, one for each thread before that) hold memory that matters."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One known cause."""

    name: str
    sentence: str
    """What happens, and what to do about it."""
    link: str
    """Documentation of the library."""
    matches: Callable[[Report], bool]


def known_causes(report: Report) -> tuple[Cause, ...]:
    """The known causes that the evidence of *report* names, in the order of the table; none for what does not grow."""
    if report.verdict.state not in ("growing", "leaking", "recovering") or report.is_evidence_earlier:
        return ()
    return tuple(cause for cause in CAUSES if cause.matches(report))


def _material(evidence: Evidence) -> Iterator[Suspect]:
    """The suspects that hold a good part of the growth; where no share is known, the first three."""
    for place, suspect in enumerate(evidence.suspects):
        if suspect.share >= NAMES_A_LEAK if suspect.share is not None else place < 3:
            yield suspect


def _says(pattern: str, *collectors: str, trail: bool = False) -> Callable[[Report], bool]:
    """Whether a suspect that matters says this in its label, or (*trail*, and always for holders) in its trail."""
    expression = re.compile(pattern)

    def matches(report: Report) -> bool:
        return any(
            expression.search(
                " → ".join((suspect.label, *suspect.trail)) if trail or item.collector == "holders" else suspect.label
            )
            for item in report.evidence
            if item.collector in collectors
            for suspect in _material(item)
        )

    return matches


def _either(*predicates: Callable[[Report], bool]) -> Callable[[Report], bool]:
    return lambda report: any(matches(report) for matches in predicates)


def _is_unexplained(report: Report) -> bool:
    return report.explained is None or report.explained < UNSURE_BELOW


def _tasks_grow(report: Report) -> bool:
    return report.verdict.kind == "tasks"


def _arenas_may_grow(report: Report) -> bool:
    threads = report.statistics.channels.get("threads")
    many = threads is not None and threads.current is not None and threads.current >= MANY_THREADS
    return many and report.verdict.kind in ("native", "fragmentation") and _is_unexplained(report)


def _collector_keeps_garbage(report: Report) -> bool:
    version = re.match(r"3\.14\.([0-4])(?!\d)", report.process.python or "")
    return (
        version is not None
        and report.verdict.kind in ("python-heap", "native", "fragmentation", "none")
        and _is_unexplained(report)
    )


CAUSES: tuple[Cause, ...] = (
    Cause(
        "cached calls",
        "functools.cache and lru_cache keep every call's arguments and result, on a method each self too; "
        "give it a small maxsize, or keep the cache on the instance",
        "https://docs.python.org/3/faq/programming.html#faq-cache-method-calls",
        _says(r"_lru_cache_wrapper", "holders", "types"),
    ),
    Cause(
        "logging handlers",
        "a logging handler is added again and again and never removed; add handlers once, when the program starts",
        "https://docs.python.org/3/howto/logging-cookbook.html#patterns-to-avoid",
        _either(
            _says(r"\blogging\b.*\b(handlers|_handlerList|_handlers)\b", "holders"),
            _says(r"^logging\.(handlers\.)?\w*Handler$", "types"),
        ),
    ),
    Cause(
        "loggers",
        "every name that getLogger is called with is kept for ever; use one logger a module, and a LoggerAdapter for what changes",
        "https://docs.python.org/3/howto/logging-cookbook.html#patterns-to-avoid",
        _either(_says(r"\bloggerDict \(dict, \d[\d,]*\d\d ", "holders"), _says(r"^logging\.Logger$", "types")),
    ),
    Cause(
        "asyncio tasks",
        "tasks wait for what never comes and nobody cancels them; end them with what they serve (a TaskGroup, a timeout, cancel())",
        "https://docs.python.org/3/library/asyncio-task.html",
        _tasks_grow,
    ),
    Cause(
        "thread pools",
        "an executor that is made for each call and not shut down keeps its threads; share one, or use it as a context manager",
        "https://docs.python.org/3/library/concurrent.futures.html",
        _says(r"\bconcurrent[./]futures[./]thread\b|\bThreadPoolExecutor-", "resources", trail=True),
    ),
    Cause(
        "children not waited for",
        "a child process that has ended stays until somebody waits for it; call wait() or communicate(), or use Popen in a with",
        "https://docs.python.org/3/library/subprocess.html#subprocess.Popen.wait",
        _says(r"\bchild process that ended and was not waited for", "resources"),
    ),
    Cause(
        "finalizers",
        "weakref.finalize keeps its callback and arguments until the object dies, for ever if they refer to the object",
        "https://docs.python.org/3/library/weakref.html#weakref.finalize",
        _says(r"\bfinalize → _registry\b", "holders"),
    ),
    Cause(
        "warnings",
        "each different text that is warned of is kept; warn with the same text, and log what changes",
        "https://docs.python.org/3/library/warnings.html",
        _says(r"\b__warningregistry__\b", "holders"),
    ),
    Cause(
        "kept exceptions",
        "an exception that is kept keeps its traceback, every frame in it and their local variables",
        "https://docs.python.org/3/library/traceback.html",
        _says(r"^(traceback|frame)$", "types"),
    ),
    Cause(
        "metric labels",
        "every combination of label values is a time series that is kept; label with few values, never with ids or paths",
        "https://prometheus.github.io/client_python/instrumenting/labels/",
        _says(r"\bprometheus_client\b", "holders", "types", "sites"),
    ),
    Cause(
        "telemetry instruments",
        "OpenTelemetry keeps every instrument and every set of attributes; make instruments once, and keep attribute values few",
        "https://opentelemetry-python.readthedocs.io/en/stable/api/metrics.html",
        _says(r"\bopentelemetry[./]sdk[./]metrics\b", "holders", "types", "sites"),
    ),
    Cause(
        "requests sessions",
        "a session for each call keeps its pool of connections until it is closed; share one, or use it as a context manager",
        "https://requests.readthedocs.io/en/latest/user/advanced/",
        _either(
            _says(r"\b(requests\.sessions\.Session|urllib3\.(poolmanager|connectionpool)\.\w+)\b", "types"),
            _says(r"\b(requests|urllib3)/\w", "resources", trail=True),
        ),
    ),
    Cause(
        "aiohttp sessions",
        "a ClientSession for each call keeps its connector until it is closed; share one, or use it as a context manager",
        "https://docs.aiohttp.org/en/stable/client_quickstart.html",
        _says(r"\baiohttp\.(client\.ClientSession|connector\.\w+)\b", "types"),
    ),
    Cause(
        "httpx clients",
        "a client for each call keeps its pool of connections until it is closed; share one, or use it as a context manager",
        "https://www.python-httpx.org/advanced/clients/",
        _says(r"\bhttpx\.(_client\.)?(Client|AsyncClient)\b", "types"),
    ),
    Cause(
        "boto3 clients",
        "a client for each call loads its service's model again; make one a process and share it between threads",
        "https://boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html",
        _says(r"\bbotocore[./]\w", "types", "sites"),
    ),
    Cause(
        "SQLAlchemy session",
        "a Session keeps what is new, changed or deleted, and what you hold of it, until it is committed, expunged or closed",
        "https://docs.sqlalchemy.org/en/20/orm/session_basics.html",
        _says(
            r"\b(sqlalchemy\b.*\bidentity_map|sqlalchemy\.orm\.session\.Session|sqlalchemy\.orm\.identity\.\w+)\b",
            "holders",
            "types",
        ),
    ),
    Cause(
        "pyplot figures",
        "pyplot keeps every figure until it is closed; call pyplot.close(figure), or make a Figure without pyplot",
        "https://matplotlib.org/stable/api/_as_gen/matplotlib.pyplot.close.html",
        _either(_says(r"\bGcf → figs\b", "holders"), _says(r"^matplotlib\.figure\.Figure$", "types")),
    ),
    Cause(
        "malloc arenas",
        "glibc keeps memory in an arena for each of many threads; try MALLOC_ARENA_MAX=2",
        "https://man7.org/linux/man-pages/man3/mallopt.3.html",
        _arenas_may_grow,
    ),
    Cause(
        "CPython 3.14.0 to 3.14.4",
        "the incremental collector of CPython 3.14.0 to 3.14.4 keeps cyclic garbage much longer; upgrade to 3.14.5 or later",
        "https://github.com/python/cpython/issues/142516",
        _collector_keeps_garbage,
    ),
)
