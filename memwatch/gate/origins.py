"""Where the resources that a run leaves were made, and who holds them.

Law: nothing of the program is patched; tracemalloc knows where an object was made, an audit hook what `os.open` was asked for, and
a profile function who called what makes a descriptor without an object.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tracemalloc
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from memwatch.evidence import names, resources
from memwatch.gate.objects import way_to_root

FRAMES = 24
MOST_OPENED = 10_000


class Origin(NamedTuple):
    """Of one group of resources."""

    made: tuple[str, ...]
    """Innermost first."""
    held_by: tuple[str, ...]


_opened: dict[str, tuple[str, ...]] | None = None
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # An audit hook cannot be taken out again: while nothing is looked for it is one comparison.
    if _opened is None or event != "open" or len(_opened) > MOST_OPENED:
        return
    path = arguments[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str):
        _opened[os.path.realpath(path)] = _stack(sys._getframe(1))


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    told: list[str] = []
    while frame is not None and len(told) < FRAMES:
        code = frame.f_code
        if not names.is_ours(code.co_filename) and not names.is_standard(code.co_filename):
            told.append(names.site((code.co_filename, code.co_qualname, frame.f_lineno)))
        frame = frame.f_back
    return tuple(told)


class Origins:
    """`with Origins(channels) as origins:` the run; then `origins.found()`, still inside.

    Cost: tracemalloc with 24 frames for the run (allocations take 2 to 12 times as long), and a pass over the heap; for descriptors
    a profile function, which makes calls several times slower.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self._channels = channels
        self._tracing = False
        self._before: dict[str, dict[object, resources.Member]] = {}
        self._calls = Descriptors()

    def __enter__(self) -> Origins:
        global _opened, _hooked
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True
        self._tracing = not tracemalloc.is_tracing()
        if self._tracing:
            tracemalloc.start(FRAMES)
        self._before = {channel: resources.look(channel) for channel in self._channels}
        _opened = {}
        if "fds" in self._channels:
            self._calls.follow()
        return self

    def __exit__(self, *_: object) -> None:
        global _opened
        self._calls.leave()
        _opened = None
        if self._tracing and tracemalloc.is_tracing():
            tracemalloc.stop()

    def found(self) -> dict[tuple[str, str], Origin]:
        """Channel and group, `without_ports`, to origin, for what came since."""
        self._calls.leave()
        objects = _resource_objects()
        told: dict[tuple[str, str], Origin] = {}
        for channel, before in self._before.items():
            for identity, member in resources.look(channel).items():
                key = channel, without_ports(member.group)
                if identity in before or key in told:
                    continue
                thing = objects.get((channel, _number(channel, identity)))
                made = () if thing is None else _made_at(thing)
                if not made and channel == "fds":
                    made = self._calls.made.get(identity, ())
                if not made and _opened is not None and channel == "fds" and isinstance(identity, tuple):
                    made = _opened.get(str(identity[1]), ())
                way = None
                if thing is not None and channel != "threads":
                    way = way_to_root(thing, ignored=[objects, sys._getframe()])
                if made or way:
                    told[key] = Origin(made, tuple(way or ()))
        objects.clear()
        return told


class Descriptors:
    """Who calls the functions that make a descriptor and no object: `os.pipe`, `os.dup`.

    No audit event tells of them.  Does nothing where another profile function is set.  Calls of other threads are not followed.
    """

    MAKERS = ("pipe", "pipe2", "dup", "dup2", "openpty", "posix_openpt", "eventfd", "memfd_create", "timerfd_create", "pidfd_open")

    def __init__(self) -> None:
        self.made: dict[object, tuple[str, ...]] = {}
        """Identity of a descriptor to the stack that made it, innermost first."""
        self._makers = [maker for name in self.MAKERS if (maker := getattr(os, name, None)) is not None]
        self._before: set[tuple[str, str]] = set()

    def follow(self) -> None:
        """From now on."""
        if sys.getprofile() is None:
            sys.setprofile(self._called)

    def leave(self) -> None:
        """No more."""
        if sys.getprofile() == self._called:
            sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if not event.startswith("c_") or not any(argument is maker for maker in self._makers):
            return
        if event == "c_call":
            self._before = set(resources.open_descriptors())
        elif event == "c_return" and len(self.made) < MOST_OPENED:
            for identity in resources.open_descriptors():
                if identity not in self._before:
                    self.made[identity] = _stack(frame)


def without_ports(group: str) -> str:
    """The name of a group without the ports in it: the kernel gives every socket of every run another one."""
    return re.sub(r"(?<=port )\d+|(?<=:)\d+\b", "*", group)


def _number(channel: str, identity: object) -> object:
    return int(identity[0]) if channel == "fds" and isinstance(identity, tuple) else identity


def _resource_objects() -> dict[tuple[str, object], Any]:
    """Python's objects for resources, by channel and number."""
    found: dict[tuple[str, object], Any] = {}
    kinds: dict[int, str | None] = {}  # by the identity of a class: a metaclass may have a hash of its own
    for thing in gc.get_objects():
        kind = type(thing)
        if kind in COMMON:  # most of them; without a call, which tracemalloc would make slow
            continue
        if id(kind) not in kinds:
            kinds[id(kind)] = _channel_of(kind)
        channel = kinds[id(kind)]
        if channel is None:
            continue
        try:
            number: object = id(thing)
            if channel != "tasks":
                number = thing.fileno() if channel == "fds" else thing.ident if channel == "threads" else thing.pid
            found[channel, number] = thing
        except Exception:  # a closed file, a half-made object
            continue
    return found


def _channel_of(kind: type) -> str | None:
    bases = {names.type_name(base) for base in type.__dict__["__mro__"].__get__(kind)}
    for channel, wanted in KINDS.items():
        if bases & wanted:
            return channel
    return None


COMMON = (dict, list, tuple, set, type(_number), property, type)
"""What most objects are, and no resource is."""
KINDS = {
    "fds": {"_io.FileIO", "_socket.socket"},
    "tasks": {"_asyncio.Task", "asyncio.tasks.Task"},
    "threads": {"threading.Thread"},
    "children": {"subprocess.Popen", "multiprocessing.process.BaseProcess"},
}


def _made_at(thing: object) -> tuple[str, ...]:
    """The frames that made it; where tracemalloc does not know the object (3.11, instances with a dictionary), its attributes'."""
    for part in (thing, *(names.instance_dict(thing) or {}).values()):
        trace = tracemalloc.get_object_traceback(part)
        frames = [] if trace is None else [frame for frame in reversed(list(trace)) if not names.is_ours(frame.filename)]
        told = [f"{names.short_file(frame.filename)}:{frame.lineno}" for frame in frames if not names.is_standard(frame.filename)]
        if told:
            return tuple(told)
    return ()
