"""The proof under the headline, and the known causes beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Event, Evidence, Report, Suspect, Verdict
from memwatch.report.causes import CAUSES, known_causes
from memwatch.report.layout import cells
from memwatch.report.proof import BRIEF_LINES, proof, shown_rows

SESSIONS = Suspect("app.Session", 9e6, 100, 0.9, ("app/a.py:1 add",))
SITE = Suspect("app/a.py:1 add", 8e6, 100, 0.8, ("app/b.py:2 call",))


def with_evidence(*evidence: Evidence, kind: str = "python-heap", state: str = "leaking") -> Report:
    whole = cases.leak()
    return replace(whole, evidence=evidence, verdict=replace(whole.verdict, kind=kind, state=state))  # type: ignore[arg-type]


def holders(*suspects: Suspect) -> Evidence:
    return Evidence("holders", suspects, 0.9)


@pytest.mark.parametrize(
    ("trail", "held"),
    [
        (("Session",), ("module app → _STORE (dict, 9 entries)", "Session")),
        (("app.Session",), ("module app → _STORE (dict, 9 entries)", "app.Session")),
        (("all (list, 9 entries)", "Session"), ("module app → _STORE (dict, 9 entries)", "all (list, 9 entries)", "Session")),
        (("Session, 3 entries", "x (list, 9 entries)"), ("module app → _STORE (dict, 9 entries)", "Session, 3 entries")),
        (("next (Session) (× 3)",), ("module app → _STORE (dict, 9 entries)", "next (Session) (× 3)")),
        (("Session (× 7)", "dict"), ("module app → _STORE (dict, 9 entries)", "Session (× 7)")),
        # Above what it holds itself: the way up to it is what holds it.
        (("user (Session)", "cart (list, 50 entries)", "dict"), ("module app → _STORE (dict, 9 entries)", "user (Session)")),
    ],
)  # fmt: skip
def test_a_type_is_joined_with_the_path_that_leads_to_it(trail: tuple[str, ...], held: tuple[str, ...]) -> None:
    other = Suspect("module logging → _handlers (dict, 3 entries)", 1.0, None, 0.01, ("Handler",))
    store = Suspect("module app → _STORE (dict, 9 entries)", 9e6, None, 0.9, trail)
    (row,) = proof(with_evidence(Evidence("types", (SESSIONS,), 0.9), holders(other, store)))
    assert (row.what, row.allocated, row.held) == ("100 × app.Session", ("app/a.py:1 add",), held)


def test_the_only_holder_holds_the_first_row_and_no_other() -> None:
    types = Evidence("types", (SESSIONS, replace(SESSIONS, label="app.Other")), 0.9)
    first, second = proof(with_evidence(types, holders(Suspect("module app → _X (list)", 9e6, None, 0.9, ("odd",)))))
    assert (first.held, second.held) == (("module app → _X (list)", "odd"), ())


def test_what_grew_goes_before_where_unless_it_explains_much_less() -> None:
    def leading(types: float, sites: float) -> str:
        return proof(with_evidence(Evidence("sites", (SITE,), sites), Evidence("types", (SESSIONS,), types)))[0].collector

    assert leading(0.7, 0.9) == "types"
    assert leading(0.1, 0.9) == "sites"


def test_a_leak_of_descriptors_is_proved_by_resources_and_one_in_c_by_what_ran() -> None:
    files = Evidence("resources", (Suspect("file /var/log/app-*.log", None, 40, 1.0, ("app/log.py:9 open_log",)),), 1.0)
    assert proof(with_evidence(Evidence("types", (SESSIONS,), 0.9), files, kind="descriptors"))[0].collector == "resources"
    assert proof(cases.native())[0].collector == "native"


def test_small_rows_and_rows_beyond_the_third_are_counted_with_their_share() -> None:
    many = tuple(replace(SESSIONS, label=f"app.T{index}", share=share) for index, share in enumerate((0.4, 0.2, 0.1, 0.05, 0.001)))
    kept, more = shown_rows(proof(with_evidence(Evidence("types", many, 0.75))))
    assert ([row.suspect.label for row in kept], more) == (["app.T0", "app.T1", "app.T2"], "and 2 more, 5 % of the growth")
    kept, more = shown_rows(proof(with_evidence(Evidence("types", (replace(SESSIONS, share=0.01), many[4]), 0.01))))
    assert ([row.suspect.share for row in kept], more) == ([0.01], "and 1 more, <1 % of the growth")


def test_suspects_beyond_the_eighth_of_a_section_and_callers_beyond_the_sixth_are_counted() -> None:
    callers = tuple(f"app/a.py:{line} f" for line in range(30))
    sites = tuple(Suspect(f"app/s.py:{line} g", 1e6, 1, 0.03, callers) for line in range(30))
    text = reports.render(with_evidence(Evidence("sites", sites, 0.9)))
    assert "and 22 more, 66 % of the growth" in text and "app/a.py:5 f, and 24 more" in text
    markdown = reports.render(with_evidence(Evidence("sites", sites, 0.9)), "markdown")
    assert "and 22 more, 66 % of the growth" in markdown and "app/a.py:29 f" in markdown


def test_evidence_of_growth_that_is_over_is_not_told_as_growth_that_goes_on() -> None:
    stable = with_evidence(Evidence("types", (SESSIONS,), 0.9), state="stable")
    stable = replace(stable, verdict=Verdict("rss", "stable"))
    assert "90 % of the earlier growth explained" in reports.render(stable)


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_evidence_from_before_the_process_was_well_again_is_said_to_be_of_earlier_growth(format: str) -> None:
    leak = types("requests.sessions.Session")
    well_again = Event(cases.NOW_S - 50, "verdict", {"state": "stable"})
    old = replace(leak, evidence_taken=cases.NOW_S - 100, events=(well_again,))
    new = replace(leak, evidence_taken=cases.NOW_S - 10, events=(well_again,))
    said = "this growth has not been looked at yet; of earlier growth, at 2026-11-22 07:58:20 UTC"
    assert said in reports.render(old, format, width=120) and "80 % of the growth explained" in reports.render(new, format)
    assert known_causes(old) == () and known_causes(new) != ()
    assert old.fingerprint == replace(old, evidence=()).fingerprint != new.fingerprint


def test_the_brief_is_the_headline_and_the_proof_in_a_dozen_lines() -> None:
    for name, make in cases.CASES.items():
        lines = reports.brief(make()).splitlines()
        assert lines[0] == reports.headline(make()), name
        assert len(lines) <= BRIEF_LINES + 3 * (name == "native") and all(cells(line) <= 120 for line in lines[1:]), name
    text = reports.brief(cases.leak())
    assert "93 % of the growth explained" in text and "held by" in text and "not the cause: native heap (stable)" in text


def test_a_brief_of_a_huge_proof_shows_fewer_rows_and_counts_the_rest() -> None:
    long = tuple(
        Suspect("app." + "x" * 150, 1e6, 1, 0.3, tuple(f"app/{'y' * 90}.py:{line} f" for line in range(9))) for _ in range(3)
    )
    brief = reports.brief(with_evidence(Evidence("types", long, 0.9)))
    assert len(brief.splitlines()) <= BRIEF_LINES and "more, 60 % of the growth" in brief


def test_a_brief_of_growth_that_is_hardly_explained_says_what_else_is_known() -> None:
    text = reports.brief(cases.native())
    assert "native: sampled at ticks" in text and "holders: no Python object holds the growth" in text
    assert "threads of C libraries were not looked at" not in reports.brief(cases.leak())


def test_a_brief_without_suspects_says_why_there_are_none() -> None:
    text = reports.brief(with_evidence(Evidence("types", note="the child had no time"), Evidence("caches", note="none")))
    assert text.endswith("types: the child had no time")


def test_nothing_a_process_chose_reaches_a_log_as_control() -> None:
    odd = Suspect("a\x1b[2J.T", 1.0, 1, 0.9, ("f\x1b.py:1 g",))
    report = with_evidence(Evidence("types", (odd,), 0.9, "n\x1b"), holders(Suspect("m\x1b → d", 1, 1, 1, ("T",))))
    assert [char for char in reports.brief(report) if not char.isprintable() and char != "\n"] == []


# -- known causes --------------------------------------------------------------------------------------------------------------


def types(label: str) -> Report:
    return with_evidence(Evidence("types", (Suspect(label, 9e6, 100, 0.8),), 0.8))


def held(label: str, *trail: str) -> Report:
    return with_evidence(holders(Suspect(label, 9e6, None, 0.8, trail)))


def opened(label: str, *trail: str, kind: str) -> Report:
    return with_evidence(Evidence("resources", (Suspect(label, None, 40, 0.9, trail),), 0.9), kind=kind)


def sites(label: str) -> Report:
    return with_evidence(Evidence("sites", (Suspect(label, 9e6, 100, 0.8, ("app/a.py:3 f",)),), 0.8))


REALISTIC = [
    ("cached calls", held("class app.prices.Book → quote (functools._lru_cache_wrapper, 88,120 entries)", "Book")),
    ("logging handlers", held("module logging → root (RootLogger)", "handlers (list, 40,112 entries)", "FileHandler")),
    ("logging handlers", held("module logging → _handlerList (list, 40,112 entries)", "weakref")),
    ("logging handlers", types("logging.handlers.RotatingFileHandler")),
    ("loggers", held("class logging.Logger → manager (Manager)", "loggerDict (dict, 90,000 entries)", "Logger")),
    ("loggers", types("logging.Logger")),
    ("asyncio tasks", cases.tasks()),
    ("thread pools", opened("thread ThreadPoolExecutor-*_* (target concurrent.futures.thread._worker)", kind="threads")),
    ("children not waited for", opened("child process that ended and was not waited for", kind="children")),
    ("finalizers", held("class weakref.finalize → _registry (dict, 9,000 entries)", "_Info")),
    ("warnings", held("module app.views → __warningregistry__ (dict, 70,001 entries)", "tuple")),
    ("kept exceptions", types("traceback")),
    ("metric labels",
     held("module app → REQUESTS (prometheus_client.metrics.Counter)", "_metrics (dict, 99,000 entries)", "Counter")),
    ("metric labels", sites("prometheus_client/metrics.py:212 MetricWrapperBase.labels")),
    ("telemetry instruments", sites("opentelemetry/sdk/metrics/_internal/__init__.py:151 Meter.create_counter")),
    ("telemetry instruments", types("opentelemetry.sdk.metrics._internal.instrument._Counter")),
    ("requests sessions", types("urllib3.connectionpool.HTTPSConnectionPool")),
    ("requests sessions", types("requests.sessions.Session")),
    ("requests sessions",
     opened("socket to 10.0.0.7:443 (CLOSE_WAIT)", "urllib3/util/connection.py:60 create_connection", kind="descriptors")),
    ("aiohttp sessions", types("aiohttp.client.ClientSession")),
    ("httpx clients", types("httpx.AsyncClient")),
    ("boto3 clients", types("botocore.model.Shape")),
    ("boto3 clients", sites("botocore/loaders.py:175 JSONFileLoader._load_file")),
    ("SQLAlchemy session",
     held("module app.db → session (sqlalchemy.orm.session.Session)", "identity_map (WeakInstanceDict)", "_dict (dict)", "User")),
    ("pyplot figures", held("class matplotlib._pylab_helpers.Gcf → figs (OrderedDict, 900 entries)", "FigureManagerBase")),
    ("malloc arenas", replace(cases.native(), evidence=())),
    ("CPython 3.14.0 to 3.14.4", cases.native()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "report"), REALISTIC, ids=[name for name, _ in REALISTIC])
def test_a_known_cause_is_recognised(name: str, report: Report) -> None:
    assert name in [cause.name for cause in known_causes(report)]
    (cause,) = [cause for cause in CAUSES if cause.name == name]
    told = " ".join(reports.render(report).split())
    assert f"known cause: {' '.join(cause.sentence.split())}" in told and cause.link in told.replace(" ", "") + told
    assert f"]({cause.link})" in reports.render(report, "markdown")


def test_every_known_cause_has_its_report() -> None:
    assert {name for name, _ in REALISTIC} == {cause.name for cause in CAUSES}
    assert all(cause.link.startswith("https://") and not cause.sentence.endswith(".") for cause in CAUSES)


UNRELATED = [
    cases.leak(),
    types("app.sessions.Session"),
    types("app.traceback.Frame"),
    types("app.logging.Handler"),
    types("app.clients.Client"),
    held("module app.httpd → handlers (dict, 9 entries)", "Handler"),
    held("module app.metrics → _metrics (dict, 9 entries)", "Gauge"),
    held("module app → registry (dict, 9 entries)", "finalize"),
    sites("app/requests/models.py:3 f"),
    opened("thread worker-* (target app.pool.run)", kind="threads"),
    opened("socket to 10.0.0.7:5432 (ESTABLISHED)", "app/db.py:3 connect", kind="descriptors"),
]


@pytest.mark.parametrize("report", UNRELATED, ids=lambda report: report.evidence[0].suspects[0].label)
def test_an_unrelated_leak_has_no_known_cause(report: Report) -> None:
    assert known_causes(report) == ()


def test_a_cause_is_not_named_by_a_caller_by_noise_or_where_nothing_grows() -> None:
    called = Suspect("app/a.py:1 f", 9e6, 1, 0.9, ("botocore/client.py:3 _api_call",))
    assert known_causes(with_evidence(Evidence("sites", (called,), 0.9))) == ()
    noise = (Suspect("app.T", 9e6, 1, 0.9), Suspect("requests.sessions.Session", 1.0, 1, 0.01))
    assert known_causes(with_evidence(Evidence("types", noise, 0.9))) == ()
    assert known_causes(replace(types("requests.sessions.Session"), verdict=Verdict("heap", "stable"))) == ()


@pytest.mark.parametrize(("version", "known"), [("3.14.0", True), ("3.14.4", True), ("3.14.5", False), ("3.14.10", False),
                                                ("3.13.4", False), (None, False)])  # fmt: skip
def test_the_collector_of_some_pythons_is_named_while_the_growth_is_unexplained(version: str | None, known: bool) -> None:
    name = "CPython 3.14.0 to 3.14.4"
    report = replace(cases.leak(), process=cases.process(python=version))
    assert name not in [cause.name for cause in known_causes(report)]
    assert (name in [cause.name for cause in known_causes(replace(report, evidence=()))]) is known
