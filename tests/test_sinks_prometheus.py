"""What Prometheus scrapes: the real prometheus_client, read through its own parser."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import report_cases
from conftest import Run
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from sinks_runs import MIB, promtool, ramp, run, watcher_of

import memwatch
from memwatch import caches
from memwatch.model import Event, Sample, Statistics, Verdict
from memwatch.pressure import ReliefHooks
from memwatch.sinks import prometheus
from memwatch.sinks.figures import METRICS, Figures

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(registry: CollectorRegistry) -> Series:
    return parsed(prometheus_client.generate_latest(registry).decode())


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus_client gathers processes, in programs that a test starts."""
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))


def test_a_leak_is_in_the_scrape_with_its_rate_its_kind_and_its_fingerprint(registry: CollectorRegistry) -> None:
    watcher, clock = watcher_of(ramp(flat=70), [prometheus.install(registry)], labels={"team": "shop", "a-b": "x"})
    run(watcher, clock, 70)
    calm = scraped(registry)
    assert value(calm, "memwatch_state", state="stable") == 1.0
    assert value(calm, "memwatch_state", state="leaking") == 0.0
    assert value(calm, "memwatch_memory_growth_bytes_per_second", kind="heap") == 0.0
    assert value(calm, "memwatch_memory_limit_bytes") == 4 * 2**30
    assert not [name for name, _ in calm if name.startswith(("memwatch_leak", "memwatch_time"))]
    run(watcher, clock, 120)
    series, report = scraped(registry), watcher.report()
    assert report.verdict.state == "leaking"
    assert value(series, "memwatch_state", state="leaking") == 1.0
    assert value(series, "memwatch_leak_info", fingerprint=report.fingerprint, kind="python-heap") == 1.0
    assert value(series, "memwatch_leaks_flagged_total", kind="python-heap") == 1.0
    assert value(series, "memwatch_memory_growth_bytes_per_second", kind="heap") == pytest.approx(0.2 * MIB, rel=0.05)
    assert value(series, "memwatch_memory_bytes", kind="heap") == (50 + 2 * 119) * MIB
    assert value(series, "memwatch_memory_limit_used_ratio") == pytest.approx((100 + 2 * 119) / 4096)
    assert value(series, "memwatch_time_to_exhaustion_seconds", kind="memory") == report.verdict.exhausted_in_s
    assert value(series, "memwatch_resources", kind="threads") == 4.0
    assert value(series, "memwatch_last_sample_timestamp_seconds") == clock.time() - 10.0
    assert value(series, "memwatch_sample_interval_seconds") == 10.0
    version = memwatch.__version__
    assert value(series, "memwatch_watch_info", version=version, process="api", label_team="shop", label_a_b="x") == 1.0


def test_a_leak_that_is_over_is_no_series_any_more_but_stays_counted(registry: CollectorRegistry) -> None:
    readings = ramp(ticks=120)
    readings += [dict(readings[0], cpu=120.0 + n) for n in range(200)]
    watcher, clock = watcher_of(readings, [prometheus.install(registry)])
    assert run(watcher, clock, 320)[-1] != "leaking"
    series = scraped(registry)
    assert not [name for name, _ in series if name == "memwatch_leak_info"]
    assert value(series, "memwatch_leaks_flagged_total", kind="python-heap") == 1.0


def test_nothing_is_exported_twice_beside_prometheus_clients_own(registry: CollectorRegistry) -> None:
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    theirs = {name for name, _ in scraped(registry)}
    watcher, clock = watcher_of(ramp(), [prometheus.install(registry)])
    run(watcher, clock, 3)
    ours = {key for key in scraped(registry) if key[0] not in theirs}
    assert ours
    assert all(name.startswith("memwatch_") for name, _ in ours)
    if sys.platform == "linux":  # where process_resident_memory_bytes and process_open_fds are
        assert not {("memwatch_memory_bytes", "rss"), ("memwatch_resources", "fds")} & {
            (name, text) for name, labels in ours for _, text in labels
        }


def test_every_metric_has_a_name_of_its_own_in_either_system() -> None:
    assert len({metric.name for metric in METRICS}) == len({metric.instrument for metric in METRICS}) == len(METRICS)
    assert all(metric.name.startswith("memwatch_") and metric.instrument.startswith("memwatch.") for metric in METRICS)


def test_registering_collects_nothing_and_collecting_reads_nothing(registry: CollectorRegistry) -> None:
    sink = prometheus.install(registry)
    assert scraped(registry) == {}
    watcher, clock = watcher_of([{"rss": 1.0 * MIB}, RuntimeError("not to be read")], [sink])
    run(watcher, clock, 1)
    assert scraped(registry) == scraped(registry) != {}
    assert prometheus._OfThisProcess(sink._figures).describe() == []
    assert watcher.failures == {}


def test_installing_twice_exports_once(registry: CollectorRegistry) -> None:
    sink = prometheus.install(registry)
    assert prometheus.install(registry) is sink
    watcher, clock = watcher_of(ramp(), [sink, prometheus.install(registry)])
    run(watcher, clock, 110)
    assert value(scraped(registry), "memwatch_leaks_flagged_total", kind="python-heap") == 1.0


def test_installing_attaches_to_the_watcher_that_runs(registry: CollectorRegistry) -> None:
    watcher = memwatch.start(directory=False, interval="1h")
    try:
        prometheus.install(registry)
        watcher.tick()
        assert value(scraped(registry), "memwatch_state", state="warming-up") == 1.0
    finally:
        memwatch.stop()
    assert scraped(registry) == {}


def test_by_name_installed_and_exposed_a_leak_is_counted_once(python: Run) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from memwatch.sinks import prometheus
        watcher, clock = watcher_of(ramp(), ["prometheus", prometheus.install()])
        print(prometheus.CONTENT_TYPE)
        assert b'memwatch_state{{state="warming-up"}} 1.0' in prometheus.exposition(watcher)
        run(watcher, clock, 110)
        print(prometheus.exposition(watcher).decode())
    """
    out = python(program).stdout
    assert out.startswith("text/plain; version=")
    assert value(parsed(out.partition("\n")[2]), "memwatch_leaks_flagged_total", kind="python-heap") == 1.0
    assert "process_resident_memory_bytes" in out or sys.platform != "linux"


@pytest.mark.usefixtures("gathered")
def test_between_processes_the_exposition_is_of_all_until_one_is_marked_dead(python: Run) -> None:
    program = f"""
        import os, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from memwatch.sinks import prometheus
        child = os.fork()
        watcher, clock = watcher_of(ramp(), ["prometheus"])
        run(watcher, clock, 1)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        print(prometheus.exposition(watcher).decode(), "\\x00")
        prometheus.mark_process_dead(child)
        print(prometheus.exposition(watcher).decode(), "\\x00", child, os.getpid())
    """
    both, one, rest = python(program).stdout.split("\x00")
    child, parent = rest.split()

    def pids(text: str) -> set[str]:
        return {dict(labels)["pid"] for name, labels in parsed(text) if name == "memwatch_memory_limit_used_ratio"}

    assert pids(both) == {child, parent}
    assert pids(one) == {parent}


def test_pressure_clean_ups_and_failures_are_in_the_scrape(registry: CollectorRegistry) -> None:
    hooks = ReliefHooks()

    def raises(pressure: Any) -> None:
        raise RuntimeError

    hooks.add(raises)
    sink = prometheus.install(registry)
    watcher, clock = watcher_of([{"rss": rss * MIB} for rss in (50, 90)], [sink], memory_limit="100MiB", hooks=hooks)
    run(watcher, clock, 3)
    series = scraped(registry)
    assert value(series, "memwatch_pressure_level") == 2.0
    assert value(series, "memwatch_plug_failures_total") == 1.0
    sink.happened(Event(0.0, "relief", {"step": "x", "freed": 1.0, "rss_freed": 4096.0}))
    sink.happened(Event(0.0, "relief", {"step": "x", "freed": None, "rss_freed": -5.0}))
    run(watcher, clock, 1)
    assert value(scraped(registry), "memwatch_cleanup_freed_bytes_total") == 4096.0


def test_caches_are_in_the_scrape_with_removals_by_cause_and_those_of_one_name_together(registry: CollectorRegistry) -> None:
    one: Any = caches.LRUCache(maxsize=2, max_bytes="1MB", name="users of the test")
    two: Any = caches.LRUCache(maxsize=2, name="users of the test")
    for number in range(3):
        one[number] = two[number] = "x"
    one.get(2), one.get(99)
    del two[2]
    watcher, clock = watcher_of(ramp(), [prometheus.install(registry)])
    run(watcher, clock, 1)
    series = scraped(registry)
    name = "users of the test"
    assert value(series, "memwatch_cache_entries", cache=name) == 3.0
    assert value(series, "memwatch_cache_bytes", cache=name) == one.stats().bytes
    assert value(series, "memwatch_cache_hits_total", cache=name) == 1.0
    assert value(series, "memwatch_cache_misses_total", cache=name) == 1.0
    assert value(series, "memwatch_cache_removals_total", cache=name, cause="size") == 2.0
    assert value(series, "memwatch_cache_removals_total", cache=name, cause="deleted") == 1.0


def test_what_routes_did_is_in_the_scrape_and_what_each_request_leaves_behind_of_those_blamed_only(
    registry: CollectorRegistry,
) -> None:
    figures = {"requests": 900, "errors": 3, "in_flight": 2, "p50_s": 0.01, "p95_s": 0.2, "p99_s": 0.5}
    rows = (
        {"route": "POST /cart", **figures, "bytes_per_request": 2048.0, "blamed": True},
        {"route": "GET /", **figures, "bytes_per_request": 12.0, "blamed": False},
        {"route": "job:mail", "requests": 1, "errors": 0, "in_flight": 0, "p50_s": None, "bytes_per_request": None},
    )
    prometheus.install(registry).ticked(Sample(0.0, 0.0, {}), replace(report_cases.leak(), routes=rows))
    series = scraped(registry)
    assert value(series, "memwatch_route_requests_total", route="POST /cart") == 900.0
    assert value(series, "memwatch_route_errors_total", route="POST /cart") == 3.0
    assert value(series, "memwatch_route_in_flight", route="POST /cart") == 2.0
    assert value(series, "memwatch_route_duration_seconds", route="GET /", quantile="0.95") == 0.2
    assert value(series, "memwatch_route_requests_total", route="job:mail") == 1.0
    assert value(series, "memwatch_route_duration_seconds", route="job:mail", quantile="0.5") is None
    left = {labels: found for (name, labels), found in series.items() if name == "memwatch_route_growth_per_request_bytes"}
    assert left == {frozenset({("route", "POST /cart")}): 2048.0}


@pytest.mark.usefixtures("gathered")
def test_between_processes_requests_of_a_route_add_up_and_outlive_their_worker(python: Run) -> None:
    program = f"""
        import os, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from memwatch import routes
        from memwatch.sinks import prometheus
        child = os.fork()
        watcher, clock = watcher_of(ramp(), ["prometheus"])
        for number in range(3 if child else 40):
            flight = routes.ledger().begin("job:mail")
            if not child and number == 39:
                break  # under way
            routes.ledger().end(flight, "job:mail", failed=number == 0)
        run(watcher, clock, 1)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        print(prometheus.exposition(watcher).decode(), "\\x00")
        prometheus.mark_process_dead(child)
        print(prometheus.exposition(watcher).decode())
    """
    both, one = map(parsed, python(program).stdout.split("\x00"))
    assert value(both, "memwatch_route_requests_total", route="job:mail") == 42.0
    assert value(both, "memwatch_route_in_flight", route="job:mail") == 1.0
    assert value(one, "memwatch_route_requests_total", route="job:mail") == 42.0
    assert value(one, "memwatch_route_errors_total", route="job:mail") == 2.0
    assert value(one, "memwatch_route_in_flight", route="job:mail") == 0.0
    times = [labels for name, labels in one if name == "memwatch_route_duration_seconds"]
    assert len(times) == 3  # of the process that lives


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12 and later
def test_a_forked_child_exports_nothing_of_its_parents(registry: CollectorRegistry) -> None:
    watcher, clock = watcher_of(ramp(), [prometheus.install(registry)])
    run(watcher, clock, 3)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, repr(len(scraped(registry))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with open(ours) as answer:
        assert answer.read() == "0"
    assert scraped(registry) != {}


def test_figures_of_a_report_with_nothing_in_it_are_no_error() -> None:
    figures = Figures()
    verdict = Verdict("unknown", "growing", exhausted_in_s=5.0)
    report = replace(report_cases.leak(), verdict=verdict, statistics=Statistics(0, 0.0, {}), caches=({},))
    figures.ticked(Sample(0.0, 0.0, {"limit": 0.0}), report)
    found = {(metric.name, labels) for metric, labels, _ in figures.current()}
    assert ("memwatch_time_to_exhaustion_seconds", ("memory",)) in found
    assert not {name for name, _ in found} & {"memwatch_memory_limit_bytes", "memwatch_memory_limit_used_ratio"}


@pytest.mark.usefixtures("gathered")
def test_between_processes_any_number_of_routes_leaves_room_for_a_leak_and_a_new_watch_counts_none_again(python: Run) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from memwatch import routes
        from memwatch.sinks import prometheus
        for _ in range(2):
            watcher, clock = watcher_of(ramp(), ["prometheus"])
            for _ in range(1000):
                routes.ledger().add("GET /always", 0.01)
            for number in range(180):
                for _ in range(number + 1):  # each of the later ones is the busiest for a while
                    routes.ledger().add(f"GET /{{number}}", 0.01)
                run(watcher, clock, 1)
            watcher.stop()
        watcher, clock = watcher_of(ramp(), ["prometheus"])
        run(watcher, clock, 110)
        print(prometheus.exposition(watcher).decode())
    """
    series = parsed(python(program).stdout)
    assert [found for (name, _), found in series.items() if name == "memwatch_leak_info"] == [1.0]
    assert value(series, "memwatch_leaks_flagged_total", kind="python-heap") == 3.0
    assert value(series, "memwatch_route_requests_total", route="GET /always") == 2000.0  # not those of the first watch again


def test_names_that_cannot_be_written_cost_their_odd_characters_and_not_the_scrape(registry: CollectorRegistry) -> None:
    report = report_cases.leak()
    odd = "GET /\ud800"
    process = replace(report.process, name="\udc80x", labels={"team": "\ud800"})
    caught = replace(report, process=process, routes=({"route": odd, "requests": 1},), caches=({"name": odd, "hits": 1},))
    prometheus.install(registry).ticked(Sample(0.0, 0.0, {}), caught)
    series = scraped(registry)
    assert value(series, "memwatch_route_requests_total", route="GET /?") == 1.0
    assert value(series, "memwatch_cache_hits_total", cache="GET /?") == 1.0


GATHERED = """
    import os, sys
    sys.path[:0] = [{tests!r}]
    from sinks_runs import ramp, run, watcher_of
    from memwatch.sinks import prometheus
    import prometheus_client
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

    def answer():
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry)
        return prometheus_client.generate_latest(registry).decode()

    sink = prometheus.install()
    watcher, clock = watcher_of(ramp(), [sink])
    watcher.tick()
    children = []
    for ticks in (110, 3, 0):
        ready, tell = os.pipe()
        go, wait = os.pipe()
        child = os.fork()
        if child == 0:
            own, clock = watcher_of(ramp(), [sink])
            run(own, clock, ticks)
            if not ticks:
                prometheus_client.Counter("of_the_program", "Makes every series of this process.").inc()
            os.write(tell, b"x")
            os.read(go, 1)
            os._exit(0)
        os.read(ready, 1)
        children.append((child, wait))
    watcher.stop()
    print(answer(), "\\x00")
    for child, wait in children:
        os.write(wait, b"x")
        os.waitpid(child, 0)
        mark_process_dead(child)
    print(answer(), "\\x00", *[child for child, _ in children], os.getpid())
"""


@pytest.mark.usefixtures("gathered")
def test_between_processes_each_tells_its_own_and_counts_survive_the_death_of_a_worker(python: Run) -> None:
    out = python(GATHERED.format(tests=str(Path(__file__).parent))).stdout
    living, dead, rest = out.split("\x00")
    leaker, calm, _idle, _parent = rest.split()
    series = parsed(living)
    assert value(series, "memwatch_memory_bytes", kind="heap", pid=leaker) == (50 + 2 * 109) * MIB
    assert value(series, "memwatch_memory_bytes", kind="rss", pid=calm) == (100 + 2 * 2) * MIB
    # What is as it was in the parent is written for the child, too.
    assert value(series, "memwatch_memory_bytes", kind="native", pid=calm) == 20 * MIB
    assert value(series, "memwatch_state", state="leaking") == 1.0
    assert value(series, "memwatch_state", state="warming-up") == 1.0
    assert value(series, "memwatch_leaks_flagged_total", kind="python-heap") == 1.0
    leaks = {labels: found for (name, labels), found in series.items() if name == "memwatch_leak_info"}
    assert list(leaks.values()) == [1.0]
    left = {dict(labels)["pid"]: found for (name, labels), found in series.items() if name == "memwatch_time_to_exhaustion_seconds"}
    assert 0 < left[leaker] < 1e6
    after = parsed(dead)
    assert value(after, "memwatch_leaks_flagged_total", kind="python-heap") == 1.0
    assert not [name for name, labels in after if name == "memwatch_memory_bytes" and ("pid", leaker) in labels]


@pytest.mark.usefixtures("gathered")
def test_between_processes_a_leak_that_is_over_is_zero_and_its_time_left_without_end(python: Run) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from memwatch.model import Event
        from memwatch.sinks import prometheus
        import prometheus_client
        from prometheus_client.multiprocess import MultiProcessCollector
        readings = ramp(ticks=120)
        readings += [dict(readings[0], cpu=120.0 + n) for n in range(200)]
        sink = prometheus.install()
        watcher, clock = watcher_of(readings, [sink])
        run(watcher, clock, 320)
        for freed in (1000.0, 500.0, 0.0):
            sink.happened(Event(0.0, "relief", {{"rss_freed": freed}}))
            run(watcher, clock, 1)
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry)
        print(prometheus_client.generate_latest(registry).decode())
    """
    series = parsed(python(program).stdout)
    assert [found for (name, _), found in series.items() if name == "memwatch_leak_info"] == [0.0]
    assert [found for (name, _), found in series.items() if name == "memwatch_time_to_exhaustion_seconds"] == [float("inf")]
    assert value(series, "memwatch_leaks_flagged_total", kind="python-heap") == 1.0
    assert value(series, "memwatch_cleanup_freed_bytes_total") == 1500.0


def test_the_text_of_a_scrape_satisfies_promtool(registry: CollectorRegistry) -> None:
    cache: Any = caches.LRUCache(maxsize=2, name="users")
    cache[1] = 1
    cache.get_or_set(2, lambda: 2)
    watcher, clock = watcher_of(ramp(), [prometheus.install(registry)])
    run(watcher, clock, 150)
    text = prometheus_client.generate_latest(registry)
    checked = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_a_full_file_system_costs_the_sink_and_not_the_program(python: Run, tmp_path: Path) -> None:
    """prometheus_client maps files with holes: a write into one that has no room is SIGBUS."""
    done = python(
        f"""
        import os, pathlib
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(tmp_path)!r}
        import memwatch, prometheus_client

        def full(*arguments):
            raise OSError(28, "No space left on device")

        os.posix_fallocate = full
        watcher = memwatch.Watcher(directory=False, socket="off", evidence="off", sinks=["prometheus"])
        watcher.tick()
        print(watcher.failures)
        print(any(any(file.read_bytes()) for file in pathlib.Path({str(tmp_path)!r}).glob("*.db")))
        """
    )
    assert "No space left on device" in done.stdout
    assert done.stdout.split()[-1] == "False"  # nothing was written into a hole
