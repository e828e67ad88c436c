"""The watcher: reads vitals on an interval, judges the trend, relieves pressure, records, and tells the sinks.

Law: nothing ever escapes into the watched program.  `Watcher.tick` is the one place that catches everything; a plug (source, sink,
hook) that raises is logged once with its name, disabled, and listed in `Watcher.failures`.  No lock of ours is held while a plug
runs, so that a sink may call `stop()` and a hook may call `snapshot()`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from memwatch import config as settings
from memwatch import forks, osthread, units
from memwatch.audience import Audience, Occasion, Sink, headline, log_event, say
from memwatch.caches import registry
from memwatch.evidence import Bounded, Conclusion, Inquiry, Moment, Sampling
from memwatch.expectations import Expectations
from memwatch.interpreters import refusal
from memwatch.journal import Journal
from memwatch.live import LOOK_EVERY_S, LiveSocket
from memwatch.model import Census, Event, Evidence, Process, Report, Sample, Statistics, Verdict
from memwatch.news import News
from memwatch.pressure import Level, Pressure, ReliefHooks
from memwatch.record import RecordError, read_report
from memwatch.relief import Relief, Situation, collect_is_cheap
from memwatch.routes import known as known_ledger
from memwatch.routes.attribution import Attribution
from memwatch.tally import Tally
from memwatch.timeline import Clock, Timeline
from memwatch.trend import LeakDetector
from memwatch.vitals import Vitals, collect_garbage, read_pools_with, trim
from memwatch.whoami import describe_process

FORKED_CHILD_DELAY_S = 1.0
"""A forked child takes its first sample after this long: what lives shorter is of no interest to anybody, and costs nothing."""
EVENTS_IN_MEMORY = 200
END_WAIT_S = 1.0
"""`stop()` and the end of the interpreter wait at most this long for a tick under way, and as long for its write."""
CYCLES_SHARE = 0.5
"""Where this part of the growth is garbage that the collector has not reached, it is collected and seen what is left ..."""
COLLECT_ONCE_S = 0.1
"""... if that is predicted to hold the GIL no longer than this, once: the program's own collector is about to do the same."""
LOOK_AGAIN_S = 0.1
"""While a forked child looks at the heap, the thread wakes this often to read what it has found."""
FORK_WAIT_S = 0.2
"""The program's fork waits at most this long for a write under way (a slow disk)."""


class Source(Protocol):
    """What the watcher reads; `memwatch.vitals.Vitals`, or a scripted one in tests."""

    def read(self, on_error: Callable[[str, Exception], None] | None = None) -> Mapping[str, float]:
        """One reading: the channels read now."""
        ...


class Watcher:
    """Watches the process it runs in.

    Args:
        interval: this and all other settings and callbacks are those of `memwatch.start`; what is not given is read from
            `MEMWATCH_*`, else the default holds.
        hooks, expectations: a program's own sets; `memwatch.start` gives those that `on_cleanup` and `expect_gone` fill.
        clock, source: time and vitals; for tests.

    Raises:
        memwatch.config.SettingError: a setting is unknown or malformed.

    Threads: every method is safe from any thread.
    """

    # The state of one watch, which `_reset` begins.
    _state_lock: Any
    _record_lock: Any
    _alarm: osthread.Alarm
    _thread: osthread.Thread | None
    _threadless: bool
    _due_s: float
    _ticking: bool
    _stopped: bool
    _timeline: Timeline
    _tally: Tally
    _news: News
    _detector: LeakDetector | None
    _limit: float | None
    _events: list[Event]
    _pending: list[Event]
    _looked_for: bool
    _process: Process | None
    _relief: Relief
    _journal: Journal
    _routes: Attribution
    _evidence: tuple[Evidence, ...]

    def __init__(
        self,
        *,
        interval: str | None = None,
        growth_limit: str | None = None,
        memory_limit: str | None = None,
        warning: float | str | None = None,
        critical: float | str | None = None,
        evidence: str | None = None,
        sample_every: str | None = None,
        directory: str | os.PathLike[str] | bool | None = None,
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        sinks: Iterable[Sink | str] | None = None,
        on_leak: Callable[[Report], Any] | None = None,
        on_pressure: Callable[[Pressure], Any] | None = None,
        cleanup_interval: str | bool | None = None,
        record_limit: str | None = None,
        request_growth: str | bool | None = None,
        socket: bool | str | None = None,
        hooks: ReliefHooks | None = None,
        expectations: Expectations | None = None,
        clock: Clock | None = None,
        source: Source | None = None,
    ) -> None:
        self.config = settings.load(
            {
                "interval": interval,
                "growth_limit": growth_limit,
                "memory_limit": memory_limit,
                "warning": warning,
                "critical": critical,
                "evidence": evidence,
                "sample_every": sample_every,
                "directory": directory,
                "labels": labels,
                "name": name,
                "cleanup_interval": cleanup_interval,
                "record_limit": record_limit,
                "request_growth": request_growth,
                "socket": socket,
            }
        )
        self.clock: Clock = clock or time
        self.failures: dict[str, str] = {}
        """Plugs that failed and were disabled: name to what they raised."""
        self._hooks = hooks if hooks is not None else ReliefHooks()
        self._expectations = expectations if expectations is not None else Expectations()
        self._audience = Audience(self._fail)
        if sinks is None and not settings.is_disabled():
            sinks = self.config.sinks
        self._audience.add(sinks=sinks, on_leak=on_leak, on_pressure=on_pressure)
        self._given_source = source
        self._vitals = (
            None
            if source is not None
            else Vitals(
                own_fds=self._own_descriptors,
                own_sockets=self._own_sockets,
                own_threads=self._own_threads,
                own_children=self._own_children,
            )
        )
        # Readings that somebody scripted are not this process's: evidence about it would not explain them.
        mode = "off" if source is not None and evidence is None else self.config.evidence
        self._inquiry = Inquiry(
            mode,
            sample_bytes=self.config.sample_bytes,
            clock=self.clock.monotonic,
            give_back=self._give_back,
            say=lambda message: say("%s", message),
        )
        self._live = None if self.config.socket == "off" else LiveSocket(self, control=self.config.socket == "control")
        self._generation = 0
        self._thread_running = False
        self._forked = False
        self._reset()

    # -- life ------------------------------------------------------------------------------------------------------------------

    def start(self, *, thread: bool = True) -> Self:
        """Begin to watch, on a thread of its own.  Does nothing if it is watching already; may follow `stop()`.

        Args:
            thread: False where a thread would not run (a process that is frozen between two calls): the caller calls `tick()`.

        Never raises: where a thread cannot be started, that is logged and the program goes on unwatched.
        """
        with forks.lock, self._state_lock:
            if self.running:
                return self
            why_not = refusal()
            if why_not:
                say("not watching: %s", why_not)
                return self
            if self._stopped:
                self._reset()
            self._due_s = self.clock.monotonic()
            forks.watch(self)  # before the first tick: the program may fork at once
            self._inquiry.begin()
            if self._inquiry.sampling is not None:
                read_pools_with(self._inquiry.sampling.module.pymalloc_statistics)
            if thread:
                self._begin()
        return self

    def stop(self) -> None:
        """Stop watching, write the goodbye and close the record.  Safe from a sink or hook, and more than once.  Never raises."""
        self._end("stopped watching")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the sampling thread is at work."""
        return self._thread_running and self._thread is not None and self._thread.alive

    @property
    def stopped(self) -> bool:
        """Whether nobody wants it to run: it was stopped, or never started."""
        return not self._thread_running

    @property
    def record_path(self) -> Path | None:
        """The file being written; None without one."""
        return self._journal.path

    # -- what is known ---------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Sample:
        """One reading now.  It is not recorded and does not disturb the trend.

        Cost: as one tick (bench/tick.py).
        """
        with self._state_lock:
            return Sample(self.clock.time(), self._timeline.uptime_s(), self._read())

    def trend(self, channel: str = "rss") -> Verdict:
        """What one channel does.

        Raises:
            KeyError: no such channel is judged; the message lists those that are.
        """
        with self._state_lock:
            verdicts = self._verdicts()
        if not verdicts:
            return Verdict(channel, "warming-up", reason="no sample was taken yet")
        if channel not in verdicts:
            raise KeyError(f"no channel {channel!r} is judged; there are {', '.join(sorted(verdicts))}")
        return verdicts[channel]

    def statistics(self) -> Statistics:
        """Current, average and peak of every channel since the watch began."""
        with self._state_lock:
            return self._tally.statistics(self._timeline.uptime_s(), self._verdicts())

    def report(self) -> Report:
        """Everything known.  Where there is a record, the curve, all events and the evidence come from it."""
        self._look_at_routes(asked=True)
        with self._state_lock:
            report = replace(self._report(estimate=True), events=tuple(self._events))
            path = self.record_path
        if path is not None:
            with contextlib.suppress(RecordError):
                recorded = read_report(path)
                report = replace(
                    report,
                    history=recorded.history,
                    events=recorded.events,
                    censuses=recorded.censuses,
                    evidence_taken=recorded.evidence_taken,
                )
        return report

    @property
    def verdict(self) -> Verdict:
        """The verdict of the last sample."""
        return self._news.verdict

    @property
    def samples(self) -> int:
        """How many samples were taken."""
        return self._tally.samples

    @property
    def pressure_level(self) -> Level:
        """How near the limit memory was at the last sample: `normal`, `warning` or `critical`."""
        return self._relief.level

    @property
    def live_socket(self) -> LiveSocket | None:
        """Where `memwatch report --now` reaches this process; None if that is switched off."""
        return self._live

    def look_now(self) -> str | None:
        """Take evidence at the next tick whatever the verdict: what grows where something does, else what is alive.

        It goes into the record with that tick or one of those after it, when the forked child has told what it found.

        Returns:
            Why it cannot be done; None if it will be.
        """
        with self._state_lock:
            latest = self._tally.latest()
            why_not = self._inquiry.demand(latest.get("rss"), self._limit)
        if why_not is None:
            self._looked_for = True
        return why_not

    @property
    def looking_now(self) -> bool:
        """Whether what `look_now` asked for is not in the record yet."""
        return self._inquiry.demanded or self._looked_for

    def add_callbacks(
        self,
        *,
        sinks: Iterable[Sink | str] | None = None,
        on_leak: Callable[[Report], Any] | None = None,
        on_pressure: Callable[[Pressure], Any] | None = None,
    ) -> None:
        """Add functions to be told; see `memwatch.start`.  A function given again is told once.

        Raises:
            TypeError: one of them can be told nothing.
            memwatch.config.SettingError: there is no sink of that name, or what it needs is not installed.
        """
        self._audience.add(sinks=sinks, on_leak=on_leak, on_pressure=on_pressure)

    def add_labels(self, labels: Mapping[str, str]) -> bool:
        """Put more labels on what is told and recorded from now on; one that there is keeps its value.

        `memwatch run` watches before the program says what it is.

        Returns:
            Whether all have the value given.
        """
        with self._state_lock:
            self.config = replace(self.config, labels={**labels, **self.config.labels})
            self._process = None
            return labels.items() <= self.config.labels.items()

    def note(self, what: str, details: Mapping[str, Any]) -> None:
        """Put an event into the record with the next tick."""
        event = Event(self.clock.time(), what, _plain(details))
        with self._state_lock:
            self._remember([event])
            self._pending.append(event)
            del self._pending[:-EVENTS_IN_MEMORY]

    # -- one tick --------------------------------------------------------------------------------------------------------------

    def tick(self) -> Verdict:
        """Take one sample, judge it, act on it.  What the thread does on every interval; never raises.

        A tick that comes while another is under way (from a hook, or another thread) takes nothing; the verdict stands.
        """
        forks.settled()
        with self._state_lock:
            if self._ticking:
                return self._news.verdict
            self._ticking = True
        try:
            self._tick()
        except Exception as error:
            # The one place that catches everything: a fault of ours must not become the program's.
            self._fail("tick", error, disabled=False)
        finally:
            self._ticking = False
        return self._news.verdict

    def _tick(self) -> None:
        self._look_at_routes()
        with self._state_lock:
            if not self._tally.samples:
                forks.watch(self)  # also where tick() is called by hand
            now_s = self._timeline.now()
            values = self._read()
            sample = Sample(now_s, self._timeline.uptime_s(), values)
            self._tally.add(sample)
            situation = self._situation(sample)
            found = self._judge(sample)
            conclusion = self._inquire(found)
            events = self._draw(conclusion, now_s, situation)
            if events or (conclusion is not None and conclusion.bounded is not None):
                found = self._timeline.on_wall_clock(self._overall())
            growth_limit = self.config.growth_limit(self._limit)
            more, occasions = self._news.follow(found, now_s, growth_limit=growth_limit, looking=self._inquiry.pending)
            events += more
            census = self._census(conclusion, now_s)
            events += self._routes.observe(sample)
            report = self._report()
            journal = self._journal  # a stop and start meanwhile begin another one
        # From here on without the state lock: hooks and sinks are the program's code.
        with osthread.program_signals():
            events += self._relief.act(situation, self._audience.pressed)
        for finding in self._expectations.overdue(self.clock.monotonic(), situation.blocks):
            events.append(Event(now_s, "finding", finding))
            occasions.append("finding")
        with self._state_lock:
            self._remember(events)
            events = self._pending + events
            self._pending = []
        with self._record_lock:
            evidence = None if conclusion is None else conclusion.evidence
            journal.write(sample, report, events, now_s=self.clock.monotonic(), evidence=evidence, census=census)
            if not self._inquiry.demanded:
                self._looked_for = False
        self._audience.ticked(sample, report)
        self._audience.happened(events)
        for event in events:
            log_event(event)
            if event.what == "alert" and event.details["alert"] == "peak":
                occasions.append("peak")
        for occasion in occasions:
            self._tell(occasion)

    def _judge(self, sample: Sample) -> Verdict:
        if self._detector is None:
            growth_limit = self.config.growth_limit(self._limit)
            self._detector = LeakDetector(self.config.interval_s, self._limit, growth_limit=growth_limit)
        found = self._detector.update(self._timeline.steady(sample.uptime_s), sample.values)
        return self._timeline.on_wall_clock(found)

    # -- evidence --------------------------------------------------------------------------------------------------------------

    def _inquire(self, found: Verdict) -> Conclusion | None:
        """Let the inquiry take note of the tick.  What fails in it costs the evidence, not the watch."""
        now_s = self.clock.monotonic()
        since_s = None if found.since is None else now_s - (self._timeline.now() - found.since)
        readings = self._tally.latest()
        if self._limit is not None:
            readings["limit"] = self._limit
        try:
            return self._inquiry.observe(Moment(now_s, found, since_s, readings))
        except Exception as error:
            self._fail("evidence", error)
            self._inquiry.end()
            self._inquiry.mode = "off"
            return None

    def _draw(self, conclusion: Conclusion | None, now_s: float, situation: Situation) -> list[Event]:
        """What the evidence means for the verdict: a bounded container that fills up, garbage that waits for the collector."""
        if conclusion is None:
            return []
        self._evidence = conclusion.evidence
        self._news.kind_found = conclusion.kind
        if conclusion.bounded is not None:
            self._explain(conclusion.bounded)
            return [Event(now_s, "note", {"note": f"a fill, not a leak: {conclusion.bounded.reason}"})]
        if conclusion.cycles_share < CYCLES_SHARE:
            return []
        part = f"{conclusion.cycles_share * 100:.0f} % of the growth is garbage in cycles that the collector has not reached"
        if not collect_is_cheap(situation.blocks, COLLECT_ONCE_S):
            why = "gc is switched off" if not gc.isenabled() else "a collection would be a pause"
            return [Event(now_s, "note", {"note": f"{part}; it was not collected: {why}"})]
        with osthread.program_signals():
            freed = collect_garbage()
        size = units.format_size(max(0.0, freed.heap_bytes or 0.0))
        reason = f"collectable: {part}; a collection freed {size}"
        if (freed.heap_bytes or 0.0) >= 0.5 * CYCLES_SHARE * self._detector_grown():
            self._explain(Bounded(reason, None, None))
        return [Event(now_s, "note", {"note": reason})]

    def _explain(self, bounded: Bounded) -> None:
        if self._detector is not None:
            self._detector.explain_as_bounded(bounded.reason, room=bounded.room, channel=bounded.channel)

    def _overall(self) -> Verdict:
        assert self._detector is not None
        return self._detector.verdict

    def _detector_grown(self) -> float:
        return 0.0 if self._detector is None else self._detector.verdict.grown

    def _look_at_routes(self, *, asked: bool = False) -> None:
        """Find out whose requests the growth goes with; without a lock, because it may take a tenth of a second."""
        verdict = self._news.verdict
        since_s = None if verdict.since is None else verdict.since - self._timeline.anchor_s
        try:
            for event in self._routes.look(verdict, since_s, asked=asked):
                self.note(event.what, event.details)
        except Exception as error:
            self._fail("routes", error, disabled=False)

    def _census(self, conclusion: Conclusion | None, now_s: float) -> Census | None:
        levels = conclusion.levels if conclusion is not None else self._inquiry.levels_due(self.clock.monotonic())
        return Census(now_s, levels) if levels else None

    def _give_back(self) -> float | None:
        before = self.read_rss()
        if before is None or not trim():
            return None
        after = self.read_rss()
        return None if after is None else before - after

    def _situation(self, sample: Sample) -> Situation:
        return Situation(
            time_s=sample.time_s,
            uptime_s=sample.uptime_s,
            rss_bytes=sample.values.get("rss"),
            blocks=self._tally.current("blocks"),
            retained_bytes=self._tally.current("retained"),
            limit_bytes=self._limit,
            warning_bytes=self.config.level_bytes(self.config.warning, self._limit),
            critical_bytes=self.config.level_bytes(self.config.critical, self._limit),
        )

    # -- telling ---------------------------------------------------------------------------------------------------------------

    def _tell(self, occasion: Occasion) -> None:
        report = self.report()
        if occasion in ("leak", "doubled"):
            from memwatch.report import brief  # loaded when there is something to say

            headline("%s", brief(report))
        elif occasion == "over":
            ended = report.verdict.state in ("recovering", "stable")
            say("the leak is over: %s" if ended else "what leaked has stopped growing; now %s", report.verdict.reason)
        self._audience.told(occasion, report)

    def _fail(self, name: str, error: BaseException, *, disabled: bool = True) -> None:
        """Log a failing plug once, and list it."""
        if name in self.failures:
            return
        what = f"{type(error).__name__}: {_text(error)}"
        self.failures[name] = what
        self.note("plug", {"plug": name, "error": what, "disabled": disabled})
        say("%s failed and %s: %s", name, "was disabled" if disabled else "was skipped", what)

    # -- the thread ------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._generation += 1
        generation = self._generation
        self._thread_running = True
        try:
            self._thread = osthread.Thread(lambda: self._run(generation), "memwatch")
        except RuntimeError as error:
            self._thread = None
            if not self._threadless:
                say("not watching for now: no thread could be started (%s); tried again at the next fork or start()", error)
            self._threadless = True
        else:
            self._threadless = False

    def _run(self, generation: int) -> None:
        interval_s = self.config.interval_s
        while True:
            # Rung for an end or a fork; a bell that rang for an earlier thread wakes us early, so look at the time again.
            while (wait_s := self._due_s - self.clock.monotonic()) > 0 and generation == self._generation:
                self._alarm.wait(min(wait_s, self._look_again_s(), self._inquiry.take_turns()))
                if generation != self._generation:
                    break
                if self._live is not None:
                    self._live.poll()
                if (self._looked_for and not self._inquiry.looking) or (self._inquiry.looking and self._inquiry.poll()):
                    self.tick()  # out of turn: what was found is told now, not at the end of the interval
            if generation != self._generation:
                return
            self.tick()
            if self._live is not None and self._live.path is None and self._live.declined is None:
                self._live.open()  # not before: what lives shorter is of no interest to anybody
            self._due_s += interval_s
            late_s = self.clock.monotonic() - self._due_s
            if late_s > 0:  # behind (a busy machine, a slow hook, a stopped process): skip the missed ticks, keep the beat
                self._due_s += interval_s * (late_s // interval_s + 1)

    def _look_again_s(self) -> float:
        """The thread wakes this often between two samples."""
        if self._inquiry.looking:
            return LOOK_AGAIN_S
        return osthread.TIMEOUT_MAX_S if self._live is None else LOOK_EVERY_S

    def _end(self, how: str) -> None:
        try:
            self._end_unguarded(how)
        except Exception as error:
            self._fail("stop", error, disabled=False)

    def _end_unguarded(self, how: str) -> None:
        with self._state_lock:
            self._thread_running = False
            self._stopped = True
            self._generation += 1
        self._alarm.ring()
        forks.unwatch(self)
        self._relief.end()
        # Every wait here is bounded: a hook or a disk that hangs must not keep the program from ending.
        if self._thread is not None:
            self._thread.wait_gone(END_WAIT_S)
        if self._inquiry.pending:
            self._tell_what_is_held()
        if self._record_lock.acquire(timeout=END_WAIT_S):
            try:
                worthless = self._forked and self._tally.samples < 3
                self._journal.close(self.clock.time(), how, worthless=worthless)
            finally:
                self._record_lock.release()
        if self._live is not None:
            self._live.close()
        self._audience.ended()
        self._routes.end()
        with self._state_lock:
            self._inquiry.end()
            if not Sampling.in_use():
                read_pools_with(None)
            if self._vitals is not None:
                self._vitals.close()

    def _tell_what_is_held(self) -> None:
        """A leak is being looked at and the end has come: wait a moment for the evidence, and tell it in any case."""
        deadline_s = time.monotonic() + END_WAIT_S
        while self._inquiry.looking and not self._inquiry.poll() and time.monotonic() < deadline_s:
            self._alarm.wait(0.02)
        self.tick()
        if self._inquiry.pending:
            self._inquiry.give_up()
            self.tick()

    # -- fork and exit (called by memwatch.forks) ------------------------------------------------------------------------------

    def before_fork(self) -> list[Any]:
        """End the sampling thread, so that the process forks without it; returns the locks held over the fork.

        A child would inherit whatever locks it holds (of SQLite, of the C library) with nobody to release them, and since Python
        3.12 a fork beside another thread warns.  A tick under way is waited for, but not for long.
        """
        if self._thread_running and self._thread is not None:
            self._generation += 1
            self._alarm.ring()
            self._thread.wait_gone(FORK_WAIT_S)
        # Held over the fork: other threads of the program may be about to take a snapshot, or to tick.
        return [lock for lock in (self._record_lock, self._state_lock) if lock.acquire(timeout=FORK_WAIT_S)]

    def after_fork_in_parent(self) -> None:
        """Go on where the fork interrupted."""
        if self._thread_running:
            self._begin()

    def after_fork_in_child(self) -> None:
        """Watch the child: a new trend and a new record; the parent's is left alone."""
        self._journal.abandon()
        self._inquiry.after_fork()
        if self._live is not None:
            self._live.after_fork()
        self._forked = True
        self._reset()
        self._due_s = self.clock.monotonic() + FORKED_CHILD_DELAY_S
        if self._vitals is not None:
            self._vitals.after_fork()
        if self._thread_running:
            self._begin()

    def at_exit(self) -> None:
        """The interpreter ends normally: say goodbye, with the uncaught exception if that is why."""
        uncaught = getattr(sys, "last_type", None)
        self._end(f"uncaught {uncaught.__name__}" if uncaught is not None else "normal exit")

    # -- inner state -----------------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        """A new watch: nothing of an earlier one, or of a parent's, is carried over."""
        self._state_lock = osthread.new_rlock()
        self._record_lock = osthread.new_rlock()
        self._alarm = osthread.Alarm()
        self._thread = None
        self._threadless = False
        self._due_s = 0.0
        self._ticking = False
        self._stopped = False
        self._timeline = Timeline(self.clock, self.config.interval_s, self._clock_moved)
        self._tally = Tally()
        self._news = News()
        self._detector = None
        self._limit = self.config.memory_limit_bytes
        self._events = []
        self._pending = []
        self._looked_for = False
        self._process = None
        self._evidence = ()
        self._relief = Relief(
            self._hooks, cleanup_interval_s=self.config.cleanup_interval_s, read_rss=self.read_rss, on_error=self._fail
        )
        self._routes = Attribution(
            known_ledger,
            threshold_bytes=self.config.request_growth_bytes,
            read_rss=self.read_rss if self._given_source is None else None,
        )
        self._journal = Journal(
            self.config.directory,
            self._described,
            lambda message: say("%s", message),
            limit_bytes=self.config.record_limit_bytes,
        )

    def _clock_moved(self, moved_s: float) -> None:
        self.note("note", {"note": "the wall clock was set, or the machine slept", "seconds": round(moved_s, 1)})

    def _read(self) -> Mapping[str, float]:
        source = self._given_source or self._vitals
        assert source is not None
        values = dict(source.read(self._source_failed))
        if self.config.memory_limit_bytes is not None:
            values["limit"] = float(self.config.memory_limit_bytes)
        accounted = registry.accounted_bytes()
        if accounted is not None:
            values["caches"] = float(accounted)
        self._limit = values.get("limit", self._limit)
        return values

    def _source_failed(self, name: str, error: Exception) -> None:
        self._fail(f"source {name}", error)

    def read_rss(self) -> float | None:
        """Resident bytes now, from the descriptor kept open; None where they cannot be read.  About 3 µs (bench/tick.py)."""
        try:
            if self._given_source is not None:
                return self._given_source.read().get("rss")
            assert self._vitals is not None
            return self._vitals.read_rss()
        except Exception:
            return None  # only the figure of a relief step is lost

    def _own_descriptors(self) -> int:
        return self._journal.descriptors + self._inquiry.own_descriptors + self._own_sockets()

    def _own_sockets(self) -> int:
        return 0 if self._live is None else self._live.descriptors

    def _own_children(self) -> int:
        return self._inquiry.own_children

    def _own_threads(self) -> int:
        return int(self._thread_running)

    def _verdicts(self) -> Mapping[str, Verdict]:
        if self._detector is None:
            return {}
        return {name: self._timeline.on_wall_clock(verdict) for name, verdict in self._detector.verdicts().items()}

    def _report(self, *, estimate: bool = False) -> Report:
        statistics = self._tally.statistics(self._timeline.uptime_s(), self._verdicts())
        caches, routes = registry.rows(estimate=estimate), self._routes.rows()
        return Report(self._described(), self._news.verdict, statistics, self._evidence, caches, routes, self._routes.note)

    def _described(self) -> Process:
        if self._process is None:
            self._process = describe_process(self.config)
        return self._process

    def _remember(self, events: Iterable[Event]) -> None:
        self._events = [*self._events, *events][-EVENTS_IN_MEMORY:]


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details as JSON types, so that they can be recorded whatever the caller gave."""
    try:
        plain = json.loads(json.dumps(dict(details), default=_text, skipkeys=True))
    except Exception as error:
        return {"unreadable": type(error).__name__}
    return dict(plain)


def _text(thing: object) -> str:
    try:
        return str(thing)[:500]
    except Exception:
        return "(cannot be shown)"
