"""`memwatch soak`: a service under load, with a verdict and an exit code at the end: the leak gate of a CI pipeline.

Law: the load is locust's, in a process of its own; whatever happens, the service and the load are ended before we are.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import click

from memwatch import units
from memwatch.cli import FOUND, OK, records
from memwatch.cli.screen import NotThere, put, say
from memwatch.model import SEVERITY_ORDER, Report
from memwatch.report import without_infinities
from memwatch.report.layout import shown
from memwatch.report.proof import brief
from memwatch.report.words import headline

Quantity = TypeVar("Quantity")

USERS = Path(__file__).with_name("load_users.py")
SAMPLES = 300
"""So many samples are taken over the soak: a trend needs some dozens."""
STOP_S = 30.0
"""The service has so long to end when it is asked to."""
LOAD_STOP_S = 60.0
ERRORS_TOLD = 3
"""Reasons for which requests failed that are told as text; as JSON all are."""
SETTLED, LAST = (1 / 3, 0.45), (0.9, 1.0)
"""Growth is the median of the last tenth of the soak minus that of a part after warm-up."""


class Failed(NamedTuple):
    """One reason why requests failed."""

    request: str
    reason: str
    share: float
    """Of all failures, from 0 to 1."""


class Latencies(NamedTuple):
    """What the load saw, over all addresses.  Times in seconds; None where nothing was answered."""

    requests: int
    failures: int
    per_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    errors: tuple[Failed, ...] = ()
    """Why requests failed, the most frequent reason first."""

    @property
    def failed_share(self) -> float:
        """Part of the requests that failed; 1 where there were none."""
        return self.failures / self.requests if self.requests else 1.0


@dataclass(frozen=True)
class Limits:
    """What the soak must stay within; None: not asked."""

    fail_on: str
    growth_bytes: int | None
    errors: float | None
    p95_s: float | None


@click.command(
    "soak",
    short_help="Run a service under load; a verdict and an exit code.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--load", "addresses", multiple=True, metavar="URL", help="Ask for this address; may be repeated.")
@click.option("--duration", default="5m", show_default=True, metavar="DURATION", help="Length of the soak.")
@click.option("--users", type=click.IntRange(1, 100_000), default=10, show_default=True, help="Users at the same time.")
@click.option("--locustfile", type=click.Path(exists=True, dir_okay=False), help="What the users do, instead of asking for --load.")
@click.option("--ready", default="60s", show_default=True, metavar="DURATION", help="The service must answer within this time.")
@click.option(
    "--fail-on", type=click.Choice(["growing", "leaking"]), default="leaking", show_default=True, help="This or worse fails."
)
@click.option("--max-growth", metavar="SIZE", help="Growth of a process after its warm-up that fails.")
@click.option("--max-errors", metavar="PERCENT", default="0%", show_default=True, help="Share of failed requests that fails.")
@click.option("--max-p95", metavar="DURATION", help="95th percentile of the response times that fails.")
@click.option("--keep", type=click.Path(file_okay=False), help="Keep the records in this directory.")
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def command(
    words: tuple[str, ...],
    addresses: tuple[str, ...],
    duration: str,
    users: int,
    locustfile: str | None,
    ready: str,
    fail_on: str,
    max_growth: str | None,
    max_errors: str,
    max_p95: str | None,
    keep: str | None,
    as_json: bool,
) -> int:
    """Start a service, put load on it, and say whether it leaks, with response times.

    \b
    memwatch soak --load http://127.0.0.1:8000/ --duration 10m --users 20 -- gunicorn -b :8000 app:app

    Every Python process that the command starts is watched.  Exit status 1 if one leaks, or a threshold is exceeded.  The load is
    locust's: pip install 'memwatch[soak]'.
    """
    if not addresses:
        raise click.UsageError("--load: give the address to ask for (with --locustfile: the host)")
    duration_s, ready_s = _duration("--duration", duration), _duration("--ready", ready)
    if duration_s < 1:
        raise click.UsageError(f"--duration: {duration!r} is too short: give at least 1s")
    for address in addresses:
        _check_address(address)
    limits = Limits(
        fail_on,
        None if max_growth is None else _read_as(units.parse_size, "--max-growth", max_growth),
        _read_as(units.parse_fraction, "--max-errors", max_errors),
        None if max_p95 is None else _duration("--max-p95", max_p95),
    )
    locust = _locust()
    with _ended_by_signals(), _directory(keep) as directory, _service(words, directory, duration_s) as service:
        _wait_until_ready(addresses[0], service, ready_s)
        say(f"soaking for {units.format_duration(duration_s)} with {users} users")
        seen = _load(locust, addresses, users, duration_s, locustfile, service)
        _look(directory)
        alive = [found.report for found in _read(directory) if found.report.process.fate == "running"]
        gone = service.poll()
        _stop(service)
        # Everything of the last moments is in the records now; fates are those before we ended the service.
        reports = [found.report for found in _read(directory)]
    if not reports:
        raise NotThere("no Python process was watched: does the command start one?")
    before = {report.process.pid: report.process for report in alive}
    reports = [replace(report, process=before.get(report.process.pid, report.process)) for report in reports]
    reports = sorted((report for report in reports if not before or report.process.pid in before), key=_rank)
    problems = _problems(reports, seen, limits, gone)
    outcome = {
        "schema": 1,
        "duration_s": duration_s,
        "users": users,
        "load": seen._asdict() | {"failed_share": seen.failed_share, "errors": [failed._asdict() for failed in seen.errors]},
        "limits": asdict(limits),
        "problems": problems,
        "passed": not problems,
        "processes": [{"growth_bytes": growth_of(report), **report.to_dict()} for report in reports],
    }
    put(json.dumps(without_infinities(outcome), indent=2) + "\n" if as_json else told(reports, seen, problems))
    return FOUND if problems else OK


def told(reports: Sequence[Report], seen: Latencies, problems: Sequence[str]) -> str:
    """The outcome as text: the verdict on every process, the response times, what failed."""
    lines = []
    for report in reports:
        lines.append(brief(report) if report.verdict.state in ("leaking", "growing") else headline(report))
        if (grown := growth_of(report)) is not None:
            lines.append(f"  {units.format_size(grown, sign=True)} resident after the warm-up")
    lines.append("")
    percentiles = [("p50", seen.p50_s), ("p95", seen.p95_s), ("p99", seen.p99_s)]
    times = "  ".join(f"{name} {units.format_duration(value)}" for name, value in percentiles if value is not None)
    lines.append(f"{seen.requests:,} requests, {seen.per_s:,.1f} per s, {seen.failures:,} failed  {times}".rstrip())
    lines += [f"  {failed.share:4.0%}  {shown(failed.request)}: {shown(failed.reason)}" for failed in seen.errors[:ERRORS_TOLD]]
    if len(seen.errors) > ERRORS_TOLD:
        lines.append(f"  and {len(seen.errors) - ERRORS_TOLD:,} more")
    lines += [f"FAILED  {problem}" for problem in problems] or ["PASSED"]
    return "\n".join(lines) + "\n"


def growth_of(report: Report) -> float | None:
    """Resident bytes that a process grew by after its warm-up; None where there are too few samples."""
    history = [(sample.time_s, sample.values["rss"]) for sample in report.history if "rss" in sample.values]
    if len(history) < 20:
        return None
    first, last = history[0][0], history[-1][0]

    def level(span: tuple[float, float]) -> list[float]:
        low, high = (first + share * (last - first) for share in span)
        return [rss for time_s, rss in history if low <= time_s <= high]

    before, after = level(SETTLED), level(LAST)
    return statistics.median(after) - statistics.median(before) if before and after else None


def _problems(reports: Sequence[Report], seen: Latencies, limits: Limits, gone: int | None) -> list[str]:
    found = []
    if gone is not None:
        found.append(f"the service ended by itself during the soak, with status {gone}")
    for report in reports:
        if SEVERITY_ORDER.index(report.verdict.state) <= SEVERITY_ORDER.index(limits.fail_on):
            found.append(f"{report.process.name}[{report.process.pid}] is {report.verdict.state}")
        grown = growth_of(report)
        if limits.growth_bytes is not None and grown is not None and grown > limits.growth_bytes:
            limit = units.format_size(limits.growth_bytes)
            found.append(f"{report.process.name}[{report.process.pid}] grew by {units.format_size(grown)}, limit {limit}")
    if not seen.requests:
        found.append("not one request was made")
    elif limits.errors is not None and seen.failed_share > limits.errors:
        found.append(f"{seen.failed_share:.2%} of the requests failed, limit {limits.errors:.2%}")
    if limits.p95_s is not None and seen.p95_s is not None and seen.p95_s > limits.p95_s:
        p95, limit = units.format_duration(seen.p95_s), units.format_duration(limits.p95_s)
        found.append(f"95 % of the requests took up to {p95}, limit {limit}")
    return found


def _rank(report: Report) -> tuple[int, float]:
    return SEVERITY_ORDER.index(report.verdict.state), -(growth_of(report) or 0.0)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A pipeline that is cancelled sends SIGTERM: what we have started has sessions of its own, and would go on for ever."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the service ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _directory(keep: str | None) -> Iterator[Path]:
    if keep is not None:
        try:
            Path(keep).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise click.UsageError(f"--keep: {keep!r} cannot be made: {error.strerror}") from None
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="memwatch-soak-") as name:
        yield Path(name)


@contextlib.contextmanager
def _service(words: Sequence[str], directory: Path, duration_s: float) -> Iterator[subprocess.Popen[bytes]]:
    interval_s = min(10.0, max(0.05, duration_s / SAMPLES))
    ours = ["--directory", str(directory), "--interval", f"{interval_s:.3f}s"]
    command = [sys.executable, "-m", "memwatch", "run", *ours, "--", *words]
    # A session of its own: whatever it has started can be ended with it.  On stdout is our data alone.
    service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    try:
        yield service
    finally:
        _stop(service)


def _stop(service: subprocess.Popen[bytes]) -> None:
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(service.pid, signal.SIGKILL)
    service.wait()


def _wait_until_ready(address: str, service: subprocess.Popen[bytes], ready_s: float) -> None:
    deadline_s = time.monotonic() + ready_s
    problem = ""
    while time.monotonic() < deadline_s:
        if service.poll() is not None:
            raise NotThere(f"the service ended with status {service.returncode} before it answered {address}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # an answer all the same
        except (OSError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
            if isinstance(error, ValueError):
                raise click.UsageError(f"--load: {address!r} is not an address: {problem}") from None
        except HTTPException as error:  # something answers, and it does not speak HTTP
            problem = f"its answer is not HTTP ({type(error).__name__})"
        time.sleep(0.1)
    raise NotThere(f"the service did not answer {address} within {units.format_duration(ready_s)}: {problem}")


def _read(directory: Path) -> list[records.Found]:
    return [records.read(path, history=True) for path in sorted(directory.glob("*.memwatch"))]


def _look(directory: Path) -> None:
    """Let what grows without being called a leak yet say what it is."""
    from memwatch import live

    for found in _read(directory):
        if found.report.verdict.state == "growing" and found.report.process.fate == "running":
            with contextlib.suppress(live.NoAnswer):
                live.ask(found.report.process.pid, "POST", "/evidence")


# -- the load ------------------------------------------------------------------------------------------------------------------


def _locust() -> list[str]:
    """The command that starts locust.

    Raises:
        NotThere: it is not installed.
    """
    if importlib.util.find_spec("locust") is not None:
        return [sys.executable, "-m", "locust"]
    found = shutil.which("locust")
    if found is None:
        raise NotThere("the load is locust's, which is not installed: pip install 'memwatch[soak]'")
    return [found]


def _load(
    locust: Sequence[str],
    addresses: Sequence[str],
    users: int,
    duration_s: float,
    locustfile: str | None,
    service: subprocess.Popen[bytes],
) -> Latencies:
    options = ["--headless", "--json", "--skip-log", "--users", str(users), "--spawn-rate", str(users), "--host", addresses[0]]
    options += ["--run-time", f"{max(1, round(duration_s))}s", "--stop-timeout", "10"]
    environment = os.environ | {"MEMWATCH_RUN_ADDRESSES": "\n".join(addresses)}
    with tempfile.TemporaryDirectory(prefix="memwatch-load-") as name:
        tables = Path(name) / "load"
        command = [*locust, "-f", locustfile or str(USERS), *options, "--csv", str(tables)]
        load = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            output, errors = load.communicate(timeout=duration_s + LOAD_STOP_S)
        except subprocess.TimeoutExpired:
            raise NotThere(f"locust did not end within {LOAD_STOP_S:.0f} s after the soak") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(load.pid, signal.SIGKILL)
            load.wait()
        try:
            seen = latencies(json.loads(output), duration_s)
        except (ValueError, LookupError, TypeError):
            last = errors.decode(errors="replace").strip().splitlines()[-3:]
            raise NotThere(f"locust ended with status {load.returncode} and told nothing: {' / '.join(last)}") from None
        return seen._replace(errors=failures(Path(f"{tables}_failures.csv")))


def failures(table: Path) -> tuple[Failed, ...]:
    """Why requests failed, by locust's table of that; nothing where there is none.

    Shares, because the table is written once a second: the number of all failures, which is exact, has some more.
    """
    try:
        with table.open(newline="", errors="replace") as file:
            rows = [
                (int(row["Occurrences"]), f"{row['Method']} {row['Name']}".strip(), row["Error"]) for row in csv.DictReader(file)
            ]
    except (OSError, LookupError, ValueError, TypeError, csv.Error):
        return ()  # how many failed is known all the same
    total = sum(count for count, _, _ in rows) or 1
    return tuple(Failed(request, reason, count / total) for count, request, reason in sorted(rows, key=lambda row: -row[0]))


def latencies(entries: Sequence[Mapping[str, Any]], duration_s: float) -> Latencies:
    """What locust tells, over all addresses: its histogram has milliseconds, rounded to two digits above 100."""
    histogram: dict[float, int] = {}
    for entry in entries:
        for milliseconds, count in entry["response_times"].items():
            histogram[float(milliseconds)] = histogram.get(float(milliseconds), 0) + count
    total = sum(histogram.values())

    def percentile(share: float) -> float | None:
        seen = 0
        for milliseconds in sorted(histogram):
            seen += histogram[milliseconds]
            if seen >= share * total:
                return milliseconds / 1000
        return None

    requests = sum(entry["num_requests"] for entry in entries)
    failures = sum(entry["num_failures"] for entry in entries)
    return Latencies(requests, failures, requests / duration_s, percentile(0.5), percentile(0.95), percentile(0.99))


def _duration(option: str, text: str) -> float:
    return _read_as(units.parse_duration, option, text)


def _read_as(parse: Callable[[str], Quantity], option: str, text: str) -> Quantity:
    try:
        return parse(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from None


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise click.UsageError(f"--load: {address!r} is not an address: {error}") from None
    spaced = any(ord(letter) <= 32 or ord(letter) == 127 for letter in address)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or spaced:
        raise click.UsageError(f"--load: {address!r} is not an address: give one such as http://127.0.0.1:8000/")
