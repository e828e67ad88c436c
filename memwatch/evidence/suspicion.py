"""One suspicion: its baselines, what is asked of a child and when, and what is concluded from the answer.

Law: a suspicion owns its baselines, and its end frees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from memwatch.evidence import census, fallback, names, resources, sites, sources
from memwatch.evidence.child import Child, refusal
from memwatch.evidence.findings import Bounded, Conclusion, Moment
from memwatch.evidence.survivors import survivors
from memwatch.evidence.told import KINDS_OF, Paths, counts_of, is_counted, levels_of, measured, types_evidence, with_callers
from memwatch.model import Evidence, Kind

if TYPE_CHECKING:
    from memwatch.evidence.inquiry import Inquiry

SAMPLES_NEEDED = 24
"""A conclusion waits until the growth was sampled about this often ..."""
PATIENCE_TICKS = 12
"""... but not longer than this many ticks, and not at all when memory runs out within `URGENT_S`."""
URGENT_S = 60.0
LISTED_AT_MOST = 5000
"""Resources beyond this number are not listed for a baseline."""
TRACED_TICKS = 64
TRACED_S = 60.0
"""tracemalloc that we started runs at most this long before there is a conclusion: it makes a program 2 to 12 times slower."""
NOT_PYTHON = 0.2
"""Growth of which Python's allocators gave out less than this part is not Python's."""
FINE_BYTES = 4096
"""Bytes between two samples while resources are suspected."""
COUNTED = ("fds", "threads", "children")
"""Resources that are listed here; tasks are in the child: a reference to a task here could be its last."""
FINE_TICKS = 64
LOOKED_AT_AS = {"sockets": "fds"}


class Suspicion:
    """One suspicion: its baselines, its child, its conclusion."""

    def __init__(self, inquiry: Inquiry, moment: Moment) -> None:
        self.child: Child | None = None
        """At work now."""
        self._inquiry = inquiry
        self._began = moment
        self._question: _Question | None = None
        """What the child at work is to answer; None for a baseline."""
        self._finished: Child | None = None
        self._asked = False
        self._concluded = False
        self._told_growth = 0.0
        self._waited = 0
        self._why_no_child: str | None = None
        self._counted_here: dict[str, int] | None = None
        """The types counted in this process, where no child may be forked."""
        self._counts: census.Counts | None = None
        self._counts_at = moment
        self._tasks: resources.Found | None = None
        self._level: sites.Level | None = None
        self._tracing: sources.Tracing | None = None
        self._traced_ticks = 0
        self._ticks = 0
        self._native_stacks = fallback.NativeStacks()
        self._native_before: dict[int, float] = {}
        sampling = inquiry.sampling
        if sampling is not None:
            if is_counted(moment.verdict.channel):
                sampling.refine(FINE_BYTES)  # their objects are small and few: where are they made?
            self._level = inquiry.levels.at(moment.now_s if moment.since_s is None else moment.since_s)
            sampling.module.watch_native(True)
            self._native_before = {row[0]: row[1] for row in sampling.module.native()}
        elif inquiry.mode == "tracemalloc":
            self._trace(moment)
        self._resources = {
            channel: resources.look(channel) for channel in COUNTED if moment.readings.get(channel, 0.0) <= LISTED_AT_MOST
        }
        if inquiry.may_take_census():
            self._fork(census.Task(list, None, False), moment)
            if self.child is None:
                self._counted_here = fallback.count_types(moment.readings.get("blocks"))

    @property
    def pending(self) -> bool:
        """Whether the verdict is a leak, and there is no conclusion on it yet."""
        return self._asked and not self._concluded

    def observe(self, moment: Moment, *, demanded: bool = False) -> Conclusion | None:
        """Take note of a tick of the suspicion; returns a conclusion when there is one.

        Args:
            demanded: somebody wants to know now, whether it is a leak or not.
        """
        if self._inquiry.sampling is None:
            self._native_stacks.tick(moment.readings.get("native"))
        self._ticks += 1
        if self._ticks == FINE_TICKS:
            self._rest()  # what comes and goes for so long is not worth more
        self._limit_tracing(moment)
        if self.poll():
            child, self._finished = self._finished, None
            question, self._question = self._question, None
            assert child is not None
            if question is not None:
                return self._conclude(moment, question, child)
            self._counts = counts_of(child.lines)
            self._tasks = resources.told(child.lines)
        if moment.verdict.state != "leaking" and not demanded:
            return None
        if self._concluded and not demanded and not moment.verdict.grown >= 2 * self._told_growth > 0:
            return None
        self._asked, self._concluded = True, False
        if self.child is not None:
            return None
        if self._inquiry.sampling is None and self._tracing is None and self._inquiry.mode in ("auto", "tracemalloc"):
            self._trace(moment)
        if not demanded and self._is_too_early(moment):
            self._waited += 1
            return None
        return self._ask(moment)

    def poll(self) -> bool:
        """Whether the child at work has ended."""
        if self.child is None or not self.child.poll():
            return self._finished is not None
        self._finished, self.child = self.child, None
        spent_s = [float(line["took_s"]) for line in self._finished.lines if "took_s" in line]
        self._inquiry.census_took(max(spent_s, default=1.0) + self._finished.fork_s)
        return True

    def give_up(self) -> None:
        """Conclude nothing any more."""
        self.close()
        self._concluded = True
        self._told_growth = math.inf

    def lost_samples(self) -> None:
        """Another tool has dropped the sampler's hooks: what was there before is unknown."""
        self._level = None

    def close(self) -> None:
        """Free the baselines, and end what is at work."""
        if self.child is not None:
            self.child.kill()
            self.child = None
        self._stop_tracing()
        self._rest()
        self._counts = self._level = self._question = self._counted_here = None
        self._resources = {}

    # -- tracemalloc, where it stands in ---------------------------------------------------------------------------------------

    def _trace(self, moment: Moment) -> None:
        self._tracing = sources.Tracing()
        self._traced_ticks = 0
        self._level = sites.take_level(self._tracing, moment.now_s, moment.readings)

    def _limit_tracing(self, moment: Moment) -> None:
        """While nothing is confirmed the program is not slowed down for long."""
        self._traced_ticks += 1
        traced_s = 0.0 if self._level is None else moment.now_s - self._level.time_s
        if self._tracing is not None and not self.pending and (self._traced_ticks > TRACED_TICKS or traced_s > TRACED_S):
            self._stop_tracing()

    def _stop_tracing(self) -> None:
        if self._tracing is not None:
            self._tracing.stop()
            self._tracing = self._level = None

    # -- asking ----------------------------------------------------------------------------------------------------------------

    def _is_too_early(self, moment: Moment) -> bool:
        """Whether so little has grown since the baselines that a little patience makes the evidence better."""
        exhausted_s = moment.verdict.exhausted_in_s
        urgent = exhausted_s is not None and exhausted_s < URGENT_S
        if is_counted(moment.verdict.channel) or urgent or self._waited >= PATIENCE_TICKS:
            return False
        baselines = [] if self._level is None else [(self._level.readings, self._level.time_s)]
        if self._counts is not None:
            baselines.append((self._counts_at.readings, self._counts_at.now_s))
        needed = SAMPLES_NEEDED * (self._inquiry.sampling.mean_bytes if self._inquiry.sampling is not None else 65536)
        return any(measured(moment, readings, time_s) < needed for readings, time_s in baselines)

    def _fork(self, task: census.Task, moment: Moment) -> None:
        self._why_no_child = refusal(moment.readings.get("rss"), moment.readings.get("limit"))
        if self._why_no_child is not None:
            return
        try:
            self.child = Child(task, clock=self._inquiry.clock)
        except (OSError, RuntimeError) as error:
            self._why_no_child = f"the heap was not looked at: no child could be forked ({error})"

    def _ask(self, moment: Moment) -> Conclusion | None:
        channel = moment.verdict.channel
        found: Evidence | None = None
        labels: dict[int, str] = {}
        blocks: Callable[[], Sequence[census.Block]] = list
        source: sources.SiteSource | None = self._inquiry.sampling or self._tracing
        level = self._level
        if source is not None and level is not None:
            grown = sites.growths(level.live(), source.live(), source.live(level.time_s))
            whole = None if is_counted(channel) else measured(moment, level.readings, level.time_s)
            found, labels = sites.rank(grown, source, whole, resident=channel == "rss", since_s=moment.now_s - level.time_s)
            told = {suspect.label for suspect in found.suspects}
            wanted = {row.key: row.bytes for row in grown if labels.get(row.key) in told or not source.stack(row.key)}
            if isinstance(source, sources.Sampling):
                sampling, since_s, all_of_them = source, level.time_s, is_counted(channel)

                def blocks() -> list[census.Block]:
                    if all_of_them:
                        return [census.Block(row[0], row[2], row[3]) for row in sampling.blocks(since_s, 1 << 30)]
                    return survivors(sampling, wanted, since_s, moment.now_s)

        question = _Question(moment, found, labels)
        more: int | None = None
        before = self._counts_at.readings.get(channel)
        if is_counted(channel) and before is not None:
            more = round(moment.readings.get(channel, 0.0) - before)
        self._fork(census.Task(blocks, self._counts, True, KINDS_OF.get(channel, ()), more), moment)
        if self.child is None:
            return self._conclude(moment, question, None)
        self._question = question
        return None

    # -- concluding ------------------------------------------------------------------------------------------------------------

    def _conclude(self, moment: Moment, question: _Question, child: Child | None) -> Conclusion:
        self._concluded = True
        self._waited = 0
        self._told_growth = moment.verdict.grown
        channel = moment.verdict.channel
        found: list[Evidence] = []
        levels: list[Evidence] = []
        bounded: Bounded | None = None
        cycles_share = 0.0
        if is_counted(channel):
            looked_at = LOOKED_AT_AS.get(channel, channel)
            if channel == "tasks":
                now = resources.told(child.lines) if child is not None else None
                found.append(resources.compare(channel, self._tasks, now or {}))
            else:
                found.append(resources.compare(channel, self._resources.get(looked_at), resources.look(channel)))
        if question.sites is not None:
            found.append(question.sites)
        if child is None:
            found.append(fallback.types_in_process(self._why_no_child or "", moment.readings.get("blocks"), self._counted_here))
        else:
            at, level = question.moment, self._level
            counts = counts_of(child.lines)
            whole = None if level is None else measured(at, level.readings, level.time_s)
            paths = Paths(child.lines, question.labels, whole, counted=is_counted(channel))
            if is_counted(channel):
                if (sampling := self._inquiry.sampling) is not None:
                    fresh = sampling.live(self._began.now_s if level is None else level.time_s)
                    stacks = ((row.samples, sampling.stack(key)) for key, row in fresh.items())
                    origin = resources.made_through(channel, stacks) or paths.made_at(sampling.stack)
                    found[0] = resources.with_origin(found[0], origin)
            else:
                grown = measured(at, self._counts_at.readings, self._counts_at.now_s)
                apart_s = at.now_s - self._counts_at.now_s
                types = types_evidence(self._counts, counts, grown, paths, child.died, apart_s=apart_s)
                source: sources.SiteSource | None = self._inquiry.sampling or self._tracing
                found.append(types if source is None else with_callers(types, sites.own_callers(source, question.labels)))
            found.append(paths.evidence(child.died))
            bounded = paths.bounded(moment)
            if question.sites is not None and not is_counted(channel):
                found[found.index(question.sites)] = paths.with_doubts(question.sites)
            cycles_share = paths.cycles_share
            if counts is not None:
                levels.append(levels_of(counts))
        native = self._native(moment, question)
        if native is not None:
            found.append(native)
        if self._inquiry.sampling is not None:
            levels.append(sites.levels_recorded(self._inquiry.sampling))
        self._stop_tracing()
        self._rest()
        kept = tuple(item for item in found if item.suspects or item.note)
        return Conclusion(kept, tuple(levels), bounded, cycles_share, _kind(moment, question, self._level))

    def _native(self, moment: Moment, question: _Question) -> Evidence | None:
        """What is known of growth that no Python allocator gave out."""
        explained = (question.sites.explains or 0.0) if question.sites is not None else 0.0
        python = moment.verdict.kind == "python-heap" and explained >= 0.5
        if is_counted(moment.verdict.channel) or python or explained >= 0.8:
            return None
        before = self._began.readings if self._level is None else self._level.readings
        facts = fallback.native_facts(before, moment.readings, self._inquiry.give_back())
        rows: list[tuple[tuple[names.Frame, ...], float]] = []
        sampling = self._inquiry.sampling
        if sampling is not None:
            charged = [(row[0], row[1] - self._native_before.get(row[0], 0.0)) for row in sampling.module.native()]
            rows = [(sampling.stack(key), size) for key, size in charged]
        if not any(size > 0 for _, size in rows):
            rows = self._native_stacks.rows()
        grown = moment.verdict.grown if self._level is None else measured(moment, self._level.readings, self._level.time_s)
        return Evidence("native", fallback.native_suspects(rows, grown), None, facts)

    def _rest(self) -> None:
        """Native memory need not be read at samples any more, nor allocations be sampled more finely."""
        if self._inquiry.sampling is not None:
            self._inquiry.sampling.module.watch_native(False)
            self._inquiry.sampling.refine(None)


def _kind(moment: Moment, question: _Question, level: sites.Level | None) -> Kind | None:
    """`native` where malloc has grown and Python's allocators have not, whatever the channels look like."""
    if question.sites is None or level is None or moment.verdict.kind != "python-heap":
        return None
    python = sum(suspect.share or 0.0 for suspect in question.sites.suspects)
    before, after = level.readings.get("native"), moment.readings.get("native")
    if before is None or after is None or python > NOT_PYTHON:
        return None
    return "native" if after - before >= 0.5 * measured(moment, level.readings, level.time_s) else None


class _Question(NamedTuple):
    """What a child was sent to answer, and what was known then."""

    moment: Moment
    sites: Evidence | None
    labels: dict[int, str]
    """Stack to the label of its site, for the stacks that grew."""
