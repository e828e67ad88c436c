"""The hooks that measure.  Registered only where the gate was asked for.

Law: nothing observed is kept; a failure is raised in the phase it belongs to: growth that is there when
the body has ended in the call, what the tear-down alone leaves in the tear-down.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import re
import sys
import types
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from memwatch.gate import blocks
from memwatch.gate.judging import MemoryGrowth
from memwatch.gate.peaks import Peak, PeakMeter, has_memray, read_mark
from memwatch.gate.readings import UNREAD, Growth, Reader, Reading, between
from memwatch.gate.settling import FROZEN_AT_START, settle
from pytest_memwatch import baseline, crashlog, files, inside, terminal
from pytest_memwatch.judge import Case
from pytest_memwatch.limits import ALIASES, Limits, Rules
from pytest_memwatch.measure import Older, Watch
from pytest_memwatch.options import load
from pytest_memwatch.plugin import has_pytest_memray
from pytest_memwatch.rerun import ENDS, Repeater, TearDown, failed_inside, stash_as, tearing_down
from pytest_memwatch.results import SUSPECT, Results, Row

HEAP_READERS = ("gc", "objgraph", "pympler", "muppy")
"""A test file with one of these names looks at the heap itself: nothing is hidden from it by freezing."""
MOST_TOLD = 20
"""Malformed markers that are told."""


class MemwatchWarning(pytest.PytestWarning):
    """A leak or a suspicion that does not fail its test."""


class Gate:
    """One session's gate.

    Args:
        on: check every test, not only marked ones.

    Raises:
        pytest.UsageError: a setting cannot be read.
    """

    def __init__(self, config: pytest.Config, *, on: bool) -> None:
        self.config = config
        self.settings = load(config)
        aliases = () if has_pytest_memray(config) else ALIASES
        self.rules = Rules(self.settings, on=on, aliases=aliases)
        self.results = Results()
        self.log = crashlog.CrashLog(config, self.settings.crash_log)
        self._limits: dict[str, Limits] = {}
        self._malformed: dict[str, str] = {}
        self._reader = Reader()
        self.repeater = Repeater()
        self._watch: Watch | None = None
        self._frozen = False
        self._first: Reading | None = None
        self._level: Reading = UNREAD
        """Before the last test."""
        self._older = Older()
        self._is_littered = False
        self._phases: dict[str, int] = {}
        self._meter_peak: Peak | None = None
        self._before = None if self.is_worker else baseline.read(self.settings)
        self._comparison = baseline.Comparison()
        self._unwritten: list[str] = []
        self._repeated: list[str] = []
        """The tests of the present file that were repeated."""

    def prepare(self, items: list[pytest.Item]) -> None:
        """Read the limits of every test, before any runs.

        Raises:
            pytest.UsageError: some are malformed; each message names its test.
        """
        for item in items:
            try:
                limits = self.rules.of(item)
                if limits.enabled and limits.peak is not None and self.settings.engine == "memray" and not has_memray():
                    missing = "the engine memray (--memwatch-engine) is not installed: pip install memray"
                    raise pytest.UsageError(f"{item.nodeid}: {missing}")
            except pytest.UsageError as error:
                self._malformed[item.nodeid] = str(error)
                continue
            if limits.enabled:
                self._limits[item.nodeid] = limits
        if self._malformed and not self.is_worker:  # a worker that ends in its collection takes the controller along
            raise pytest.UsageError(*list(self._malformed.values())[:MOST_TOLD])

    def close(self) -> None:
        """Undo everything."""
        self._reader.close()
        self.log.close()
        self._thaw()

    @property
    def is_worker(self) -> bool:
        """Whether this is a process of pytest-xdist."""
        return hasattr(self.config, "workerinput")

    # -- a test ----------------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        limits = self._limits.get(item.nodeid)
        if limits is None or not limits.enabled or self._is_off(item):
            self.log.start(item.nodeid, None)
            return (yield)
        space = getattr(getattr(item, "module", None), "__dict__", {})
        if any(name in space for name in HEAP_READERS):
            self._thaw()
        else:
            self._freeze()
        self.repeater.remember(item)
        self._open_watch(item, limits)
        self._points: list[blocks.Checkpoint] = []
        blocks.listen(self._points)
        try:
            return (yield)
        finally:
            blocks.unlisten(self._points)
            self.repeater.forget()
            self._watch = None
            self.results.checked += 1

    def _open_watch(self, item: pytest.Item, limits: Limits) -> None:
        before = self._begin(item, limits)
        self._watch = Watch(item, limits, self._reader, before or UNREAD, self._older)
        if before is None:
            self._watch.blind = "not judged: memory could not be read before it"
        self._row = Row(item.nodeid, location=[str(item.location[0]), (item.location[1] or 0) + 1])

    def _begin(self, item: pytest.Item, limits: Limits) -> Reading | None:
        """The process before a test; None if it cannot be read."""
        # The last failure's traceback holds what its frames hold.  pytest lets it go when the next body begins, and that is not to
        # be counted as given back by the next test.
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        try:
            if self._first is None:
                self.log.start(item.nodeid, None)  # opens its file, which is not the test's
                settle(self._reader)
                self._first = self._level = self._reader.read(small=True)
            before = self._reader.read(small=True)
            self._older = self._older.plus(between(self._level, before))
            # The one before has failed, and left its frames in a cycle; or was looked at, and left some 200 KiB of ours.
            if self._older.matters(limits) or self._is_littered:
                self._is_littered = False
                settle(self._reader)
                before, self._older = self._reader.read(small=True), Older()
        except Exception:
            self.log.start(item.nodeid, None)
            return None
        self._level = before
        self.log.start(item.nodeid, before.rss)
        return before

    def _is_off(self, item: pytest.Item) -> bool:
        option = self.config.option
        return bool(getattr(option, "setuponly", False) or getattr(option, "setupplan", False) or not hasattr(item, "runtest"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, object, object]:
        watch = self._watch
        wide = fixturedef.scope != "function"
        if watch is None or not (wide or self.repeater.running):
            return (yield)
        inside, before = (watch.excluded, dict(watch.excluded_counts)), UNREAD
        with _reading(watch):
            before = self._reader.read(small=True)
        try:
            return (yield)
        finally:
            with _reading(watch):
                after = self._reader.read(small=True)
                if wide:
                    asked_for = watch.excluded.less(inside[0])  # a wider fixture asked for inside has its own row
                    mine = watch.exclude(*inside, before, after).less(asked_for)
                    self.results.add_fixture(_fixture_name(fixturedef), fixturedef.scope, _bytes(mine) or 0)
                else:
                    self._phases[f"the set-up of fixture {fixturedef.argname!r}"] = _bytes(between(before, after)) or 0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        if self.repeater.running:
            self._phases = {}
        elif self._watch is not None:
            if self._watch.begun:  # pytest-rerunfailures runs it once more
                self._open_watch(item, self._watch.limits)
            self._watch.begun = True
        if item.nodeid in self._malformed:
            raise pytest.UsageError(self._malformed[item.nodeid])
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        watch = self._watch
        if watch is None:
            return (yield)
        meter = self._peak_meter(item, watch.limits)
        if self.repeater.running:
            self._meter_peak = None
            try:
                return (yield)
            finally:
                if meter is not None:
                    self._meter_peak = meter.stop()
        try:
            result = yield
        finally:
            if meter is not None:
                with _reading(watch):
                    watch.peak = meter.stop()
                    self._row.peak, self._row.peak_engine = watch.peak.bytes, watch.peak.engine
        if watch.failed_inside or failed_inside(item) is not None:
            return result
        watch.passed = True
        with _reading(watch):
            if watch.is_open and watch.suspicion():
                self._look_closer(watch, early=True)
        return result

    def _peak_meter(self, item: pytest.Item, limits: Limits) -> PeakMeter | None:
        if limits.peak is None:
            return None
        engine = self.settings.engine
        if engine == "auto" and _uses_memray(item):
            engine = "tracemalloc"  # only one tracker of memray's can run, and the test wants it
        meter = PeakMeter(engine, reader=self._reader)
        meter.prepare()
        meter.start()
        return meter

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
        watch = self._watch
        if watch is None or self.repeater.running:
            return (yield)
        judging = watch.is_open
        alone, held = not _shares_parents(item, nextitem), False

        def tear_down(exactly: TearDown) -> None:
            # Wider fixtures that go with this test wait until it is judged: what they free must not hide what the test keeps.
            nonlocal held
            if judging and alone:
                exactly(item.parent)
                with _reading(watch):
                    held = bool(watch.suspicion())
            if not held:
                exactly(nextitem)

        errors: list[BaseException] = []
        result, stash = None, dict(item.stash._storage)
        with tearing_down(item, tear_down) as exactly:
            try:
                result = yield
            except ENDS:
                raise
            except BaseException as error:
                errors.append(error)
        if judging and not errors and (held or not alone):
            with stash_as(item, stash):
                errors += self._judge_late(watch)
        if alone and (held or errors):
            try:
                exactly(nextitem)  # does nothing where it was done
            except ENDS:
                raise
            except BaseException as error:
                errors.append(error)
        problem = _together(*errors) if errors else watch.late_error
        if problem is not None:
            raise problem
        return result

    # -- judging ---------------------------------------------------------------------------------------------------------------

    def _judge_late(self, watch: Watch) -> list[BaseException]:
        try:
            with _reading(watch):
                if watch.late_error is None and watch.suspicion():
                    self._look_closer(watch, early=False)
        except MemoryGrowth as failure:
            return [failure]
        return []

    def _look_closer(self, watch: Watch, *, early: bool) -> None:
        """Settle; and if it still is suspicious, repeat and judge.  Raises MemoryGrowth for a leak."""
        __tracebackhide__ = True
        try:
            self._settle_and_judge(watch, early=early)
        finally:
            self._level, self._older = self._reader.read(small=True), Older()  # there is no garbage now

    def _settle_and_judge(self, watch: Watch, *, early: bool) -> None:
        __tracebackhide__ = True
        channels = tuple(watch.limits.counts)
        shared = _shared_fixture(watch.item) if self.settings.mode == "report" else None
        if shared is not None and early:
            return  # this mode changes no outcome: what a repetition leaves in the fixture, the next test would find
        if not watch.suspicion().peak:
            settle(self._reader, watch.baseline() if not early else None, channels=channels)
            if not watch.suspicion(settled=True):
                return
        if shared is not None:
            watch.judged = True
            self._row.growth, self._row.verdict = _bytes(watch.growth()), SUSPECT
            self._row.note = f"it grew, but was not run again: it shares the fixture {shared}, and mode=report changes no outcome"
            return
        if not early:
            self._judge(watch)
            return
        try:
            watch.late_error = self.repeater.finish_first(watch.item)
            settle(self._reader, watch.baseline(), channels=channels)
            if watch.late_error is None and watch.suspicion(settled=True):
                self._judge(watch)
        finally:
            self.repeater.set_up_again(watch.item)

    def _judge(self, watch: Watch) -> None:
        __tracebackhide__ = True
        watch.judged = True
        self._is_littered = True
        case = Case(lambda: self._repeat(watch), watch.limits, self._reader, self._row, self._phase)
        first = watch.growth()
        self._row.growth = _bytes(first)
        failure = case.judge(first, self._arrivals(watch))
        self._checkpoints()
        if failure is None:
            if self._row.verdict == SUSPECT and self.settings.mode != "report":
                _warn(f"{watch.item.nodeid}: suspect: {self._row.note}")
            return
        if self.settings.mode == "fail":
            raise failure
        if self.settings.mode == "warn":
            _warn(f"{watch.item.nodeid}: {failure}")

    def _repeat(self, watch: Watch) -> tuple[str | None, Peak | None]:
        nodeid = watch.item.nodeid
        if self._repeated and _file_of(self._repeated[-1]) != _file_of(nodeid):
            self._repeated = []
        if nodeid not in self._repeated:
            self._repeated.append(nodeid)
        run = self.repeater.run(watch.item)
        return run.error, self._meter_peak

    def _arrivals(self, watch: Watch) -> dict[str, int]:
        """What the first run left of each resource, where that is over the limit."""
        now, expected = self._reader.read(), watch.baseline()
        found = {}
        for channel, most in watch.limits.counts.items():
            count = getattr(now, channel)
            if count is not None and count - (getattr(expected, channel) or 0) > most:
                found[channel] = count - (getattr(expected, channel) or 0)
        return found

    def _phase(self) -> str:
        """The function-scope fixture whose set-up made most of what the last repetition keeps."""
        kept = max(self._row.repeats, default=0)
        for name, grown in self._phases.items():
            if self._row.metric == "heap" and grown >= 0.8 * kept:
                return name
        return ""

    def _checkpoints(self) -> None:
        self._row.checkpoints = [
            {"tag": point.tag, "growth": _bytes(point.growth), "where": os.path.basename(point.where)}  # noqa: PTH119
            for point in self._points[:20]
        ]

    # -- results ---------------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
        report = yield
        error = None if call.excinfo is None else call.excinfo.value
        self._is_littered |= error is not None and not isinstance(error, pytest.skip.Exception)
        watch = self._watch
        finding = error if isinstance(error, MemoryGrowth) else None
        if finding is not None and inside.is_of_gate(finding):
            if report.failed:
                report.longrepr = terminal.failure(item, finding)  # all its frames are pytest's and ours
        elif finding is not None and watch is not None and watch.item is item:
            inside.fill(self._row, finding, item.config.rootpath)
        elif report.failed:
            before = [one for one in self._repeated if one != item.nodeid and _file_of(one) == _file_of(item.nodeid)]
            if before:
                tests = ", ".join(one.partition("::")[2] for one in before[-3:])
                advice = "--memwatch-rerun=0 or memwatch(rerun=0) on it, if this fails for what it has left"
                report.sections.append(("memwatch", f"memwatch repeated {tests} before this test; {advice}"))
        if watch is not None and report.failed and call.when == "call" and not watch.passed:
            watch.failed_inside = True  # of a subtest, while the body goes on
        if report.failed and self.repeater.running:
            self.repeater.failed_inside = f"a subtest failed ({type(error).__name__})"
        if watch is not None and watch.item is item and call.when == "teardown":
            row = self._row
            with _reading(watch):
                now = self._reader.read(small=True)
                if row.growth is None:
                    row.growth = _bytes(watch.growth(now)) if watch.passed else None
                row.rss = None if now.rss is None or watch.before.rss is None else now.rss - watch.before.rss
            if not watch.passed:
                row.note = "failed or skipped: not judged"
            elif watch.blind is not None:
                row.note = watch.blind
            if not row.checkpoints:
                self._checkpoints()
            report.memwatch = row.to_dict()
            if getattr(self.config.option, "xmlpath", None):
                properties = [
                    ("memwatch_verdict", row.verdict),
                    ("memwatch_growth_bytes", row.growth),
                    ("memwatch_peak_bytes", row.peak),
                ]
                report.user_properties = [*report.user_properties, *(pair for pair in properties if pair[1] is not None)]
            self.log.end(item.nodeid)
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = getattr(report, "memwatch", None)
        if found is not None:
            self.results.add(Row.from_dict(found))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._thaw()
        with contextlib.suppress(Exception):  # the files are written without it
            self._measure_session()
        if self.is_worker:
            self.config.workeroutput["memwatch"] = self.results.session_part()  # type: ignore[attr-defined]
            return
        if not self.config.option.collectonly:  # that ran nothing: there is nothing to compare or to write
            asked = self.config.getoption("memwatch_baseline", None) is not None
            self._comparison = baseline.compare(self.results, self.settings, self._before, asked=asked)
        if self._comparison.fails and session.exitstatus == pytest.ExitCode.OK and self.settings.mode == "fail":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._unwritten = files.write(self.results, self.settings)
        if self._comparison.failed is not None:
            self._unwritten.append(self._comparison.failed)
        if self._unwritten and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def _measure_session(self) -> None:
        if self._first is not None:
            now = self._reader.read(small=True)
            mark = read_mark()
            self.results.peak_rss = max(self.results.peak_rss or 0, mark or now.rss or 0) or None
            self.results.growth = (self.results.growth or 0) + (_bytes(between(self._first, now)) or 0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        part = getattr(node, "workeroutput", {}) or {}
        if "memwatch" in part:
            self.results.merge(part["memwatch"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any, sched: object) -> None:
        told = self.log.last_of(crashitem)
        self.results.crashes.append(told)
        report.sections.append(("memwatch", terminal.crash_text(told)))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.is_worker:
            for line in self._unwritten:
                terminalreporter.write_line(f"memwatch: {line}", red=True)
            terminal.summary(terminalreporter, self.results, self.settings, self.log.left_behind(), self._comparison)

    def _thaw(self) -> None:
        if self._frozen:
            gc.unfreeze()
            self._frozen = False

    def _freeze(self) -> None:
        if not self._frozen and self.settings.gc_freeze and gc.get_freeze_count() <= FROZEN_AT_START:
            if self.config.pluginmanager.hasplugin("hypothesispytest"):
                # It asks gc.get_referrers, which does not see what is frozen; its plugin imports it at the end in any case.
                with contextlib.suppress(ImportError):
                    importlib.import_module("hypothesis")
            gc.collect()
            gc.freeze()
            self._frozen = True


@contextlib.contextmanager
def _reading(watch: Watch) -> Iterator[None]:
    """What fails in here has failed us and not the test: it is noted, and the test not judged."""
    try:
        yield
    except (MemoryGrowth, *ENDS):
        raise
    except Exception as error:
        watch.blind = f"not judged: memory could not be read ({type(error).__name__}: {error})"


def _warn(text: str) -> None:
    """Warn; where warnings are errors, too."""
    try:
        warnings.warn(MemwatchWarning(text), stacklevel=2)
    except MemwatchWarning as warning:
        with warnings.catch_warnings():
            warnings.simplefilter("always", MemwatchWarning)
            warnings.warn(warning, stacklevel=2)


def _shares_parents(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    return nextitem is not None and nextitem.listchain()[:-1] == item.listchain()[:-1]


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _shared_fixture(item: pytest.Item) -> str | None:
    """A fixture of the project's own that a test shares with others, set-ups of its module and class included."""
    found: Any = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name, definitions in found.items():
        file = str(getattr(getattr(definitions[-1].func, "__code__", None), "co_filename", ""))
        installed = "site-packages" in file and not name.startswith("_")  # pytest itself makes those of setup_module and setUpClass
        if definitions[-1].scope != "function" and not installed:
            return f"{name} ({definitions[-1].scope})"
    return None


def _fixture_name(fixturedef: Any) -> str:
    # The root conftest.py has the same base as a plugin, an empty one: the function's own file tells them apart.
    code = getattr(inspect.unwrap(fixturedef.func), "__code__", None)
    base = fixturedef.baseid
    if code is not None and os.path.basename(code.co_filename) == "conftest.py":  # noqa: PTH119
        return f"{fixturedef.argname} ({base + '/' if base else ''}conftest.py)"
    return f"{fixturedef.argname} ({base or 'plugin'})"


def _bytes(growth: Growth) -> int | None:
    return growth.heap if growth.heap is not None else growth.rss


def _together(*errors: BaseException | None) -> BaseException | None:
    found = [error for error in errors if error is not None]
    if len(found) <= 1:
        return found[0] if found else None
    return BaseExceptionGroup("errors in the tear-down", found)


_MEMRAY = re.compile(r"^memray(\.|$)")


def _uses_memray(item: pytest.Item) -> bool:
    """Whether a test names memray, in its own code or its module's."""
    function = getattr(item, "function", None)
    code = getattr(function, "__code__", None)
    if code is not None and "memray" in code.co_names:
        return True
    space = getattr(getattr(item, "module", None), "__dict__", {})
    named = [value for value in list(space.values()) if issubclass(type(value), type | types.ModuleType)]
    return any(_MEMRAY.match(str(getattr(value, name, ""))) for value in named for name in ("__name__", "__module__"))
