from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwatch.model import (
    SCHEMA,
    Census,
    ChannelSummary,
    Event,
    Evidence,
    Freed,
    Process,
    Report,
    Sample,
    Statistics,
    Suspect,
    Verdict,
    iso,
    unix,
    worst,
)

VERDICT = Verdict(
    "heap", "leaking", "increasing", 216800.0, 206000.0, 227000.0, since=1_800_000_000.5, grown=182e6, limit=2.0**31,
    exhausted_in_s=3840.0, reason="it grows", kind="python-heap", severity="critical",
)  # fmt: skip
PROCESS = Process(4242, "api", ("python", "app.py"), "3.11.7", "web-1", {"version": "1"}, started=1_800_000_000.0)
REPORT = Report(
    PROCESS,
    VERDICT,
    Statistics(7, 60.0, {"rss": ChannelSummary(3.0, 2.0, 4.0, "leaking", "increasing", 1.5, "why", taken=1_800_000_000.0)}),
    evidence=(Evidence("sites", (Suspect("app/sessions.py:48 SessionStore.add", 168e6, 1_204_332, 0.91, ("a", "b")),), 0.93),),
    events=(Event(1_800_000_000.25, "verdict", {"state": "leaking"}),),
)


@pytest.mark.parametrize(
    "thing",
    [Sample(1.5, 0.5, {"rss": 3.0}), VERDICT, PROCESS, REPORT, REPORT.statistics, REPORT.evidence[0], REPORT.events[0],
     Freed(3, 4, None, True, 0.1), Census(1.5, REPORT.evidence)],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_everything_survives_json(thing) -> None:
    assert type(thing).from_dict(json.loads(json.dumps(thing.to_dict()))) == thing


def test_a_reader_ignores_keys_it_does_not_know() -> None:
    assert Verdict.from_dict(VERDICT.to_dict() | {"colour": "red"}) == VERDICT


def test_the_json_report_has_the_keys_of_schema_1() -> None:
    report = REPORT.to_dict()
    assert report["schema"] == SCHEMA == 1
    assert {"process", "verdict", "channels", "evidence", "caches", "events", "fingerprint"} <= set(report)
    assert {"pid", "name", "command", "python", "host", "labels", "started", "ended", "fate"} <= set(report["process"])
    assert {
        "state", "kind", "channel", "direction", "rate", "rate_low", "rate_high", "since", "grown", "limit", "exhausted_in_s",
        "severity", "reason",
    } <= set(report["verdict"])  # fmt: skip
    assert {"state", "rate", "current", "average", "peak"} <= set(report["channels"]["rss"])
    assert report["explained"] == 0.93
    assert {"collector", "explains", "note", "suspects"} == set(report["evidence"][0])
    assert {"label", "bytes", "count", "share", "trail"} == set(report["evidence"][0]["suspects"][0])
    assert report["events"][0]["state"] == "leaking"
    assert report["process"]["started"].endswith("Z")


def test_a_report_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema 2"):
        Report.from_dict(REPORT.to_dict() | {"schema": 2})


def test_the_fingerprint_is_the_same_for_the_same_leak_elsewhere_and_differs_for_another() -> None:
    elsewhere = replace(
        REPORT,
        process=replace(PROCESS, pid=1, host="web-2", started=None),
        verdict=replace(VERDICT, rate=1.0, grown=5.0),
        evidence=(Evidence("sites", (Suspect("app/sessions.py:52 SessionStore.add", 1, 1, 0.5, ("a", "c")),)),),
    )
    assert elsewhere.fingerprint == REPORT.fingerprint
    # A worker that has not found out yet what kind of memory it is tells the same leak.
    assert replace(REPORT, verdict=replace(VERDICT, kind="none")).fingerprint == REPORT.fingerprint
    assert replace(REPORT, verdict=replace(VERDICT, kind="descriptors")).fingerprint != REPORT.fingerprint
    other = (Evidence("sites", (Suspect("app/users.py:52 UserStore.add", 1, 1, 0.5, ("a", "c")),)),)
    assert replace(REPORT, evidence=other).fingerprint != REPORT.fingerprint


def found(collector: str, *suspects: Suspect, explains: float | None = None) -> Evidence:
    return Evidence(collector, suspects, explains)


HELD = Suspect("module app.sessions → _STORE (dict, 1,204,332 entries)", 1e6, 9, 0.9, ("Session",))
ADDED = Suspect("app/sessions.py:48 SessionStore.add", 1e6, 9, 0.9, ("app/web.py:12 handle",))


@pytest.mark.parametrize(
    ("evidence", "identity"),
    [
        ((found("types", Suspect("app.Session", 1, 1, 0.9)), found("sites", ADDED), found("holders", HELD)),
         "module app.sessions → _STORE"),
        ((found("types", Suspect("app.Session", 1, 1, 0.9)), found("sites", ADDED)), "sessions.py SessionStore.add"),
        ((found("types", Suspect("app.V2.Session", 1, 1, 0.9)),), "app.V#.Session"),
        ((found("holders"), found("sites")), "heap"),
        ((), "heap"),
        # What holds next to nothing of the growth is not where the leak is.
        ((found("sites", ADDED), found("holders", Suspect("module re → _cache (dict, 3 entries)", 9, 9, 0.01))),
         "sessions.py SessionStore.add"),
        ((found("holders", Suspect("module re → _cache (dict, 3 entries)", 9, 9, 0.01)),), "module re → _cache"),
        ((found("native", Suspect("/srv/a/lib.py:3 load", 9, 9, 0.8)),), "lib.py load"),
        # What no place in the program holds is named by who allocates it.
        ((found("sites", ADDED),
          found("holders", Suspect("nothing but each other: a cycle that the collector has not reached yet", 9, 9, 0.9))),
         "sessions.py SessionStore.add"),
        ((found("holders", Suspect("a reference held in C, to lxml._Document", 9, 9, 0.9)),), "heap"),
    ],
)  # fmt: skip
def test_a_leak_is_named_by_where_it_accumulates_else_who_allocates_it_else_what_it_is(evidence: tuple, identity: str) -> None:
    assert replace(REPORT, evidence=evidence).identity == identity


def test_a_leak_of_descriptors_is_named_by_what_is_open() -> None:
    sockets = found("resources", Suspect("socket to 10.0.0.7:5432 (ESTABLISHED)", None, 40, 1.0))
    leak = replace(REPORT, verdict=replace(VERDICT, kind="descriptors", channel="fds"), evidence=(found("holders", HELD), sockets))
    assert leak.identity == "socket to #:# (ESTABLISHED)"


@given(line=st.integers(1, 10**6), entries=st.integers(0, 10**12), pid=st.integers(1, 2**22), address=st.integers(0, 2**64),
       folder=st.sampled_from(["", "/srv/", "/opt/releases/20261125/"]), data=st.data())  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_fingerprint_survives_lines_counts_addresses_pids_folders_and_the_order_of_equals(
    line: int, entries: int, pid: int, address: int, folder: str, data: st.DataObject
) -> None:
    def leak(line: int, entries: int, address: int, folder: str, collector: str, shares: list[float]) -> Report:
        suspects = {
            "holders": [
                f"module app → _A (dict, {entries:,} entries)",
                f"module app → _B (list at {address:#x}, {entries} entries)",
            ],
            "sites": [f"{folder}app/a.py:{line} add", f"{folder}app/b.py:{line + 1} put"],
            "resources": [f"thread worker-{entries} (target app.run)", f"file /var/log/app-{address:#x}.log"],
        }[collector]
        rows = [Suspect(label, 1.0, entries, share) for label, share in zip(suspects, shares, strict=True)]
        return replace(REPORT, evidence=(found(collector, *sorted(rows, key=lambda row: -(row.share or 0)), explains=0.9),))

    for collector in ("holders", "sites", "resources"):
        shares = data.draw(st.permutations([0.46, 0.44]))
        one = leak(48, 1000, 0x7F00, "", collector, [0.45, 0.45])
        other = leak(line, entries, address, folder, collector, shares)
        other = replace(other, process=replace(PROCESS, pid=pid), verdict=replace(VERDICT, rate=float(line)))
        assert other.fingerprint == one.fingerprint
        one_leads, other_leads = (leak(1, 2, 3, "", collector, shares) for shares in ([0.8, 0.1], [0.1, 0.8]))
        assert one_leads.fingerprint != other_leads.fingerprint


def test_what_is_explained_is_what_the_best_collector_explains_and_never_more_than_all() -> None:
    assert REPORT.explained == 0.93
    assert replace(REPORT, evidence=()).explained is None
    assert replace(REPORT, evidence=(found("sites", explains=0.4), found("types", explains=1.3))).explained == 1.0
    assert replace(REPORT, evidence=(found("caches", explains=0.4),)).explained is None


def test_times_are_utc_with_a_trailing_z() -> None:
    assert iso(1_800_000_000.25) == "2027-01-15T08:00:00.250Z"
    assert unix("2027-01-15T08:00:00.250Z") == 1_800_000_000.25
    assert iso(None) is None


def test_the_worst_verdict_is_the_leaking_one_that_runs_out_first() -> None:
    late, soon = replace(VERDICT, exhausted_in_s=9e9), replace(VERDICT, exhausted_in_s=60.0)
    assert worst([Verdict("rss", "stable"), late, Verdict("rss", "growing"), soon]) == soon
    assert worst([]) is None


@pytest.mark.parametrize("time_s", [float("nan"), float("inf"), -float("inf"), 1e300, 253402300800.0, -1e12])
def test_a_time_outside_the_calendar_is_none_and_never_raises(time_s: float) -> None:
    assert iso(time_s) is None


def test_a_name_that_is_no_text_has_a_fingerprint() -> None:
    named = [replace(REPORT, process=replace(PROCESS, name=name)).fingerprint for name in ("n\udcfe", "n\udcff")]
    assert len(set(named)) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("process", "pid"), "4242"), (("process", "pid"), True), (("process", "name"), 3), (("process", "command"), "python"),
        (("process", "labels"), {"a": 1}), (("process", "started"), 1.8e9), (("process", "started"), "soon"),
        (("process", "fate"), "lost"), (("process", "interval_s"), "10s"), (("verdict", "state"), "leaky"),
        (("verdict", "rate"), None), (("verdict", "rate"), 10**400), (("verdict", "kind"), []), (("verdict", "reason"), None),
        (("channels", "rss"), 3), (("channels", "rss", "peak"), "4"), (("channels",), [1]), (("samples",), 1.5),
        (("evidence",), {"a": 1}), (("evidence", 0, "suspects", 0, "label"), None), (("evidence", 0, "suspects", 0, "trail"), "a"),
        (("caches",), [3]), (("events", 0, "what"), 3), (("events", 0, "time"), "9999"), (("process",), None),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_naming_its_key(path: tuple, value: object) -> None:
    source = json.loads(json.dumps(REPORT.to_dict()))
    place = source
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    key = next(step for step in reversed(path) if isinstance(step, str))
    with pytest.raises(ValueError, match=rf"{key}|is not a time|is not an object"):
        Report.from_dict(source)


def test_a_number_that_is_not_finite_is_absent_where_it_may_be() -> None:
    read = Report.from_dict(REPORT.to_dict() | {"verdict": VERDICT.to_dict() | {"exhausted_in_s": float("inf")}})
    assert read.verdict.exhausted_in_s is None
    assert Sample.from_dict({"time_s": 1.0, "uptime_s": 0.0, "values": {"a": float("nan"), "b": 1}}).values == {"b": 1}
