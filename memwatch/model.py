"""The nouns of memwatch: plain, frozen, serialisable data.  This module imports nothing of ours.

Law: every class here has `to_dict()` (JSON types only) and `from_dict()`, and `from_dict(to_dict(x)) == x`.  A reader
ignores keys it does not know, so that an older reader opens a newer record of the same schema.  What is read has the types
its fields declare, or reading it is a `ValueError` that names the key: a renderer never meets anything else.  Absent is
absent (or `None`), never 0.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

SCHEMA = 1

State = Literal["warming-up", "stable", "growing", "leaking", "recovering"]
STATES: tuple[State, ...] = ("warming-up", "stable", "growing", "leaking", "recovering")
Direction = Literal["increasing", "decreasing", "stable"]
Kind = Literal["python-heap", "native", "fragmentation", "descriptors", "threads", "tasks", "children", "none"]
KINDS: tuple[Kind, ...] = ("python-heap", "native", "fragmentation", "descriptors", "threads", "tasks", "children", "none")
Severity = Literal["warning", "critical"]
Fate = Literal["running", "exited", "killed"]

NO_GOODBYE = "no goodbye"
"""What `Process.end` begins with where nobody saw the end: the process is gone and said nothing."""

# Worst first: which verdict stands for a whole directory, and what `--fail-on` compares.
SEVERITY_ORDER: tuple[State, ...] = ("leaking", "growing", "recovering", "warming-up", "stable")


@dataclass(frozen=True, slots=True)
class Channel:
    """One quantity a sample can hold."""

    name: str
    unit: Literal["bytes", "count", "seconds", "percent"]
    title: str
    what: str


# The order is the order of columns in a record and of rows in a report.
CHANNELS: tuple[Channel, ...] = (
    Channel("rss", "bytes", "resident memory", "resident bytes"),
    Channel("file", "bytes", "mapped files", "the part of rss that is pages of files and shared memory"),
    Channel("uss", "bytes", "unique memory", "bytes only this process holds (smaps_rollup, read rarely: it is slow)"),
    Channel("heap", "bytes", "Python heap", "live bytes in the Python allocator (pymalloc: blocks up to 512 bytes)"),
    Channel("blocks", "count", "allocator blocks", "live blocks of the Python allocators, large ones included"),
    Channel("large_blocks", "count", "large blocks", "live Python blocks over 512 bytes; their bytes are part of native"),
    Channel("native", "bytes", "malloc in use", "bytes in use in the C library's malloc"),
    Channel("retained", "bytes", "kept by allocators", "bytes malloc and pymalloc keep but nobody uses"),
    Channel("fds", "count", "open descriptors", "open descriptors"),
    Channel("sockets", "count", "open sockets", "open descriptors that are sockets"),
    Channel("threads", "count", "threads", "operating system threads"),
    Channel("children", "count", "child processes", "child processes"),
    Channel("tasks", "count", "asyncio tasks", "asyncio tasks that are not done, over all running loops"),
    Channel("gc_objects", "count", "tracked objects", "objects the cyclic collector tracks (read rarely: it is slow)"),
    Channel("uncollectable", "count", "uncollectable", "objects in gc.garbage"),
    Channel("gc2", "count", "full collections", "full collections since the process started"),
    Channel("cpu", "seconds", "CPU time", "user and system CPU seconds used: the work clock"),
    Channel("limit", "bytes", "memory limit", "effective memory limit"),
    Channel("pressure", "percent", "memory pressure", "PSI some avg10, where the kernel has it"),
    Channel("caches", "bytes", "memwatch caches", "accounted bytes in memwatch caches"),
)
CHANNEL_BY_NAME: Mapping[str, Channel] = {channel.name: channel for channel in CHANNELS}


def iso(time_s: float | None) -> str | None:
    """Render a Unix time as ISO 8601 in UTC with a trailing Z; None stays None.

    What is no moment of the calendar (NaN, infinities, years before 1 and after 9999) is None, too: it never raises.
    """
    if time_s is None:
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


def unix(text: str | None) -> float | None:
    """Parse what `iso` renders.

    Raises:
        ValueError: it is something else.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{_said(text)} is not a time")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{_said(text)} is not a time") from None


DEEPEST = 20
"""Levels of lists and objects in the details of an event, far below where rendering them would meet Python's recursion limit."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "State": STATES,
    "Kind": KINDS,
    "Direction": get_args(Direction),
    "Severity": get_args(Severity),
    "Fate": get_args(Fate),
}


def _plain(cls: type, source: Mapping[str, Any], **converted: Any) -> dict[str, Any]:
    """Keep the keys of *source* that *cls* knows, each checked, with *converted* taking precedence."""
    _object(cls.__name__, source)
    plain = dict(converted)
    for item in fields(cls):
        if item.name in source and item.name not in converted:
            plain[item.name] = _checked(item.name, str(item.type), source[item.name])
        elif item.name not in converted and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{item.name}: is missing")
    return plain


def _checked(key: str, declared: str, value: Any) -> Any:
    """*value* if it is what a field *declared*, as the source says it, may hold."""
    wanted = declared.removesuffix(" | None")
    if value is None and wanted != declared:
        return None
    good = False
    match wanted:
        case "str":
            good = isinstance(value, str)
        case "bool":
            good = isinstance(value, bool)
        case "int":
            good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        case "float":
            finite = _is_finite(value)
            if finite is False and wanted != declared:
                return None  # no number is known: JSON has no word for it, and what wrote one meant that
            good = finite is True
        case "tuple[str, ...]":
            good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
            value = tuple(value) if good else value
        case "Mapping[str, str]":
            good = isinstance(value, Mapping) and all(isinstance(item, str) for pair in value.items() for item in pair)
        case "Mapping[str, float]":
            # Of a day's samples each comes by here: no call of ours per value.
            good = isinstance(value, Mapping) and {*map(type, value)} <= {str} and {*map(type, value.values())} <= {int, float}
            try:
                if good and not all(map(math.isfinite, value.values())):  # not a reading: absent
                    value = {name: item for name, item in value.items() if math.isfinite(item)}
            except OverflowError:  # an integer that no float holds
                good = False
        case "Mapping[str, Any]":
            good = isinstance(value, Mapping) and _is_shallow(value, DEEPEST)
        case _:
            good = isinstance(value, str) and value in _CHOICES[wanted]
    if not good:
        raise ValueError(f"{key}: {_said(value)} is not what it may be ({declared})")
    return value


def _is_finite(value: Any) -> bool | None:
    """Whether a number is finite; None for what is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return None


def _is_shallow(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels > 0 and all(isinstance(key, str) and _is_shallow(item, levels - 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return levels > 0 and all(_is_shallow(item, levels - 1) for item in value)
    return True


def _object(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: {_said(value)} is not an object")
    return value


def _items(source: Mapping[str, Any], key: str) -> Iterable[Any]:
    value = source.get(key)
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{key}: {_said(value)} is not a list")
    return value or ()


def _said(value: Any) -> str:
    """A value that is not accepted, as a message shows it: of lists and objects, and of endless numbers, the type alone."""
    short = isinstance(value, str | bool | float) or value is None or (isinstance(value, int) and abs(value) < 2**63)
    text = repr(value) if short else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of the process.

    A channel that was not read at this tick (too costly to read every time, or not available here) is absent from `values`.
    """

    time_s: float
    """Unix time."""
    uptime_s: float
    """Monotonic seconds since the first sample."""
    values: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"time_s": self.time_s, "uptime_s": self.uptime_s, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_plain(cls, source))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a series does, how fast, and why we say so."""

    channel: str
    state: State
    direction: Direction = "stable"
    rate: float = 0.0
    """Units of the channel per second."""
    rate_low: float | None = None
    rate_high: float | None = None
    """95 % interval of `rate`; None while there is none."""
    since: float | None = None
    """When the growth judged began, on the clock of the samples (Unix time in a running watcher)."""
    grown: float = 0.0
    """Growth since `since`, in units of the channel."""
    limit: float | None = None
    exhausted_in_s: float | None = None
    reason: str = ""
    """One sentence."""
    kind: Kind = "none"
    severity: Severity | None = None
    """`critical` at or above `growth_limit`, or when little time is left; None unless leaking."""
    held: float = 0.0
    """While stable: what a leak that stopped has left and nobody has given back, in units of the channel."""

    def to_dict(self) -> dict[str, Any]:
        result = {item.name: getattr(self, item.name) for item in fields(self)}
        return result | {"since": iso(self.since)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_plain(cls, source, since=unix(source.get("since"))))


@dataclass(frozen=True, slots=True)
class Suspect:
    """One line of evidence.  The only row type, so that every renderer shows every collector."""

    label: str
    bytes: float | None = None
    count: float | None = None
    share: float | None = None
    """Part of the measured growth, 0 to 1."""
    trail: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "bytes": self.bytes, "count": self.count, "share": self.share, "trail": list(self.trail)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_plain(cls, source))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One collector's ranked suspects, and what it could not see."""

    collector: str
    suspects: tuple[Suspect, ...] = ()
    explains: float | None = None
    """Growth explained / growth measured on the verdict's channel."""
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "collector": self.collector,
            "explains": self.explains,
            "note": self.note,
            "suspects": [suspect.to_dict() for suspect in self.suspects],
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        suspects = tuple(Suspect.from_dict(item) for item in _items(_object("evidence", source), "suspects"))
        return cls(**_plain(cls, source, suspects=suspects))


@dataclass(frozen=True, slots=True)
class Census:
    """What is alive at one moment, by type, site and resource: levels, where the evidence of a report is growth.

    The suspects' `bytes` and `count` are what is live; they have no share.  Two of them are what `memwatch diff` compares.
    """

    time_s: float
    """Unix time."""
    evidence: tuple[Evidence, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"time_s": self.time_s, "evidence": [item.to_dict() for item in self.evidence]}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        evidence = tuple(Evidence.from_dict(item) for item in _items(_object("census", source), "evidence"))
        return cls(**_plain(cls, source, evidence=evidence))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a moment: a verdict change, a relief step, a peak, an end.

    `what` is one of `verdict`, `pressure`, `relief`, `alert`, `plug`, `finding`, `block`, `note`, `end`; `details` holds
    JSON types.  In `to_dict` the details stand beside `time` and `what`, so that `event["state"]` works for a verdict.
    """

    time_s: float
    what: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.details) | {"time": iso(self.time_s), "what": self.what}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        details = {key: value for key, value in _object("event", source).items() if key not in ("time", "what")}
        return cls.checked(unix(source.get("time")) or 0.0, source.get("what"), details)

    @classmethod
    def checked(cls, time_s: Any, what: Any, details: Any) -> Self:
        """An event from parts that come from a file.

        Raises:
            ValueError: one of them is not what an event may hold.
        """
        return cls(**_plain(cls, {"time_s": time_s, "what": what, "details": details}))


@dataclass(frozen=True, slots=True)
class Process:
    """Who was watched."""

    pid: int
    name: str
    command: tuple[str, ...] = ()
    python: str | None = None
    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    fate: Fate = "running"
    end: str | None = None
    """How it ended, in words ("exit status 0", "signal 9 (SIGKILL)"); None while it runs or when nobody saw it."""
    ppid: int | None = None
    start_ticks: int | None = None
    """Kernel start time of the process (field 22 of /proc/PID/stat): tells a reused pid from the same process."""
    boot: str | None = None
    """Identity of the boot the start time belongs to."""
    interval_s: float | None = None
    oom_kills: int | None = None
    """OOM kills in the cgroup when the watch began: more of them now, and a death without goodbye has its reason."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """How it was watched: setting to its value as text, with where it came from if that is not the default."""

    def to_dict(self) -> dict[str, Any]:
        result = {item.name: getattr(self, item.name) for item in fields(self)}
        return result | {
            "command": list(self.command),
            "labels": dict(self.labels),
            "settings": dict(self.settings),
            "started": iso(self.started),
            "ended": iso(self.ended),
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(
            **_plain(
                cls,
                source,
                started=unix(source.get("started")),
                ended=unix(source.get("ended")),
            )
        )


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """One channel over the whole watch."""

    current: float | None = None
    average: float | None = None
    peak: float | None = None
    state: State | None = None
    direction: Direction | None = None
    rate: float | None = None
    reason: str | None = None
    taken: float | None = None
    """Unix time of the last reading: channels that are costly to read are read rarely."""

    def to_dict(self) -> dict[str, Any]:
        result = {item.name: getattr(self, item.name) for item in fields(self)}
        return result | {"taken": iso(self.taken)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_plain(cls, source, taken=unix(_object("channel", source).get("taken"))))


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was measured since the watch began."""

    samples: int
    uptime_s: float
    channels: Mapping[str, ChannelSummary]

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "uptime_s": self.uptime_s,
            "channels": {name: summary.to_dict() for name, summary in self.channels.items()},
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        found = _object("channels", source.get("channels") or {})
        channels = {str(name): ChannelSummary.from_dict(item) for name, item in found.items()}
        return cls(**_plain(cls, source, channels=channels))


@dataclass(frozen=True, slots=True)
class Freed:
    """What a collection gave back.  A negative number means that the quantity grew meanwhile (other threads ran)."""

    collected: int
    """Objects the cyclic collector found unreachable."""
    heap_bytes: int | None
    """Live bytes less than before, in the Python allocator and in malloc; None where neither can be read."""
    rss_bytes: int | None
    """Resident bytes less than before; None where it can't be read."""
    trimmed: bool
    """Whether malloc was asked to hand free pages back (glibc only)."""
    took_s: float

    def to_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_plain(cls, source))


@dataclass(frozen=True, slots=True)
class Report:
    """Everything known about one watched process: plain data, rendered elsewhere."""

    process: Process
    verdict: Verdict
    statistics: Statistics
    evidence: tuple[Evidence, ...] = ()
    caches: tuple[Mapping[str, Any], ...] = ()
    routes: tuple[Mapping[str, Any], ...] = ()
    """What each route and job did, those blamed for the growth first, then the busiest: docs/reference/report-schema.md."""
    routes_note: str | None = None
    """Why no route is blamed for growth; None where nothing grows, nobody counts, or one is."""
    events: tuple[Event, ...] = ()
    history: tuple[Sample, ...] = ()
    """Thinned to a few hundred samples; not part of the JSON report (the record has all of them)."""

    censuses: tuple[Census, ...] = ()
    """The newest few, oldest first; not part of the JSON report (the record has all of them)."""
    evidence_taken: float | None = None
    """Unix time at which `evidence` was taken; None where that is not known."""

    @property
    def is_evidence_earlier(self) -> bool:
        """Whether the evidence is of growth that was over before this growth began: the verdict has been `stable` since."""
        taken = self.evidence_taken
        return taken is not None and any(
            event.what == "verdict" and event.details.get("state") in ("stable", "warming-up") and event.time_s > taken
            for event in self.events
        )

    @property
    def explained(self) -> float | None:
        """What part of the growth all collectors together explain, 0 to 1: the best of them, for they look at the same growth
        from several sides.  None if none of them knows."""
        known = [item.explains for item in self.evidence if item.collector in EXPLAINING and item.explains is not None]
        return min(1.0, max(known)) if known else None

    @property
    def fingerprint(self) -> str:
        """Identity of the finding: the same for the same leak on another host, in another process or release.

        Made of the process's name, what `identity` says, and whether it is memory or which resource; never of pids, addresses,
        counts, rates or line numbers.  Nor of the kind of memory: by when that is known differs from one worker to the next.
        """
        what = self.verdict.kind if self.verdict.kind in _RESOURCE_KINDS else "memory"
        text = "\n".join((self.process.name, what, self.identity))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """The most stable name of what leaks: where it accumulates, else who allocates it, else what it is, else the channel."""
        if self.is_evidence_earlier:
            return self.verdict.channel
        order = (("resources",) if self.verdict.kind in _RESOURCE_KINDS else ()) + _IDENTIFYING
        found = [_named(item) for name in order for item in self.evidence if item.collector == name]
        # What holds next to nothing of the growth is there by chance; it names the leak only where nothing else does.
        for item in [item for item in found if _is_large(item)] + found:
            if item.suspects:
                return _identity(item)
        return self.verdict.channel

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "process": self.process.to_dict(),
            "verdict": self.verdict.to_dict(),
            "channels": {name: summary.to_dict() for name, summary in self.statistics.channels.items()},
            "samples": self.statistics.samples,
            "uptime_s": self.statistics.uptime_s,
            "explained": self.explained,
            "evidence_taken": iso(self.evidence_taken),
            "evidence": [item.to_dict() for item in self.evidence],
            "caches": [dict(item) for item in self.caches],
            "routes": [dict(item) for item in self.routes],
            "routes_note": self.routes_note,
            "events": [event.to_dict() for event in self.events],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        schema = _object("report", source).get("schema")
        if schema != SCHEMA:
            raise ValueError(f"this report has schema {_said(schema)}; this memwatch reads schema {SCHEMA}")
        return cls(
            process=Process.from_dict(_object("process", source.get("process"))),
            verdict=Verdict.from_dict(_object("verdict", source.get("verdict"))),
            statistics=Statistics.from_dict(source),
            evidence=tuple(Evidence.from_dict(item) for item in _items(source, "evidence")),
            caches=tuple(_checked("caches", "Mapping[str, Any]", item) for item in _items(source, "caches")),
            routes=tuple(_checked("routes", "Mapping[str, Any]", item) for item in _items(source, "routes")),
            routes_note=_checked("routes_note", "str | None", source.get("routes_note")),
            events=tuple(Event.from_dict(item) for item in _items(source, "events")),
            evidence_taken=unix(source.get("evidence_taken")),
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, curve and evidence, and the whole report as text, which unfolds."""
        from memwatch.report import html

        return html.render_inline(self)

    def render(self, format: str = "text") -> str:
        """Render this report; *format* is one of `memwatch.report.FORMATS`.

        Raises:
            ValueError: the format is not known; the message lists those that are.  Or the format is one of stacks (`speedscope`,
                `collapsed`) and none were taken; the message says why.
        """
        # The one call that points up: the contract puts render() here, and it is loaded only when somebody looks.
        from memwatch import report

        return report.render(self, format)


EXPLAINING = ("sites", "types", "holders", "resources", "native")
"""The collectors whose `explains` is about the growth itself."""
NAMES_A_LEAK = 0.1
"""Guess: a suspect with less of the growth than this is noise beside a leak."""
NEARLY_EQUAL = 0.9
"""Of suspects this near to the largest, small noise decides which one leads, and it is another in each of 40 workers."""
_RESOURCE_KINDS = ("descriptors", "threads", "tasks", "children")
UNHELD = ("nothing ", "a reference held in C", "a holder that was not found")
"""How a holder begins that is no place in the program."""
_IDENTIFYING = ("holders", "sites", "native", "types", "resources")
_SITE = re.compile(r"(.*?):\d+(?: +(.*))?", re.DOTALL)
_BRACKETED = re.compile(r" *\([^()]*\)")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.,_]\d+)*")


def stable_label(collector: str, label: str) -> str:
    """What stays of a suspect's label in another process, on another host, and after lines and counts have changed."""
    if collector in ("sites", "native") and (site := _SITE.fullmatch(label)):
        file = _NUMBER.sub("#", re.split(r"[/\\]", site[1])[-1])
        return f"{file} {site[2] or ''}".rstrip()
    if collector == "holders":
        for _ in range(3):  # brackets in brackets, of a file that may hold anything
            label = _BRACKETED.sub("", label)
    return _NUMBER.sub("#", label)


def _identity(evidence: Evidence) -> str:
    measure = next((name for name in ("share", "bytes", "count") if _largest(evidence, name) > 0), "share")
    least = NEARLY_EQUAL * _largest(evidence, measure)
    leading = [suspect for suspect in evidence.suspects if (getattr(suspect, measure) or 0.0) >= least]
    return min(stable_label(evidence.collector, suspect.label) for suspect in leading)


def _named(evidence: Evidence) -> Evidence:
    """The suspects that name a place, a site, a type or a resource."""
    if evidence.collector != "holders":
        return evidence
    return replace(evidence, suspects=tuple(item for item in evidence.suspects if not item.label.startswith(UNHELD)))


def _is_large(evidence: Evidence) -> bool:
    shares = [suspect.share for suspect in evidence.suspects if suspect.share is not None]
    return not shares or max(shares) >= NAMES_A_LEAK


def _largest(evidence: Evidence, measure: str) -> float:
    return max((getattr(suspect, measure) or 0.0 for suspect in evidence.suspects), default=0.0)


def worst(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The verdict that stands for several: the worst state, among equals the soonest exhaustion."""
    return min(
        verdicts,
        key=lambda verdict: (
            SEVERITY_ORDER.index(verdict.state),
            verdict.severity != "critical",
            verdict.exhausted_in_s if verdict.exhausted_in_s is not None else float("inf"),
        ),
        default=None,
    )
