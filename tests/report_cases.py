"""Reports to render: one for each thing a report has to be able to say.  Plain data, no process was harmed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from memwatch.model import ChannelSummary, Event, Evidence, Process, Report, Sample, Statistics, Suspect, Verdict
from memwatch.record import RecordWriter

NOW_S = 1_795_334_400.0  # 2026-11-22 08:00:00 UTC
MIB = 1024.0**2
GIB = 1024.0**3


def process(**changed: object) -> Process:
    known: dict[str, object] = {
        "pid": 4242,
        "name": "api-worker",
        "command": ("python", "-m", "gunicorn", "--workers", "4", "app.main:create()"),
        "python": "3.11.7",
        "host": "web-1",
        "labels": {"version": "1.4.2"},
        "started": NOW_S - 3600,
        "ppid": 4200,
        "interval_s": 10.0,
    }
    return Process(**(known | changed))  # type: ignore[arg-type]


def channel(
    current: float,
    *,
    average: float | None = None,
    peak: float | None = None,
    state: str | None = "stable",
    rate: float | None = 0.0,
    taken: float = NOW_S,
) -> ChannelSummary:
    return ChannelSummary(
        current=current,
        average=current if average is None else average,
        peak=current if peak is None else peak,
        state=state,  # type: ignore[arg-type]
        rate=rate,
        taken=taken,
    )


def leak() -> Report:
    rate = 12.4 * MIB / 60
    return Report(
        process=process(),
        verdict=Verdict(
            channel="heap",
            state="leaking",
            direction="increasing",
            rate=rate,
            rate_low=11.8 * MIB / 60,
            rate_high=13.0 * MIB / 60,
            since=NOW_S - 14 * 60,
            grown=173 * MIB,
            limit=2 * GIB,
            exhausted_in_s=64 * 60,
            reason="Python heap has grown steadily by 173 MiB in 14 min, +12.4 MiB/min (95 %: +11.8 MiB/min to +13.0 MiB/min); "
            "the limit is reached in about 64 min",
            kind="python-heap",
            severity="critical",
        ),
        statistics=Statistics(
            360,
            3600.0,
            {
                "rss": channel(1.21 * GIB, average=1.02 * GIB, peak=1.22 * GIB, state="leaking", rate=rate * 1.1),
                "uss": channel(1.18 * GIB, average=1.0 * GIB, state=None, rate=None, taken=NOW_S - 240),
                "heap": channel(980 * MIB, average=870 * MIB, state="leaking", rate=rate),
                "blocks": channel(11_204_332, average=9_800_112, state=None, rate=None),
                "native": channel(96 * MIB),
                "retained": channel(12.2 * MIB, state="growing", rate=rate * 0.02),
                "fds": channel(41, peak=48),
                "threads": channel(9),
                "tasks": channel(17, average=12.4, peak=230),
                "cpu": channel(734.2, state=None, rate=0.12),
                "limit": channel(2 * GIB, state=None, rate=None),
            },
        ),
        evidence=(
            Evidence(
                "sites",
                explains=0.88,
                suspects=(
                    Suspect(
                        "app/sessions.py:48 SessionStore.add",
                        148 * MIB,
                        3_612_996,
                        0.86,
                        ("app/main.py:112 login", "app/web.py:31 Router.dispatch", "app/web.py:12 handle"),
                    ),
                    Suspect("app/audit.py:9 record", 3.6 * MIB, 40_112, 0.02),
                ),
                note="allocations before the watch began are not known",
            ),
            Evidence(
                "types",
                explains=0.93,
                suspects=(
                    Suspect(
                        "app.sessions.Session",
                        157 * MIB,
                        1_204_332,
                        0.91,
                        ("app/sessions.py:48 SessionStore.add", "app/sessions.py:90 SessionStore.restore"),
                    ),
                    Suspect("app.audit.Entry", 3.6 * MIB, 40_112, 0.02, ("app/audit.py:9 record",)),
                    Suspect("tuple", 0.3 * MIB, 801, 0.002),
                ),
            ),
            Evidence(
                "holders",
                explains=0.91,
                suspects=(
                    Suspect("module app.sessions → _STORE (dict, 1,204,332 entries)", 157 * MIB, None, 0.91, ("Session",)),
                    Suspect("class app.audit.Log → recent (list, 40,112 entries)", 3.6 * MIB, None, 0.02, ("Entry",)),
                ),
                note="threads of C libraries were not looked at",
            ),
        ),
        caches=(
            {
                "name": "lookup",
                "kind": "LRUCache",
                "entries": 1000,
                "weight": 1000,
                "maxsize": 1000,
                "bytes": 48 * MIB,
                "is_estimated": False,
                "max_bytes": 64 * MIB,
                "hits": 930,
                "misses": 70,
                "hit_ratio": 0.93,
                "stale_hits": 0,
                "loads": 70,
                "load_errors": 0,
                "load_time_s": 1.2,
                "loading": 0,
                "removals": {"size": 12, "pressure": 300},
                "hook_errors": 0,
                "room": 0.7,
            },
        ),
        events=(
            Event(NOW_S - 3000, "verdict", {"state": "stable", "reason": "resident memory is flat: +0 B in 10 min"}),
            Event(
                NOW_S - 700,
                "verdict",
                {"state": "growing", "reason": "Python heap has grown 40 MiB in 3 min (+12.5 MiB/min); one more look decides"},
            ),
            Event(NOW_S - 500, "verdict", {"state": "leaking", "reason": "Python heap has grown steadily by 60 MiB in 5 min"}),
            Event(NOW_S - 400, "alert", {"alert": "exhaustion", "exhausted_in_s": 3500.0, "channel": "heap"}),
            Event(
                NOW_S - 300,
                "pressure",
                {"level": "warning", "before": "normal", "rss": 1.41 * GIB, "threshold": 1.4 * GIB, "limit": 2 * GIB},
            ),
            Event(
                NOW_S - 299,
                "relief",
                {"step": "app.caches.shrink", "level": "warning", "freed": 200 * MIB, "rss_freed": 180 * MIB},
            ),
            Event(
                NOW_S - 298,
                "relief",
                {
                    "step": "gc.collect and malloc_trim",
                    "level": "warning",
                    "freed": 1.5 * MIB,
                    "rss_freed": 20 * MIB,
                    "collected": 1204,
                    "took_s": 0.182,
                },
            ),
            Event(NOW_S - 100, "plug", {"plug": "app.notify", "error": "ConnectionError: refused", "disabled": True}),
        ),
    )


def a_day(report: Report, *, every_s: float = 10.0) -> Report:
    """The same with a day of readings that end in what it says, and with what happened along them."""
    count = int(86_400 / every_s)
    chance = random.Random(7)
    current = {name: summary.current or 0.0 for name, summary in report.statistics.channels.items()}
    history = []
    for index in range(count):
        part = (index + 1) / count
        values = {"rss": current["rss"] * (0.4 + 0.6 * part + 0.01 * chance.random()), "limit": 2 * GIB}
        values["heap"] = current.get("heap", 0.0) * (0.3 + 0.7 * part + 0.005 * chance.random())
        values["native"] = 96 * MIB + 900_000 * chance.random()
        values["retained"] = 12 * MIB + 400_000 * chance.random()
        values["fds"], values["threads"] = 41.0 + index % 5, 9.0
        if index % 30 == 0:
            values["uss"] = 0.98 * values["rss"]
        history.append(Sample(NOW_S - 86_400 + (index + 1) * every_s, index * every_s, values))
    before = (
        Event(NOW_S - 80_000, "verdict", {"state": "stable", "reason": ""}),
        Event(NOW_S - 40_000, "verdict", {"state": "growing", "reason": "it grows"}),
        Event(NOW_S - 36_000, "verdict", {"state": "leaking", "reason": "it leaks"}),
        Event(NOW_S - 9_000, "pressure", {"level": "warning", "before": "normal", "rss": GIB, "limit": 2 * GIB}),
        Event(NOW_S - 8_990, "relief", {"step": "caches expire", "freed": 5_000_000, "rss_freed": 4_000_000, "took_s": 0.02}),
    )
    growing = report.verdict.state in ("leaking", "growing")
    since = NOW_S - 40_000 if growing else report.verdict.since
    verdict = replace(report.verdict, since=since, grown=0.3 * current.get("heap", 0.0)) if growing else report.verdict
    if growing and "heap" in current:
        rate = 0.7 * current["heap"] / 86_400
        verdict = replace(verdict, rate=rate, rate_low=0.9 * rate, rate_high=1.1 * rate, exhausted_in_s=30_000.0)
    return replace(report, history=tuple(history), events=before + report.events, verdict=verdict)


def lookalike() -> Report:
    return Report(
        process=process(name="search", pid=77, labels={}),
        verdict=Verdict(
            channel="heap",
            state="stable",
            rate=0.3 * MIB / 60,
            rate_low=-0.1 * MIB / 60,
            rate_high=0.7 * MIB / 60,
            since=NOW_S - 1800,
            grown=120 * MIB,
            limit=2 * GIB,
            reason="Python heap grew 120 MiB in 30 min but flattened: a warm-up or a cache that has filled, not a leak",
        ),
        statistics=Statistics(
            360,
            3600.0,
            {
                "rss": channel(310 * MIB, average=280 * MIB, peak=312 * MIB),
                "heap": channel(190 * MIB, average=150 * MIB, rate=0.3 * MIB / 60),
                "limit": channel(2 * GIB, state=None, rate=None),
            },
        ),
        events=(Event(NOW_S - 900, "verdict", {"state": "stable", "reason": "Python heap grew but flattened"}),),
    )


def killed() -> Report:
    whole = leak()
    return Report(
        process=process(
            fate="killed",
            ended=NOW_S + 7,
            end="no goodbye: killed by a signal, or left by os._exit; OOM kills in its control group since: 1",
        ),
        verdict=whole.verdict,
        statistics=Statistics(
            365, 3650.0, {"rss": channel(1.97 * GIB, peak=1.98 * GIB, state="leaking", rate=0.2 * MIB), "limit": channel(2 * GIB)}
        ),
        events=(*whole.events[:3], Event(NOW_S + 7, "end", {"how": "signal 9 (SIGKILL)"})),
    )


def empty() -> Report:
    return Report(
        process=Process(1, "python"),
        verdict=Verdict("rss", "warming-up", reason="no sample was taken yet"),
        statistics=Statistics(0, 0.0, {}),
    )


def tasks() -> Report:
    return Report(
        process=process(name="sse", pid=900, command=("python", "sse.py"), labels={}),
        verdict=Verdict(
            channel="tasks",
            state="leaking",
            direction="increasing",
            rate=25 / 60,
            rate_low=24.2 / 60,
            rate_high=25.9 / 60,
            since=NOW_S - 600,
            grown=251,
            reason="asyncio tasks have grown steadily by 251 in 10 min, +25/min (95 %: +24/min to +26/min)",
            kind="tasks",
            severity="warning",
        ),
        statistics=Statistics(
            360,
            3600.0,
            {
                "rss": channel(88 * MIB, rate=0.01 * MIB),
                "heap": channel(30 * MIB),
                "fds": channel(312, average=180, peak=312, state="growing", rate=20 / 60),
                "threads": channel(3),
                "tasks": channel(267, average=140, peak=267, state="leaking", rate=25 / 60),
            },
        ),
        evidence=(
            Evidence(
                "resources",
                explains=1.0,
                suspects=(
                    Suspect(
                        "task app.sse.watch_changes, waiting in asyncio/queues.py:158 Queue.get",
                        count=250,
                        share=1.0,
                        trail=("app/sse.py:31 stream", "app/sse.py:12 Feed.open"),
                    ),
                ),
            ),
        ),
    )


def native() -> Report:
    """Growth in C: which Python lines ran while it grew is all that can be known."""
    whole = leak()
    return Report(
        process=process(name="thumbs", pid=31, python="3.14.2", labels={}),
        verdict=Verdict(
            channel="native",
            state="leaking",
            direction="increasing",
            rate=3.1 * MIB / 60,
            rate_low=2.7 * MIB / 60,
            rate_high=3.6 * MIB / 60,
            since=NOW_S - 45 * 60,
            grown=140 * MIB,
            limit=2 * GIB,
            exhausted_in_s=5 * 3600,
            reason="malloc in use has grown steadily by 140 MiB in 45 min",
            kind="native",
            severity="warning",
        ),
        statistics=Statistics(
            360,
            3600.0,
            {
                "rss": channel(0.5 * GIB, state="leaking", rate=3.1 * MIB / 60),
                "heap": channel(60 * MIB),
                "native": channel(310 * MIB, average=240 * MIB, state="leaking", rate=3.1 * MIB / 60),
                "threads": channel(48),
            },
        ),
        evidence=(
            Evidence("types", (Suspect("dict", 0.4 * MIB, 900, 0.003),), 0.004),
            Evidence("holders", note="no Python object holds the growth: it is a reference lost in C, or memory of a C library"),
            Evidence(
                "native",
                (
                    Suspect("thumbs/scale.py:77 Scaler.fit", 58 * MIB, None, 0.41, ("thumbs/jobs.py:20 run", "thumbs/main.py:9 f")),
                    Suspect("thumbs/store.py:15 put", 3 * MIB, None, 0.02),
                ),
                0.43,
                "sampled at ticks: a line is named if it was on a stack while native memory grew",
            ),
        ),
        events=whole.events[:1],
    )


def hostile() -> Report:
    """Everything that a process can choose for itself tries to reach the terminal."""
    return Report(
        process=process(
            name="evil\x1b[2J\u202e名前",
            command=("python", "-c", "print('\x1b]0;owned\x07')\n" + "x" * 500, "\udcff"),
            labels={"a|b": "`@everyone` <script>\x9b31m"},
        ),
        verdict=Verdict("rss", "growing", "increasing", 1000.0, reason="fine\x1b[31m"),
        statistics=Statistics(3, 3.0, {"rss": channel(88 * MIB), "no\x1bsuch": channel(3)}),
        evidence=(Evidence("si\x1btes", (Suspect("a\x1b|b", 1.0, 1, 0.5, ("x\x1b",)),), note="n\x1b"),),
        caches=({"name": "c\x1b"},),
        events=(
            Event(NOW_S, "no\x1bte", {"x\x1b": "y\x1b"}),
            Event(NOW_S, "verdict", {"odd\x1b": 1}),
            Event(NOW_S, "end", {"how": "\x1b"}),
        ),
    )


CASES = {"leak": leak, "look-alike": lookalike, "killed": killed, "empty": empty, "tasks": tasks, "native": native}


def finish(writer: RecordWriter, report: Report, at_s: float, ended: str | None) -> Path:
    """What stands in a record behind its samples: what is known, its evidence, and how it ended; the file."""
    writer.write(None, report, report.events)
    if report.evidence:
        writer.write_evidence(at_s, report.fingerprint, report.evidence)
    if ended is not None:
        writer.end(at_s, ended)
    writer.close()
    return writer.path
