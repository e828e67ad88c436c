"""What the descriptors, threads, child processes and asyncio tasks of this process are, in groups that a person knows.

Law: a group has a name without numbers that change (`/var/log/app-*.log`); nothing is opened, awaited or kept alive.
"""

# A pathlib call costs several times what it wraps.
# ruff: noqa: PTH115, PTH118, PTH208

from __future__ import annotations

import os
import re
import socket
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from memwatch.evidence import names
from memwatch.model import Evidence, Suspect

TOP = 8
STATES = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
    8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING",
}  # fmt: skip
MOST_LISTED = 20_000
"""Of more descriptors or tasks than this only so many are looked at."""


class Member(NamedTuple):
    """One resource."""

    group: str
    identity: object
    """Tells it from the others of its group."""
    trail: tuple[str, ...]
    """Where it was made, innermost first, where that is known."""


Found = Mapping[object, Member]
"""Identity to member."""


def look(channel: str, *, own_children: tuple[int, ...] = ()) -> dict[object, Member]:
    """All resources of one channel, by identity.

    Args:
        channel: `fds`, `sockets`, `threads`, `children` or `tasks`.
        own_children: pids of memwatch's own.

    Tasks are looked at in a forked child only: a reference to one in the watched process could be its last, and its end is the
    program's code.

    Cost: about 3 µs a descriptor, 20 µs a thread, 2 µs a task.
    """
    if channel in ("fds", "sockets"):
        members = _descriptors()
    elif channel == "threads":
        members = _threads()
    elif channel == "children":
        members = _children(own_children)
    elif channel == "tasks":
        members = _tasks()
    else:
        return {}
    return {member.identity: member for member in members}


def told(lines: Iterable[Mapping[str, Any]]) -> Found | None:
    """The tasks in what a child told; None if it did not come so far."""
    for line in lines:
        if line.get("what") == "tasks":
            return {identity: Member(str(group), identity, tuple(trail)) for identity, group, trail in line["members"]}
    return None


def compare(channel: str, before: Found | None, after: Found) -> Evidence:
    """What has come since, in groups, the largest first; without *before* all there is."""
    fresh: dict[str, list[Member]] = {}
    gone: dict[str, int] = {}
    for identity, member in after.items():
        if before is None or identity not in before:
            fresh.setdefault(member.group, []).append(member)
    for identity, member in (before or {}).items():
        if identity not in after:
            gone[member.group] = gone.get(member.group, 0) + 1
    grown = {group: len(members) - gone.get(group, 0) for group, members in fresh.items()}
    total = sum(count for count in grown.values() if count > 0)
    suspects: list[Suspect] = []
    for group, count in sorted(grown.items(), key=lambda item: (-item[1], item[0]))[:TOP]:
        if count > 0:
            trail = max((member.trail for member in fresh[group]), key=len)
            suspects.append(Suspect(group, None, count, round(count / total, 4), trail))
    if not suspects:
        return Evidence("resources", note=f"no group of {channel} has grown since it was looked at first")
    since = "all there are: they were not looked at before" if before is None else None
    return Evidence("resources", tuple(suspects), min(1.0, sum(suspect.share or 0.0 for suspect in suspects)), since)


MAKERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "threads": (("threading.py", "Thread.__init__"), ("threading.py", "Thread.start")),
    "tasks": (("asyncio/tasks.py", "create_task"), ("asyncio/base_events.py", "BaseEventLoop.create_task")),
    "sockets": (("socket.py", "socket.__init__"), ("socket.py", "socket.accept"), ("socket.py", "create_connection")),
    "children": (("subprocess.py", "Popen.__init__"), ("multiprocessing/process.py", "BaseProcess.start")),
}
"""Functions of the standard library that make a resource of each kind: file below it, qualified name."""


def made_through(channel: str, stacks: Iterable[tuple[float, Sequence[names.Frame]]]) -> tuple[str, ...]:
    """Who called the functions that make such resources, most often: from the innermost line that is not the standard library's.

    Args:
        stacks: how many allocations of each stack were sampled, and its frames, innermost first.
    """
    makers = MAKERS.get("sockets" if channel == "fds" else channel, ())
    callers: dict[tuple[str, ...], float] = {}
    for count, frames in stacks:
        made = [i for i, frame in enumerate(frames) if (names.short_file(frame[0]), frame[1]) in makers]
        if not made:
            continue
        place = next((i for i in range(made[-1] + 1, len(frames)) if not names.is_standard(frames[i][0])), None)
        if place is not None and not names.is_ours(frames[place][0]):
            caller = tuple(names.site(frame) for frame in frames[place : place + 8])
            callers[caller] = callers.get(caller, 0.0) + count
    return max(callers, key=lambda caller: callers[caller], default=())


def with_origin(evidence: Evidence, origin: tuple[str, ...]) -> Evidence:
    """The same with where the largest group was made, if that group is most of the growth."""
    if not origin or not evidence.suspects or (evidence.suspects[0].share or 0.0) < 0.5:
        return evidence
    first, *others = evidence.suspects
    return replace(evidence, suspects=(replace(first, trail=origin), *others))


def starred(text: str) -> str:
    """Runs of digits, and hexadecimal words of 8 or more, as `*`: what differs between members of one group."""
    return re.sub(r"\b[0-9a-f]{8,}\b|\d+", "*", text)


_SOCKET = re.compile(r"socket:\[(\d+)\]")
LISTENS = "0A"
"""The state of a listening socket, as the kernel's table has it."""

# -- descriptors -----------------------------------------------------------------------------------------------------------------


def open_descriptors() -> list[tuple[str, str]]:
    """Identity of every open descriptor: its number, and what it leads to.  About 2 µs each."""
    folder = "/proc/self/fd"
    found = []
    try:
        listed = os.listdir(folder)[:MOST_LISTED]
    except OSError:
        return []
    for number in listed:
        try:
            target = os.readlink(os.path.join(folder, number))
        except OSError:
            continue
        if not target.startswith("/proc/") and ".memwatch" not in target:  # those are ours
            found.append((number, target))
    return found


def _descriptors() -> Iterator[Member]:
    found = open_descriptors()
    inodes = {inode[1] for _, target in found if (inode := _SOCKET.match(target))}
    sockets = _sockets(inodes) if inodes else {}
    for number, target in found:
        inode = _SOCKET.match(target)
        if inode is not None:
            # The kernel's tables leave out what is neither bound nor connected.
            group = sockets.get(inode[1], "unconnected socket")
        elif target.startswith("anon_inode:"):
            group = target.removeprefix("anon_inode:").strip("[]")
        elif target.startswith("pipe:"):
            group = "pipe"
        else:
            group = f"file {starred(target.encode('utf-8', 'backslashreplace').decode())}"  # a name need not be text
        yield Member(group, (number, target), ())


def _sockets(wanted: set[str]) -> dict[str, str]:
    """Inode to group, for the *wanted* sockets.

    The tables are those of the network namespace: of a machine that serves much there are tens of thousands of rows that are
    nobody's any more (TIME_WAIT), or another process's.  Those are passed over unread; about 1 µs each.
    """
    found: dict[str, str] = {}
    rows: list[tuple[str, tuple[str, int], tuple[str, int], int]] = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for words in _table(protocol):
            if len(words) > 9 and words[9] not in wanted and words[3] != LISTENS:
                continue
            try:
                rows.append((words[9] + protocol[:3], _address(words[1]), _address(words[2]), int(words[3], 16)))
            except (IndexError, ValueError, OSError):
                continue
    listening = {local[1] for inode, local, _, state in rows if state == 10}
    for inode, local, remote, state in rows:
        protocol, inode = inode[-3:], inode[:-3]
        if protocol == "udp":
            found[inode] = f"UDP socket to {remote[0]}:{remote[1]}" if remote[1] else "UDP socket"
        elif state == 10:
            found[inode] = f"socket listening on port {local[1]}"
        elif local[1] in listening:
            found[inode] = f"connection from {remote[0]} to port {local[1]} ({STATES.get(state, state)})"
        else:
            found[inode] = f"connection to {remote[0]}:{remote[1]} ({STATES.get(state, state)})"
    for words in _table("unix"):
        if len(words) >= 7:
            found[words[6]] = f"UNIX socket {starred(words[7])}" if len(words) > 7 else "UNIX socket (a pair, or a peer's)"
    for words in _table("netlink"):
        found[words[-1]] = "netlink socket"
    for words in _table("packet"):
        found[words[-1]] = "packet socket"
    for protocol in ("raw", "raw6", "icmp", "icmp6"):
        found.update((words[9], f"{protocol.removesuffix('6')} socket") for words in _table(protocol) if len(words) > 9)
    return found


def _table(name: str) -> Iterator[list[str]]:
    try:
        with open(f"/proc/self/net/{name}", encoding="ascii", errors="replace") as file:
            next(file, None)
            for line in file:
                yield line.split()
    except OSError:
        return


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    packed = bytes.fromhex(host)
    words = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4)) if sys.byteorder == "little" else packed
    if len(words) == 4:
        return socket.inet_ntop(socket.AF_INET, words), int(port, 16)
    shown = socket.inet_ntop(socket.AF_INET6, words)
    return shown.removeprefix("::ffff:") if shown.startswith("::ffff:") else f"[{shown}]", int(port, 16)


# -- threads ---------------------------------------------------------------------------------------------------------------------


def _threads() -> Iterator[Member]:
    active = getattr(sys.modules.get("threading"), "_active", None)
    for ident, thread in list(active.items()) if isinstance(active, dict) else ():
        known = names.instance_dict(thread) or {}
        name, target = known.get("_name"), known.get("_target")
        text = f"thread {starred(name) if isinstance(name, str) else '?'}"
        called = _callable_name(target) if target is not None else None
        if called is None and not names.type_name(type(thread)).startswith("threading."):
            called = f"{names.type_name(type(thread))}.run"
        yield Member(f"{text} (target {called})" if called else text, ident, ())
    try:
        listed = os.listdir("/proc/self/task")
    except OSError:
        return
    python = {
        attributes.get("_native_id") for thread in list((active or {}).values()) if (attributes := names.instance_dict(thread))
    }
    for number in listed[:MOST_LISTED]:
        if int(number) in python:
            continue
        try:
            with open(f"/proc/self/task/{number}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
        except OSError:
            continue
        if comm != "memwatch":
            yield Member(f"thread not started by Python ({starred(comm)})", ("native", number), ())


def _callable_name(target: object) -> str | None:
    function: Any = target
    if type(function) is types.MethodType:
        function = function.__func__
    if type(function) in (types.FunctionType, types.BuiltinFunctionType):
        module = getattr(function, "__module__", None)
        return f"{module}.{function.__qualname__}" if isinstance(module, str) else str(function.__qualname__)
    return names.type_name(type(target))


# -- child processes -------------------------------------------------------------------------------------------------------------


def _children(own: tuple[int, ...]) -> Iterator[Member]:
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return
    for task in tasks:
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                pids = [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
        for pid in pids:
            if pid in own:
                continue
            yield Member(_command(pid), pid, ())


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")[:-1]
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return "child process"
    if state == b"Z" or not words:
        return "child process that ended and was not waited for" if state == b"Z" else "child process"
    text = " ".join(word.decode("utf-8", "backslashreplace") for word in words[:3])
    return f"child process {starred(text)[:120]}"


# -- asyncio tasks ---------------------------------------------------------------------------------------------------------------


def _tasks() -> Iterator[Member]:
    module: Any = sys.modules.get("asyncio.tasks")
    if module is None:
        return
    bases = [base for base in (getattr(module, "_CTask", None), getattr(module, "_PyTask", None)) if base is not None]
    for task in _all_tasks(module)[:MOST_LISTED]:
        try:
            base = next(base for base in bases if names.isinstance_of(task, base))  # not what a class of the program makes of it
            if base.done(task):
                continue
            coroutine = base.get_coro(task)
        except Exception:
            continue
        name = getattr(coroutine, "__qualname__", None) if type(coroutine) in _AWAITABLE else None
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        where = _waits(coroutine)
        filename = f" ({names.short_file(code.co_filename)})" if isinstance(code, types.CodeType) else ""
        group = f"task {name or names.type_name(type(coroutine))}{filename}" + (f", waiting in {where}" if where else "")
        yield Member(group, id(task), _made_at(task))


_AWAITABLE = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


def _all_tasks(module: Any) -> list[Any]:
    if sys.version_info >= (3, 14):
        loops = {id(loop): loop for loop in _running_loops()}
        return [task for loop in loops.values() for task in module.all_tasks(loop)]
    known = getattr(module, "_scheduled_tasks", None) or getattr(module, "_all_tasks", None)
    references = getattr(known, "data", None)
    found = [reference() for reference in references.copy()] if isinstance(references, set) else []
    return [task for task in found if task is not None] + list(getattr(module, "_eager_tasks", ()))


def _running_loops() -> list[Any]:
    found = []
    for frame in sys._current_frames().values():
        current: types.FrameType | None = frame
        while current is not None:
            if current.f_code.co_name == "run_forever" and current.f_code.co_filename.endswith("base_events.py"):
                found.append(current.f_locals.get("self"))
            current = current.f_back
    return [loop for loop in found if loop is not None]


def _waits(coroutine: Any) -> str:
    """Where a coroutine waits: the innermost that it awaits."""
    innermost = ""
    current = coroutine
    for _ in range(64):
        kind = type(current)
        frame = None
        if kind is types.CoroutineType:
            frame, following = current.cr_frame, current.cr_await
        elif kind is types.GeneratorType:
            frame, following = current.gi_frame, current.gi_yieldfrom
        elif kind is types.AsyncGeneratorType:
            frame, following = current.ag_frame, current.ag_await
        elif kind.__module__ == "memwatch.routes._flights":  # our middleware's, in the place of a coroutine
            following = getattr(current, "cr_await", None)
        else:
            break
        if frame is not None:
            innermost = names.site((frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_lineno or 0))
        if following is None:
            break
        current = following
    return innermost


def _made_at(task: Any) -> tuple[str, ...]:
    """Where a task was made: asyncio knows in its debug mode."""
    try:
        frames = object.__getattribute__(task, "_source_traceback")
    except Exception:
        return ()
    if not isinstance(frames, list):
        return ()
    return tuple(names.site((entry.filename, entry.name, entry.lineno or 0)) for entry in reversed(frames[-8:]))
