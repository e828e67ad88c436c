"""Running a test's item again as if it were the first time: function-scope fixtures anew, a capture of its own, no trace left.

Law: what pytest keeps of a run (sections, properties, the item's stash, marks, warnings) is afterwards what it was before; and
for other plugins every set-up has one tear-down.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from _pytest.outcomes import Skipped as SkippedOutcome

try:
    from _pytest.subtests import failed_subtests_key
except ImportError:  # pytest 8
    _failed_subtests: Any = None
else:
    _failed_subtests = failed_subtests_key

ENDS = (KeyboardInterrupt, pytest.exit.Exception)
"""What ends the session; everything else that is raised in a test is the test's, SystemExit and CancelledError too."""


class Run(NamedTuple):
    """How one run of an item ended."""

    passed: bool
    error: str | None = None
    """What it raised, in one line."""


class Repeater:
    """Repeats items."""

    def __init__(self) -> None:
        self.running = False
        """Whether a repetition is under way; the plugin's own hooks let it pass."""
        self.failed_inside: str | None = None
        """A failure that the running repetition has reported and not raised: of a subtest."""
        self._globs: dict[str, Any] | None = None

    def remember(self, item: pytest.Item) -> None:
        """Keep what the first run of an item uses up: a doctest's globals."""
        test = getattr(item, "dtest", None)
        self._globs = None if test is None else dict(test.globs)

    def forget(self) -> None:
        """The item is done."""
        self._globs = None

    def finish_first(self, item: pytest.Item) -> BaseException | None:
        """Tear down the function scope of a run that is still set up; returns what that raised."""
        with _as_before(item):
            error = self._tear_down(item)
        _renew(item)
        return error

    def set_up_again(self, item: pytest.Item) -> None:
        """Set up an item that was finished early: its tear-down is still to come, and finds what hooks and reports expect."""
        with _as_before(item), _muted(item), self._repeating():
            # What this raises, the test has not; the tear-down takes down what there is.
            _caught(item.ihook.pytest_runtest_setup, item=item)
            getattr(item, "instance", None)  # made when it is asked for: the tear-down of a unittest wants one to delete

    def run(self, item: pytest.Item) -> Run:
        """Run the whole item once more, and leave it torn down.

        What it raises is told, not raised, but for KeyboardInterrupt and `pytest.exit`.
        """
        _renew(item)
        test = getattr(item, "dtest", None)
        if test is not None and self._globs is not None:
            test.globs.clear()
            test.globs.update(self._globs)
        error: str | None = None
        with _as_before(item), _muted(item), self._repeating():
            self.failed_inside = None
            error = self._attempt(item) or self.failed_inside
            late = self._tear_down(item)
            if error is None and late is not None:
                error = _one_line(late)
        _renew(item)
        return Run(error is None, error)

    def _attempt(self, item: pytest.Item) -> str | None:
        for hook in (item.ihook.pytest_runtest_setup, item.ihook.pytest_runtest_call):
            raised = _caught(hook, item=item)
            if raised is not None:
                return _one_line(raised)
        return failed_inside(item, take=True)

    def _tear_down(self, item: pytest.Item) -> BaseException | None:
        with self._repeating(), tearing_down(item, lambda tear_down: tear_down(item.parent)):
            return _caught(item.ihook.pytest_runtest_teardown, item=item, nextitem=item)

    @contextmanager
    def _repeating(self) -> Iterator[None]:
        before, self.running = self.running, True
        try:
            yield
        finally:
            self.running = before


TearDown = Callable[[Any], None]
"""Tears down everything that a node, or None for the end of the session, does not need."""


@contextmanager
def tearing_down(item: pytest.Item, decide: Callable[[TearDown], None]) -> Iterator[TearDown]:
    """Decide how far the tear-down goes that pytest comes to inside: *decide* is called in its place, in the midst of all hooks."""
    state: Any = item.session._setupstate
    original: TearDown = state.teardown_exact
    state.teardown_exact = lambda nextitem: decide(original)
    try:
        yield original
    finally:
        del state.teardown_exact


def _caught(hook: Callable[..., object], **arguments: Any) -> BaseException | None:
    try:
        hook(**arguments)
    except ENDS:
        raise
    except BaseException as raised:
        return raised
    return None


def failed_inside(item: pytest.Item, *, take: bool = False) -> str | None:
    """What a unittest test case has reported instead of raising it."""
    found = getattr(item, "_excinfo", None)
    if not found:
        return None
    told = _one_line(found[0].value)
    if take:
        found.clear()
    return told


def _one_line(error: BaseException) -> str:
    if isinstance(error, SkippedOutcome):
        return f"it was skipped ({error.msg})"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _renew(item: pytest.Item) -> None:
    """A new request, new arguments and a new instance; what the old ones held goes."""
    if hasattr(item, "_request") and hasattr(item, "_initrequest"):
        item._initrequest()
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        return  # hypothesis wants one and the same executor
    attributes = vars(item)
    if attributes.get("_instance") is not None and isinstance(getattr(item, "originalname", None), str):
        attributes.pop("_instance", None)
        attributes.pop("_obj", None)


@contextmanager
def _muted(item: pytest.Item) -> Iterator[None]:
    """Nobody hears the reports of subtests, which the item itself sends."""
    hook: Any = item.config.hook.pytest_runtest_logreport
    listeners = list(hook._hookimpls)
    hook._hookimpls[:] = []
    try:
        yield
    finally:
        hook._hookimpls[:] = listeners


def recorded_warnings() -> list[Any]:
    """The warnings that pytest has recorded of the test that runs; empty where it does not."""
    kept = getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None)
    return kept if type(kept) is list else []


@contextmanager
def stash_as(item: pytest.Item, before: dict[Any, Any]) -> Iterator[None]:
    """Repeat with what the stash held before the tear-down: fixtures of pytest's (tmp_path) find there what reports have left."""
    after = dict(item.stash._storage)
    item.stash._storage.update(before)
    try:
        yield
    finally:
        item.stash._storage.clear()
        item.stash._storage.update(after)


@contextmanager
def _as_before(item: pytest.Item) -> Iterator[None]:
    sections, properties = list(item._report_sections), list(item.user_properties)
    words: Any = item.keywords
    marks, keywords = list(item.own_markers), dict(words._markers)
    stash = dict(item.stash._storage)
    subtests = None if _failed_subtests is None else item.config.stash.get(_failed_subtests, None)
    failed = dict(subtests or {})
    warned = recorded_warnings()
    number = len(warned)
    try:
        yield
    finally:
        del warned[number:]
        if subtests is not None:
            subtests.clear()
            subtests.update(failed)
        item._report_sections[:] = sections
        item.user_properties[:] = properties
        item.own_markers[:] = marks
        words._markers.clear()
        words._markers.update(keywords)
        item.stash._storage.clear()
        item.stash._storage.update(stash)
