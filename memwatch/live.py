"""The live socket: how `memwatch report --now` and `memwatch gc` reach this process.  HTTP over a UNIX socket, the same user only.

Law: no thread of its own; the watcher's looks at it between two samples.  The kernel tells who connects; nobody can hold up the
samples for longer than some seconds.  The number of the socket is used only while it is still ours.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import re
import stat
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memwatch import descriptors
from memwatch.vitals import ProcessGone, identity, is_running

if TYPE_CHECKING:
    from memwatch.endpoints import Response
    from memwatch.watcher import Watcher

LOOK_EVERY_S = 0.5
"""The watcher's thread looks for a connection this often: two system calls, some 7 µs (bench/services.py)."""
READ_S = 1.0
WRITE_S = 5.0
"""A client has so long to send its request, and to take the answer."""
POLL_S = 1.0
"""After so long no further client is begun with before the next sample: each may take `READ_S` and `WRITE_S`."""
REQUEST_MOST = 16384
WAITING_MOST = 8
"""Clients that wait for evidence at the same time."""
EVIDENCE_S = 45.0
"""Evidence is given up after this long: a child has 30 s."""
NOT_NOW = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED, errno.EINTR, errno.EMFILE, errno.ENFILE)
PEER = struct.Struct("3i")


def directories(environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> list[Path]:
    """Where the socket of a process may be: the runtime directory of its user, else one in the directory for temporary files."""
    environ = os.environ if environ is None else environ
    found = []
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        found.append(Path(runtime) / "memwatch")
    uid = os.geteuid() if uid is None else uid
    with contextlib.suppress(OSError):  # none can be written to: a container whose root file system is read-only
        found.append(Path("/tmp" if environ is not os.environ else tempfile.gettempdir()) / f"memwatch-{uid}")
    return found


def find_socket(pid: int) -> Path | None:
    """The socket of a process, also of one in a container whose files this user may see; None if there is none."""
    ticks = _start_ticks(pid)
    if ticks is None:
        return None
    name = f"{pid}-{ticks}.sock"
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    runtime = {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    places = [*directories(uid=uid), *directories(runtime, uid=uid)]
    for place in places:
        if (place / name).is_socket():
            return place / name
    for place in places:  # another mount namespace, whose pids may be others
        inside = Path(f"/proc/{pid}/root{place}")
        with contextlib.suppress(OSError):
            for entry in inside.iterdir():
                if entry.name.endswith(f"-{ticks}.sock") and entry.is_socket():
                    return entry
    return None


class LiveSocket:
    """The listening end, in the watched process.

    Args:
        watcher: whose state is asked for.
        control: whether `POST /gc` and `DELETE /caches` are answered.

    Threads: one at a time, the watcher's.
    """

    def __init__(self, watcher: Watcher, *, control: bool) -> None:
        self._watcher = watcher
        self._control = control
        self._socket: Any = None
        self._identity: tuple[int, int] | None = None
        self._serving = False
        self._waiting: list[tuple[Any, float]] = []
        self.path: Path | None = None
        """Where it is; None while there is none."""
        self.declined: str | None = None
        """Why there is none."""

    @property
    def descriptors(self) -> int:
        """How many descriptors it holds: all are sockets."""
        return int(self._socket is not None) + int(self._serving) + len(self._waiting)

    def open(self) -> None:
        """Listen, where that is possible.  Never raises."""
        ticks = _start_ticks(os.getpid())
        if not hasattr(_socket, "AF_UNIX") or not hasattr(_socket, "SO_PEERCRED") or ticks is None:
            self.declined = "there is no live socket on this system"
            return
        why = "no directory can be written to; give one with XDG_RUNTIME_DIR or TMPDIR"
        for directory in [place for place in directories() for _ in range(2)]:
            try:
                # Twice: whoever was the last to leave may have removed the directory in between.
                self._listen(_private(directory) / f"{os.getpid()}-{ticks}.sock")
            except OSError as error:
                why = f"{directory}: {error.strerror or error}"
            else:
                self.declined = None
                return
        self.declined = why  # only now: whoever waits for the socket looks at this, too

    def _listen(self, path: Path) -> None:
        listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # of a watcher before this one in the same process
            listening.bind(str(path))  # in a directory that nobody else may enter: the mode of the socket itself comes later
            path.chmod(0o600)
            listening.listen(16)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._socket, self.path = listening, path
        self._identity = descriptors.identity(listening.fileno())

    def close(self) -> None:
        """Stop listening; those who wait are told so.  Never raises."""
        for client, _ in self._waiting:
            self._send(client, _plain(503, "the watch has ended"))
        self._waiting = []
        self._let_go()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.path.parent.rmdir()  # unless others are in it
            self.path = None

    def after_fork(self) -> None:
        """In a forked child: the socket is the parent's."""
        for client, _ in self._waiting:
            with contextlib.suppress(OSError):
                client.close()
        self._waiting = []
        self._let_go()
        self.path = None

    def _let_go(self) -> None:
        """Close our number of the socket, if it is still ours."""
        listening, self._socket = self._socket, None
        if listening is None:
            return
        number = listening.detach()
        if descriptors.identity(number) == self._identity:
            os.close(number)

    def poll(self) -> None:
        """Answer those who have connected, and those whose evidence is there.  Never raises.

        Cost: some 7 µs when there is nobody (bench/services.py).
        """
        listening = self._socket
        if listening is None:
            return
        if descriptors.identity(listening.fileno()) != self._identity:
            if self._socket is listening:
                listening.detach()  # the program has closed it, with all the others
                self._socket = None
                self.open()
            return
        until_s = time.monotonic() + POLL_S
        for _ in range(WAITING_MOST):
            if self._socket is not listening or time.monotonic() > until_s:
                break  # closed by another thread meanwhile; or a sample may be due: the others wait for the next look
            try:
                number, _ = listening._accept()
            except OSError as error:
                if error.errno not in NOT_NOW:
                    self._let_go()
                break
            self._serving = True
            self._serve(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=number))
            self._serving = False
        if self._waiting:
            self._answer_waiting()

    def _serve(self, client: Any) -> None:
        try:
            _, uid, _ = PEER.unpack(client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, PEER.size))
            if uid not in (0, os.geteuid()):
                self._send(client, _plain(403, "only the same user is answered"))
                return
            head = _read_head(client)
        except (OSError, ValueError) as error:
            self._send(client, _plain(400, f"the request cannot be read: {error}"))
            return
        try:
            self._respond(client, head)
        except Exception as error:
            self._send(client, _plain(500, f"memwatch failed: {type(error).__name__}"))

    def _respond(self, client: Any, head: bytes) -> None:
        from memwatch.endpoints import Endpoints, Request  # loaded when somebody asks

        method, target, headers = _parsed(head)
        path, _, query = target.partition("?")
        if path == "/evidence" and method == "POST":
            why_not = None if len(self._waiting) < WAITING_MOST else "too many wait for evidence already"
            why_not = why_not or self._watcher.look_now()
            if why_not is not None:
                self._send(client, _plain(409, why_not))
            else:
                self._waiting.append((client, time.monotonic() + EVIDENCE_S))
            return
        endpoints = Endpoints(watcher=lambda: self._watcher, control=self._control)
        self._send(client, endpoints.answer(Request(method, path, query, headers, trusted=True)))

    def _answer_waiting(self) -> None:
        done = not self._watcher.looking_now
        late = [client for client, until_s in self._waiting if time.monotonic() > until_s]
        for client, _ in self._waiting:
            if done:
                self._send(client, _plain(200, None))
            elif client in late:
                self._send(client, _plain(504, "the evidence has taken too long"))
        self._waiting = [] if done else [item for item in self._waiting if item[0] not in late]

    def _send(self, client: Any, response: Response) -> None:
        """Answer and hang up; a client that has gone, or does not read, is not waited for."""
        word = "OK" if response.status < 400 else "Refused"
        head = [f"HTTP/1.1 {response.status} {word}", f"Content-Type: {response.content_type}", "Connection: close"]
        head += [f"Content-Length: {response.content_length}", *(f"{name}: {value}" for name, value in response.headers)]
        with contextlib.suppress(OSError):
            client.settimeout(WRITE_S)
            client.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + response.body)
            client.shutdown(_socket.SHUT_RDWR)  # a child forked meanwhile holds the connection as well, and would keep it open
        with contextlib.suppress(OSError):
            client.close()


def _private(directory: Path) -> Path:
    """A directory of ours that nobody else may enter.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "is not a directory that only this user may enter")
    for left in _left_behind(directory):
        with contextlib.suppress(OSError):
            left.unlink()
    return directory


def _left_behind(directory: Path) -> Iterator[Path]:
    """Sockets of processes that were killed."""
    for entry in directory.iterdir():
        match = re.fullmatch(r"(\d+)-(\d+)\.sock", entry.name)
        if match and not is_running(int(match[1]), int(match[2]), None) and not _answers(entry):
            yield entry


def _answers(path: Path) -> bool:
    """Whether somebody listens; the pid in its name may be one of another container."""
    with _socket_to_ask() as asking:
        asking.settimeout(0.1)
        return bool(asking.connect_ex(str(path)) != errno.ECONNREFUSED)


@contextlib.contextmanager
def _socket_to_ask() -> Iterator[Any]:
    asking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        yield asking
    finally:
        asking.close()


def _start_ticks(pid: int) -> int | None:
    try:
        return identity(pid).start_ticks
    except (ProcessGone, OSError):
        return None


def _read_head(client: Any) -> bytes:
    """The request up to its empty line; a body is not read.

    Raises:
        OSError, ValueError: it did not come in time, or is too long.
    """
    until_s = time.monotonic() + READ_S
    head = b""
    while b"\r\n\r\n" not in head:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "it did not come in time")
        client.settimeout(left_s)
        more = client.recv(4096)
        if not more:
            raise ValueError("it ends too early")
        head += more
        if len(head) > REQUEST_MOST:
            raise ValueError("it is too long")
    return head


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    from http.client import HTTPException, parse_headers
    from io import BytesIO

    file = BytesIO(head)
    words = file.readline().decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return "GET", "/malformed", {}
    try:
        headers = {name.lower(): value for name, value in parse_headers(file).items()}
    except HTTPException:
        headers = {}
    return words[0], words[1], headers


def _plain(status: int, error: str | None) -> Response:
    """An answer of the socket's own: what was refused, or that the evidence is there."""
    import json

    from memwatch.endpoints import Response

    return Response(status, (json.dumps({"error": error} if error is not None else {"taken": True}) + "\n").encode())


class NoAnswer(Exception):
    """The process cannot be asked; the message says why and what to do."""


def ask(pid: int, method: str, target: str, *, timeout_s: float = EVIDENCE_S + 5.0) -> tuple[int, bytes]:
    """Ask a process of this machine; returns the status and the body.

    Raises:
        NoAnswer: it has no live socket, or does not answer.
    """
    path = find_socket(pid)
    if path is None:
        raise NoAnswer(
            f"process {pid} has no live socket: it is gone, is not watched from inside, has MEMWATCH_SOCKET=off, "
            "or is another user's or in another container"
        )
    answer = b""
    try:
        with _socket_to_ask() as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while more := connection.recv(1 << 16):
                answer += more
    except OSError as error:
        raise NoAnswer(f"process {pid} does not answer on {path}: {error.strerror or error}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise NoAnswer(f"process {pid} gave no answer on {path}: is its watcher held up by a hook or a sink?")
    return int(words[1]), body


def error_of(body: bytes) -> str:
    """What an answer that is a refusal says."""
    import json

    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return "it does not say why"
