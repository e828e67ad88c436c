"""What can be said where the better way is not there: without a child, without the sampler.

Law: in the watched process nothing takes longer than the collector's own pauses; on a larger heap nothing is done, and it is said.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping, Sequence

from memwatch.evidence import names
from memwatch.model import Evidence, Suspect

MOST_BLOCKS = 1_000_000
"""Allocator blocks up to which types are counted in this process: one walk of about 10 ms per million objects, with the GIL held (a
guess from 0.03 s per million for a walk that also takes references)."""
TOP = 8


def count_types(blocks: float | None) -> dict[str, int] | None:
    """What the collector tracks, by type; None on a heap where that would be a pause, or without the extension.

    Args:
        blocks: live allocator blocks, if known: the cost goes with them.
    """
    if blocks is None or blocks > MOST_BLOCKS:
        return None
    try:
        # Not gc.get_objects(): it hands out what other threads are in the middle of making, and holds what they let go.
        counted = importlib.import_module("memwatch.evidence._heap").count_here()
    except (ImportError, AttributeError, MemoryError):
        return None
    named: dict[str, int] = {}
    for kind, count in counted:
        name = names.type_name(kind)
        if not name.startswith("memwatch."):
            named[name] = named.get(name, 0) + count
    return named


def types_in_process(why: str, blocks: float | None, before: Mapping[str, int] | None) -> Evidence:
    """Types by growth in number, counted here because no child could be forked.

    Args:
        why: the reason, for the note.
        blocks: live allocator blocks, if known.
        before: an earlier count; None if there was none, and levels are told instead of growth.
    """
    after = count_types(blocks)
    if after is None:
        size = "of unknown size" if blocks is None else f"of {blocks:,.0f} blocks"
        return Evidence(
            "types", note=f"{why}; counting a heap {size} in the process itself would be a pause, or is not possible here"
        )
    grown = {name: count - (before or {}).get(name, 0) for name, count in after.items()}
    ranked = [(name, count) for name, count in sorted(grown.items(), key=lambda item: -item[1])[:TOP] if count > 0]
    what = "levels, not growth" if before is None else "growth in number"
    note = f"{why}; counted in the process itself: {what} of what the collector tracks"
    return Evidence("types", tuple(Suspect(name, None, count) for name, count in ranked), None, note)


class NativeStacks:
    """Which Python lines were on the stack while native memory grew, looked at on ticks: the poor man's way, without a sampler."""

    MOST = 500

    def __init__(self) -> None:
        self._before: float | None = None
        self._charged: dict[tuple[names.Frame, ...], float] = {}

    def tick(self, native_bytes: float | None) -> None:
        """Charge what native memory grew by since the tick before to the stacks of the threads that run now."""
        before, self._before = self._before, native_bytes
        if before is None or native_bytes is None or native_bytes <= before:
            return
        stacks = [stack for stack in map(_stack, sys._current_frames().values()) if stack]
        for stack in stacks:
            if stack in self._charged or len(self._charged) < self.MOST:
                self._charged[stack] = self._charged.get(stack, 0.0) + (native_bytes - before) / len(stacks)

    def rows(self) -> list[tuple[tuple[names.Frame, ...], float]]:
        """Stacks, innermost frame first, with the bytes charged to them."""
        return list(self._charged.items())


def _stack(frame: types.FrameType | None, most: int = 12) -> tuple[names.Frame, ...]:
    found: list[names.Frame] = []
    while frame is not None and len(found) < most:
        code = frame.f_code
        if names.is_ours(code.co_filename):
            return ()
        found.append((code.co_filename, code.co_qualname, frame.f_lineno or code.co_firstlineno))
        frame = frame.f_back
    return tuple(found)


def native_suspects(rows: Sequence[tuple[tuple[names.Frame, ...], float]], measured: float) -> tuple[Suspect, ...]:
    """Stacks charged with native growth, as suspects by site, the largest first.

    Args:
        measured: bytes by which native memory has grown.  A buffer that came and went is charged to the line that took it,
            and credited to whichever line ran when that was noticed: together the lines are never told more than has grown.
    """
    sites: dict[str, tuple[float, float, tuple[str, ...]]] = {}
    for frames, size in rows:
        place = next((i for i, frame in enumerate(frames) if not names.is_standard(frame[0])), 0)
        if not frames or names.is_ours(frames[place][0]):
            continue
        label = names.site(frames[place])
        total, heaviest, trail = sites.get(label, (0.0, float("-inf"), ()))
        if size > heaviest:
            heaviest, trail = (
                size,
                tuple(names.site(frame) for frame in frames[place + 1 : place + 9] if not names.is_ours(frame[0])),
            )
        sites[label] = total + size, heaviest, trail
    charged = sum(total for total, _, _ in sites.values() if total > 0)
    whole = max(measured, charged, 1.0)
    stayed = min(1.0, max(measured, 0.0) / charged) if charged > 0 else 0.0
    ranked = sorted(sites.items(), key=lambda item: -item[1][0])[:TOP]
    return tuple(
        Suspect(label, round(total * stayed), None, round(total / whole, 4), trail)
        for label, (total, _, trail) in ranked
        if stayed > 0 and total > 0.01 * whole
    )


def native_facts(before: Mapping[str, float], after: Mapping[str, float], given_back: float | None) -> str | None:
    """What the allocators say, in one sentence: whether the Python heap is flat while malloc grows, and what a trim gave back."""
    facts = []
    for channel, title in (("heap", "the Python heap"), ("native", "malloc in use"), ("retained", "what allocators keep unused")):
        old, new = before.get(channel), after.get(channel)
        if old is not None and new is not None and old != new:  # else it was not read in between
            facts.append(f"{title} changed by {(new - old) / 2**20:+,.1f} MiB")
    if given_back is not None:
        facts.append(f"malloc_trim gave back {max(0.0, given_back) / 2**20:,.1f} MiB")
    return "; ".join(facts) or None
