"""The sentence people read first.  Every state and every finding has one, with figures."""

from __future__ import annotations

from memwatch.model import CHANNEL_BY_NAME
from memwatch.trend.judge import Ruling, Why
from memwatch.units import format_count, format_count_rate, format_duration, format_left, format_rate, format_size

SHORT_TITLES = {"fds": "open descriptors", "native": "malloc memory in use", "retained": "memory kept by the allocators"}


def title(channel: str) -> str:
    """What a sentence calls *channel*."""
    known = CHANNEL_BY_NAME.get(channel)
    return SHORT_TITLES.get(channel) or (known.title if known else channel)


def amount(channel: str, value: float, *, sign: bool = False) -> str:
    """A quantity of *channel* with its unit."""
    known = CHANNEL_BY_NAME.get(channel)
    if known is not None and known.unit == "bytes":
        return format_size(value, sign=sign)
    return format_count(value, sign=sign)


def pace(channel: str, rate: float) -> str:
    """A rate of *channel* with its unit."""
    known = CHANNEL_BY_NAME.get(channel)
    return format_rate(rate) if known is not None and known.unit == "bytes" else format_count_rate(rate)


def _plural(channel: str) -> bool:
    return title(channel).endswith("s") and title(channel) != "mapped files"


def too_few(samples: int, needed: int) -> str:
    """There is nothing to judge yet."""
    return f"too few samples yet: {samples} of {needed}"


def too_rare(channel: str) -> str:
    """There are samples, but the channel was read in too few of them."""
    return f"{title(channel)} {'were' if _plural(channel) else 'was'} not read often enough yet"


def harmless(channel: str, ruling: Ruling, bounded: str | None) -> str:
    """Why growth in *ruling*'s window is not a leak."""
    name, verb = title(channel), "have" if _plural(channel) else "has"
    grew, took = amount(channel, ruling.growth), format_duration(ruling.duration)
    match ruling.why:
        case Why.SMALL:
            is_ = "are" if _plural(channel) else "is"
            change = f"{amount(channel, ruling.growth, sign=True)} in {took}"
            if ruling.growth <= 0.05 * ruling.material:
                return f"{name} {is_} flat: {change}"
            return f"{name}: {change}, less than the {amount(channel, ruling.material)} that would matter"
        case Why.SATURATING:
            return f"{name} grew {grew} in {took} but flattened: a warm-up or a cache that has filled, not a leak"
        case Why.STEP:
            return f"{name} grew {grew} in {took}, most of it in one step that stayed: not a leak"
        case Why.FELL:
            return f"{name} {verb} risen and fallen in the last {took}: what grows is given back"
        case Why.UNSTEADY:
            return f"{name} wandered by {grew} in {took} without a steady direction"
        case Why.LOAD:
            return f"{name} grew {grew} in {took} with the load, not with time"
        case Why.RETURNING:
            return f"{name} grew {grew} in {took}, but only back to where it has been before"
        case Why.ALLOCATOR if channel == "retained":
            return f"{name} grew {grew} in {took}: freed memory that they hold ready, not a leak"
        case Why.ALLOCATOR:
            return f"{name} grew {grew} in {took}: memory the allocators keep: live heap is flat (fragmentation, no leak)"
        case Why.BOUNDED:
            return f"{name} grew {grew} in {took}, which is bounded: {bounded}"
        case Why.LEAK | Why.DAILY | Why.SHORT:
            return f"{name} grew {grew} in {took}"


def bounded(channel: str, bound: str) -> str:
    """Evidence has explained the growth, and nothing has been judged since."""
    return f"what {title(channel)} grew by is bounded: {bound}"


def settling(channel: str, ruling: Ruling, bounded: str | None) -> str:
    """Why growth that was watched may be over."""
    what = harmless(channel, ruling, bounded)
    for conclusion in (", not a leak", ": not a leak", ", no leak"):
        what = what.replace(conclusion, "")
    return f"it was growing and may be settling: {what}"


def growing(channel: str, ruling: Ruling) -> str:
    """Why growth is watched but not yet called a leak."""
    name, verb = title(channel), "have" if _plural(channel) else "has"
    grown = f"{amount(channel, ruling.growth)} in {format_duration(ruling.duration)}"
    text = f"{name} {verb} grown {grown} ({pace(channel, ruling.rate)})"
    match ruling.why:
        case Why.SMALL:
            return f"{text}, not yet the {amount(channel, ruling.material)} that would make it a leak"
        case Why.SHORT:
            return f"{text}, for too short a time yet"
        case Why.SATURATING:
            return f"{text}, but slower of late: it may be a warm-up"
        case Why.STEP:
            return f"{text}, but mostly in one step"
        case Why.LOAD:
            return f"{text}, but the load has risen too"
        case Why.RETURNING:
            return f"{text}, not yet much above where it has been before"
        case Why.UNSTEADY | Why.FELL:
            return f"{text}, not steadily enough to call it a leak"
        case _:
            return f"{text}; one more look decides"


def leaking(channel: str, ruling: Ruling, low: float | None, high: float | None, exhausted_in_s: float | None) -> str:
    """Why it is a leak."""
    name, verb = title(channel), "have" if _plural(channel) else "has"
    how = "from day to day" if ruling.why is Why.DAILY else "steadily"
    grown = f"{amount(channel, ruling.growth)} in {format_duration(ruling.duration)}"
    text = f"{name} {verb} grown {how} by {grown}, {pace(channel, ruling.rate)}"
    if low is not None and high is not None:
        text += f" (95 %: {pace(channel, low)} to {pace(channel, high)})"
    if exhausted_in_s is not None:
        text += f"; the limit is reached {format_left(exhausted_in_s)}"
    return text


def recovering(channel: str, grown: float, *, given_back: bool, since_s: float) -> str:
    """Why an alarm has ended."""
    name = title(channel)
    if given_back:
        return f"{name} gave back most of the {amount(channel, grown)} that had leaked {_ago(since_s)}"
    return f"{name} stopped growing {_ago(since_s)}, after {amount(channel, grown)}"


def stopped(channel: str, held: float, since_s: float) -> str:
    """A leak has stopped, and what it took is gone."""
    return f"{title(channel)} stopped growing {_ago(since_s)}; the {amount(channel, held)} that leaked are still held"


def _ago(since_s: float) -> str:
    return f"{format_duration(since_s)} ago" if since_s >= 1.0 else "just now"
