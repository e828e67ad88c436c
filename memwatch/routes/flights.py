"""Requests under way, and those that are over but not yet in their rows: what runs once or more for every request.

This is what `_flights.c` and, for what an ASGI server awaits, `_awaited.c` do in a seventh to a third of the time, for
interpreters without them; both pass the same tests.

Law: nothing here raises into a request.  What the program gave (a scope, an environ) is held only while the request is under way.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Any, Protocol

from memwatch.routes.buckets import SCALE, bucket_of

MOST_PATIENCE = 64
"""Readings of memory that other requests have spoiled make the next one wait up to so many times as long."""

Done = tuple[str, str | None, int, int, list[tuple[int, int]]]
"""Of requests that are over: their route, their verb if the route does not begin with one, how many, how many of them failed, and
how many took how long (`buckets.bucket_of`), as far as that is known."""

Said = tuple[str | Callable[..., str] | None, tuple[Any, ...]]
"""The route of a request under way, or a function that says it and its arguments."""


class Owner(Protocol):
    """What keeps the rows."""

    def write(self) -> None:
        """`take` and write into the rows; called when a batch is full."""

    def resident(self) -> float | None:
        """Resident memory in bytes, where single requests are measured."""

    def compare(self, before: float, route: str, verb: str | None, took_s: float) -> None:
        """A request that was alone all the time is over; *before*: resident memory when it began."""


class Flights:
    """The requests of one process.

    Args:
        owner: is told when a batch is full, and reads memory.
        clock: monotonic seconds; None: the system's.
        batch: when so many wait to be taken, `owner.write` is called: requests here, in the extension different routes.
        most: so many are timed at a time; what comes on top is counted only.
        duty: part of the time of requests that may be spent in `owner.resident`; down to a part in `MOST_PATIENCE` of it, while
            no request stays alone.
        fastest_bytes_per_s: a request that took less than the threshold at this speed is not compared.
        scale: that of `buckets`, for the extension.

    Attributes:
        threshold_bytes: growth from which on `owner.compare` is told of a request that was alone; 0: never.
        spent_s: what `owner.resident` has taken; the owner counts it.
    """

    def __init__(
        self,
        owner: Owner,
        clock: Callable[[], float] | None,
        batch: int,
        most: int,
        duty: float,
        fastest_bytes_per_s: float,
        scale: tuple[float, float, float, int] = SCALE,
    ) -> None:
        self._owner, self.clock = owner, clock or perf_counter
        self._batch, self._most, self._duty, self._fastest = batch, most, duty, fastest_bytes_per_s
        self._numbers = count(1)
        self.threshold_bytes = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget all: of a parent's requests none is this process's."""
        self.spent_s = 0.0
        self._busy_s = self._due_s = self._paid_s = 0.0
        self._patience = 1
        self._alone: tuple[Flight, float] | None = None
        self._flying: dict[int, Said] = {}
        self._over: deque[tuple[str, str | None, float | None, bool]] = deque()

    def begin(self, route: str | Callable[..., str] | None = None, *arguments: Any) -> Flight:
        """A request begins.

        Args:
            route: its route if that is known by now, or a function that says it while the request is under way.
            arguments: those of that function.

        Returns:
            What `end` and `forget` want.  Never raises.
        """
        flight = Flight()
        self._depart(flight, (route, arguments))
        return flight

    def end(self, flight: Flight, route: str, failed: bool = False, verb: str | None = None) -> None:
        """A request is over, its answer sent to the last byte.

        Args:
            flight: what `begin` returned.
            route: its low-cardinality name: `POST /users/{id}`, `job:send_mail`.
            failed: whether it raised, or answered with a status of 500 or more.
            verb: its method, if *route* does not begin with one: `/users/{id}`.

        Never raises.
        """
        self._land(flight, route, verb, failed)

    def forget(self, flight: Flight) -> None:
        """What began was not done after all: it is not counted."""
        self._flying.pop(flight.number, None)
        self._alone = None

    def add(self, route: str, took_s: float, failed: bool = False) -> None:
        """Something is over whose beginning was not told."""
        self._over.append((route, None, took_s, failed))
        if len(self._over) >= self._batch:
            self._owner.write()

    def asgi(self, named: Callable[[Any, str, int], str], scope: Any, send: Any, by_template: bool) -> AsgiFlight:
        """A request begins whose application is called with what this returns as `send`.

        Args:
            named: says the route of a scope, given the root path it began with and the status.
            scope: of the request.
            send: the server's.
            by_template: whether a `scope["route"].path` is the route's name, and *named* need not be asked.
        """
        flight = AsgiFlight(self, named, scope, send, by_template)
        self._depart(flight, (named, (scope, flight.root, 0)))
        return flight

    def wsgi(self, named: Callable[[Any, str], str], environ: Any, start: Any, by_template: bool) -> WsgiFlight:
        """A request begins whose application is called with what this returns as `start_response`.

        Args:
            named: says the route of an environ, given the first three characters of the status.
            environ: of the request.
            start: the server's.
            by_template: whether an `environ["werkzeug.request"].url_rule.rule` is the route's name, and *named* need not be asked.
        """
        flight = WsgiFlight(self, named, environ, start, by_template)
        self._depart(flight, (named, (environ, "")))
        return flight

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._flying)

    @property
    def waiting(self) -> int:
        """Those over that nobody has taken."""
        return len(self._over)

    def under_way(self) -> list[Said]:
        """Of each request under way what it is called."""
        return list(self._flying.values())

    def take(self) -> list[Done]:
        """What is over, once; in the order in which the first of each was."""
        over = self._over
        groups: dict[tuple[str, str | None], list[tuple[float | None, bool]]] = {}
        for _ in range(len(over)):
            try:
                route, verb, took_s, failed = over.popleft()
            except IndexError:  # another thread takes too
                break
            groups.setdefault((route, verb), []).append((took_s, failed))
        found = []
        for (route, verb), group in groups.items():
            took = Counter(bucket_of(took_s) for took_s, _ in group if took_s is not None)
            found.append((route, verb, len(group), sum(failed for _, failed in group), list(took.items())))
        return found

    # No lock: each step is one call into C.  Nothing is claimed of two requests that overlap, whatever the order in which their
    # threads come by here: whoever is not alone, or ends, clears `_alone`, and a claim is made only by the one that set it while
    # nobody else is under way.

    def _depart(self, flight: Flight, said: Said) -> None:
        flying = self._flying
        flight.number = next(self._numbers)
        if flying:
            if self._alone is not None:
                self._alone = None
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            if len(flying) >= self._most:
                return
        elif self.threshold_bytes and self._busy_s >= self._due_s:
            before = self._owner.resident()
            self._due_s = self._busy_s + (self.spent_s - self._paid_s) * self._patience / self._duty
            self._paid_s = self.spent_s
            self._alone = None if before is None else (flight, before)
        flight.began_s = self.clock()
        flying[flight.number] = said

    def _land(self, flight: Flight, route: str, verb: str | None, failed: bool) -> None:
        flying = self._flying
        took_s = None
        # One of a parent's, ended in a child, is nothing that was begun here.
        if flying.pop(flight.number, None) is not None:
            took_s = self.clock() - flight.began_s
        over = self._over
        over.append((route, verb, took_s, failed))
        if len(over) >= self._batch:
            self._owner.write()
        if not flying and took_s is not None:
            self._busy_s += took_s
        alone = self._alone
        if alone is not None:
            self._alone = None
            if alone[0] is flight and not flying:
                self._patience = 1
                if took_s and took_s * self._fastest >= self.threshold_bytes:
                    self._owner.compare(alone[1], route, verb, took_s)


class Flight:
    """A request under way."""

    __slots__ = ("began_s", "number")
    began_s: float
    number: int


class AsgiFlight(Flight):
    """A request of an ASGI application, and the `send` that it is given."""

    __slots__ = ("_by_template", "_flights", "_named", "_scope", "_send", "_status", "root")

    def __init__(self, flights: Flights, named: Callable[[Any, str, int], str], scope: Any, send: Any, by_template: bool) -> None:
        self._flights, self._named, self._scope, self._send, self._by_template = flights, named, scope, send, by_template
        self.root = scope.get("root_path", "")
        self._status: Any = 0

    def __call__(self, message: Any) -> Any:
        """Send."""
        if not self._status:
            try:
                if message["type"] == "http.response.start":
                    self._status = message.get("status", 0)
            except Exception:
                pass  # the server's to refuse
        return self._send(message)

    def over(self, failed: bool | None = None) -> None:
        """The application has returned, or raised.

        Args:
            failed: whether it counts as an error; None: if its status says so.
        """
        scope, self._scope = self._scope, None
        if scope is None:
            return
        status = self._status
        if failed is None:
            # Some servers take any status; what is no number must not raise here, when all is sent.
            failed = isinstance(status, int) and status >= 500
        verb = template = None
        try:
            if self._by_template and scope.get("root_path", "") == self.root:
                # What most requests are: the name is put together later, when the rows are written.
                verb, template = scope["method"], scope["route"].path
        except Exception:
            pass  # no framework that says: `named` knows what else there is
        if type(template) is not str or type(verb) is not str:
            verb, template = None, self._named(scope, self.root, status)
        self._flights._land(self, template, verb, failed)


class AsgiEntry:
    """An ASGI application in front of another, whose HTTP requests are counted.

    Args:
        app: the other one.
        flights: what counts.
        says: says the route of a scope, given the root path it began with and the status.
        by_template: of `Flights.asgi`.
        harmless: exceptions that are no errors.

    That of the extension has no `in_python` of its own: it calls it for what is no HTTP request, or is counted in Python.
    """

    def __init__(
        self, app: Any, flights: Flights, says: Callable[[Any, str, int], str], by_template: bool, harmless: tuple[type, ...]
    ) -> None:
        self.app, self.flights, self.says, self.by_template, self.harmless = app, flights, says, by_template, harmless

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        flight = self.flights.asgi(self.says, scope, send, self.by_template)
        try:
            await self.app(scope, receive, flight)
        except BaseException as error:
            flight.over(not isinstance(error, self.harmless))
            raise
        flight.over()

    in_python = __call__


class WsgiFlight(Flight):
    """A request of a WSGI application, the `start_response` that it is given, and then its answer.

    It is over when the answer is closed, and in any case when it is thrown away.
    """

    __slots__ = (
        "_answer",
        "_broken",
        "_by_template",
        "_chunks",
        "_code",
        "_environ",
        "_flights",
        "_name",
        "_named",
        "_start",
        "_verb",
    )

    def __init__(self, flights: Flights, named: Callable[[Any, str], str], environ: Any, start: Any, by_template: bool) -> None:
        self._flights, self._named, self._environ, self._start, self._by_template = flights, named, environ, start, by_template
        self._code = ""
        self._name: str | None = None
        self._verb: str | None = None
        self._broken = False
        self._answer: Any = None
        self._chunks: Iterator[Any] | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """`start_response(status, headers, exc_info=None)`."""
        status, environ = arguments[0] if arguments else None, self._environ
        # The route now, not at the end: Flask takes its request out of the environ when the view has answered.
        if isinstance(status, str) and environ is not None:  # else the server's to refuse
            self._code = status[:3]
            name = verb = None
            try:
                if self._by_template:
                    # What most requests are: the name is put together later, when the rows are written.
                    verb, name = environ["REQUEST_METHOD"], environ["werkzeug.request"].url_rule.rule
            except Exception:
                pass  # not Flask: `named` knows what else there is
            if type(name) is not str or type(verb) is not str:
                verb, name = None, self._named(environ, self._code)
            self._name, self._verb = name, verb
        return self._start(*arguments, **named)

    def answer(self, answer: Any) -> WsgiFlight:
        """The application has returned *answer*; this is then that answer, and iterates over it."""
        self._answer = answer
        return self

    def __iter__(self) -> WsgiFlight:
        return self

    def __next__(self) -> Any:
        try:
            chunks = self._chunks
            if chunks is None:
                chunks = self._chunks = iter(() if self._answer is None else self._answer)
            return next(chunks)
        except StopIteration:
            raise
        except BaseException:
            self._broken = True
            raise

    def close(self) -> None:
        """The server has sent it, or given up."""
        answer, self._answer = self._answer, None
        try:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        except BaseException:
            self._broken = True
            raise
        finally:
            self.over()

    def over(self, failed: bool = False) -> None:
        """It is over; a second time does nothing."""
        environ, self._environ = self._environ, None
        if environ is not None:
            name = self._named(environ, "") if self._name is None else self._name
            self._flights._land(self, name, self._verb, failed or self._broken or self._code[:1] == "5")

    def __del__(self) -> None:
        self.over()
