"""What calling the ASGI middleware returns is awaited, thrown into, closed and thrown away as the coroutine it stands for;
both with the extension and in Python."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import gc
import inspect
import types
import warnings
import weakref
from collections.abc import Generator
from random import Random
from typing import Any

import pytest

from memwatch import routes
from memwatch.integrations.asgi import MemwatchMiddleware
from memwatch.routes.flights import Flights
from memwatch.routes.ledger import fastest

pytestmark = pytest.mark.usefixtures("flights")

SCOPE = {"type": "http", "method": "GET", "path": "/a"}


async def nothing(*_: Any) -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


@types.coroutine
def suspended(word: str) -> Generator[str, Any, Any]:
    """Wait for whoever drives the coroutine; returns what it sends."""
    return (yield word)


def begun(app: Any) -> Any:
    """A request, not awaited yet."""
    return MemwatchMiddleware(app)(dict(SCOPE), nothing, nothing)


def counted() -> tuple[int, int, int]:
    """Requests, errors and requests under way."""
    book = routes.ledger()
    rows = list(book.figures(book.names()))
    assert {row.route for row in rows} <= {"GET /a"}
    return sum(row.requests for row in rows), sum(row.errors for row in rows), book.in_flight


def finish(request: Any) -> None:
    """Drive it once more, to its end."""
    with pytest.raises(StopIteration):
        request.send(None)


async def waits(scope: Any, receive: Any, send: Any) -> None:
    await suspended("waiting")


def test_it_is_a_coroutine_for_asyncio_and_can_be_a_task() -> None:
    request = begun(waits)
    assert isinstance(request, collections.abc.Coroutine)
    assert asyncio.iscoroutine(request)
    assert inspect.isawaitable(request)
    request.close()

    async def sleeps(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)

    async def main() -> Any:
        return await asyncio.create_task(begun(sleeps))

    assert asyncio.run(main()) is None
    assert counted() == (1, 0, 0)


def test_a_server_sees_a_coroutine_function_and_may_call_that() -> None:
    app = MemwatchMiddleware(waits)
    assert inspect.iscoroutinefunction(app.__call__)
    request = app.__call__(dict(SCOPE), nothing, nothing)
    assert request.send(None) == "waiting"
    finish(request)
    assert counted() == (1, 0, 0)


def test_what_is_sent_reaches_the_application_and_what_it_yields_comes_out() -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> str:
        got.append(await suspended("one"))
        got.append(await suspended("two"))
        return "dropped"

    request = begun(app)
    assert counted() == (0, 0, 0)  # nothing runs before it is awaited
    assert request.send(None) == "one"
    assert counted()[2] == 1
    assert request.send("first") == "two"
    with pytest.raises(StopIteration) as over:
        request.send("second")
    assert over.value.value is None
    assert got == ["first", "second"]
    assert counted() == (1, 0, 0)


def test_nothing_but_none_can_be_sent_before_it_has_begun() -> None:
    request = begun(waits)
    with pytest.raises(TypeError, match="just-started coroutine"):
        request.send(1)
    assert request.send(None) == "waiting"
    request.close()


def test_once_it_is_over_it_cannot_be_awaited_again() -> None:
    request = begun(nothing)
    finish(request)
    for again in (lambda: request.send(None), lambda: request.throw(KeyError())):
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            again()
    request.close()
    assert counted() == (1, 0, 0)


def test_what_is_thrown_in_is_the_applications_to_catch() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        except KeyError:
            await suspended("caught")

    request = begun(app)
    request.send(None)
    assert request.throw(KeyError("x")) == "caught"
    assert counted() == (0, 0, 1)
    finish(request)
    assert counted() == (1, 0, 0)


def test_what_it_catches_and_returns_upon_is_over_without_an_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        except KeyError:
            return

    request = begun(app)
    request.send(None)
    with pytest.raises(StopIteration):
        request.throw(KeyError)
    assert counted() == (1, 0, 0)


@pytest.mark.parametrize(("thrown", "errors"), [(KeyError("mine"), 1), (asyncio.CancelledError(), 0), (GeneratorExit(), 0)])
def test_what_it_does_not_catch_comes_out_as_it_is(thrown: BaseException, errors: int) -> None:
    request = begun(waits)
    request.send(None)
    with pytest.raises(type(thrown)) as raised:
        request.throw(thrown)
    assert raised.value is thrown
    assert counted() == (1, errors, 0)


def test_ended_from_outside_it_ends_whatever_the_application_says_to_that() -> None:
    async def returns(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        except GeneratorExit:
            return

    async def goes_on(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        except GeneratorExit:
            await suspended("again")

    request = begun(returns)
    request.send(None)
    with pytest.raises(GeneratorExit):
        request.throw(GeneratorExit)
    assert counted() == (1, 0, 0)
    request = begun(goes_on)
    request.send(None)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        request.throw(GeneratorExit)
    assert counted() == (2, 1, 0)


def test_thrown_into_before_it_has_begun_it_raises_that_and_nothing_was_done() -> None:
    request = begun(waits)
    with pytest.raises(KeyError, match="early"):
        request.throw(KeyError("early"))
    assert counted() == (0, 0, 0)


def test_an_exception_of_the_application_keeps_its_traceback_and_its_cause() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("mine") from KeyError("why")

    with pytest.raises(RuntimeError, match="mine") as raised:
        begun(app).send(None)
    assert isinstance(raised.value.__cause__, KeyError)
    assert raised.traceback[-1].name == "app"
    assert counted() == (1, 1, 0)


def test_closed_it_closes_the_application_and_is_no_error() -> None:
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        finally:
            said.append("closed")

    request = begun(app)
    request.send(None)
    request.close()
    assert said == ["closed"]
    assert counted() == (1, 0, 0)
    never = begun(app)
    never.close()
    assert counted() == (1, 0, 0)


def test_an_application_that_does_not_let_itself_be_closed_is_told_of() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        except GeneratorExit:
            await suspended("again")

    request = begun(app)
    request.send(None)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        request.close()


def test_thrown_away_while_it_waits_it_is_closed_at_once() -> None:
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await suspended("waiting")
        finally:
            said.append("closed")

    gc.disable()  # by counting references alone
    try:
        request = begun(app)
        request.send(None)
        del request
        assert said == ["closed"]
    finally:
        gc.enable()
    assert counted() == (1, 0, 0)


def test_never_awaited_it_warns_as_a_coroutine_does_and_counts_nothing() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begun(waits)
        gc.collect()
    assert [(entry.category, "was never awaited" in str(entry.message)) for entry in told] == [(RuntimeWarning, True)]
    assert counted() == (0, 0, 0)


def test_it_cannot_be_driven_while_it_runs() -> None:
    raised: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for again in (lambda: request.send(None), lambda: request.throw(KeyError()), request.close):
            try:
                again()
            except ValueError as error:
                raised.append(str(error))

    request = begun(app)
    finish(request)
    assert raised == ["coroutine already executing"] * 3
    assert counted() == (1, 0, 0)


def test_an_application_that_raises_stop_iteration_has_not_ended_well() -> None:
    def app(scope: Any, receive: Any, send: Any) -> Any:
        raise StopIteration("no such application")

    with pytest.raises(RuntimeError, match="coroutine raised StopIteration") as raised:
        begun(app).send(None)
    assert isinstance(raised.value.__cause__, StopIteration)
    assert counted() == (1, 1, 0)


def test_an_application_that_calls_itself_without_end_is_a_recursion_error() -> None:
    app = MemwatchMiddleware(None)  # type: ignore[arg-type]  # it gets one below
    app.app = app
    with pytest.raises(RecursionError):
        app(dict(SCOPE), nothing, nothing).send(None)
    assert routes.ledger().in_flight == 0


def test_tools_see_whether_it_runs_waits_or_is_over() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(inspect.getcoroutinestate(request))
        await suspended("waiting")

    request = begun(app)
    request.send(None)
    assert (seen, inspect.getcoroutinestate(request)) == ([inspect.CORO_RUNNING], inspect.CORO_SUSPENDED)
    assert "MemwatchMiddleware" in request.__qualname__ or "AsgiEntry" in request.__qualname__
    assert weakref.ref(request)() is request
    request.close()
    assert inspect.getcoroutinestate(request) == inspect.CORO_CLOSED


class Awaited:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[str, Any, None]:
        yield "awaited"


@types.coroutine
def generator(scope: Any, receive: Any, send: Any) -> Generator[str, Any, None]:
    yield "of a generator"


@pytest.mark.parametrize(
    ("app", "said"), [(lambda *_: Awaited(), "awaited"), (generator, "of a generator"), (lambda *_: waits(*_), "waiting")]
)
def test_an_application_may_return_anything_that_can_be_awaited(app: Any, said: str) -> None:
    request = begun(app)
    assert request.send(None) == said
    finish(request)
    assert counted() == (1, 0, 0)


def test_what_is_thrown_into_an_awaitable_without_throw_is_raised_where_it_is_awaited() -> None:
    class Bare:
        def __await__(self) -> Any:
            return iter(["once", "twice"])

    request = begun(lambda *_: Bare())
    assert request.send(None) == "once"
    with pytest.raises(KeyError):
        request.throw(KeyError())
    assert counted() == (1, 1, 0)


@pytest.mark.parametrize("app", [lambda *_: None, lambda *_: iter(()), None])
def test_an_application_that_returns_nothing_to_await_is_a_type_error(app: Any) -> None:
    with pytest.raises(TypeError):
        begun(app).send(None)
    assert counted() == (1, 1, 0)


def test_arguments_may_be_given_by_name_and_wrong_ones_are_a_type_error() -> None:
    app: Any = MemwatchMiddleware(nothing)
    with pytest.raises(StopIteration):
        app(scope=dict(SCOPE), receive=nothing, send=nothing).send(None)
    assert counted() == (1, 0, 0)
    with pytest.raises(TypeError, match="send"):
        app(dict(SCOPE), nothing)


def test_a_subclass_may_do_more_around_it() -> None:
    said: list[str] = []

    class More(MemwatchMiddleware):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            said.append("before")
            await super().__call__(scope, receive, send)
            said.append("after")

    with pytest.raises(StopIteration):
        More(nothing)(dict(SCOPE), nothing, nothing).send(None)
    assert said == ["before", "after"]
    assert counted() == (1, 0, 0)


def test_context_variables_that_the_application_sets_are_those_of_whoever_awaits_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        variable.set("set below")

    async def main() -> str:
        await begun(app)
        return variable.get()

    assert asyncio.run(main()) == "set below"


def test_one_can_be_put_before_another_and_each_request_is_counted_by_both() -> None:
    request = MemwatchMiddleware(MemwatchMiddleware(waits))(dict(SCOPE), nothing, nothing)
    assert request.send(None) == "waiting"
    finish(request)
    assert counted() == (2, 0, 0)


def test_the_application_below_can_be_replaced() -> None:
    app = MemwatchMiddleware(None)  # type: ignore[arg-type]  # it gets one below
    app.app = waits
    request = app(dict(SCOPE), nothing, nothing)
    assert request.send(None) == "waiting"
    request.close()


def test_where_a_task_waits_is_seen_through_it() -> None:
    from memwatch.evidence.resources import _waits

    async def below() -> None:
        await suspended("waiting")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await below()

    async def served() -> None:
        await begun(app)

    task = served()
    task.send(None)
    assert "suspended" in _waits(task)
    task.close()


class Odd(Exception):
    """Of the application, or of whoever drives it."""


def some_application(random: Random) -> Any:
    """One that does a few things in any order, and goes on after some of what is thrown into it."""
    steps = [random.randrange(10) for _ in range(random.randrange(1, 6))]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, step in enumerate(steps):
            try:
                if step < 4:
                    await suspended(f"step {number}")
                elif step == 4:
                    await send({"type": "http.response.start", "status": random.choice([200, 500, "x", None, 10**30])})
                elif step == 5:
                    raise random.choice([Odd("its own"), asyncio.CancelledError(), KeyboardInterrupt()])
                elif step == 6:
                    return
                elif step == 7:
                    scope["route"] = types.SimpleNamespace(path=random.choice(["/template", 3]))
                elif step == 8:
                    scope.pop("method", None)
            except BaseException:  # a cancellation and an interrupt, too: an application may swallow anything
                if random.random() < 0.7:
                    raise

    def raises(*_: Any) -> None:
        raise Odd("before it could be awaited")

    return random.choice([*[app] * 8, raises, lambda *_: Awaited(), lambda *_: None])


def played(kind: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What comes of one request that is driven at random: what each step gave or raised, and what was counted."""
    monkeypatch.setattr(routes, "_ledger", routes.Ledger(flights=kind))
    random, log = Random(seed), []
    request = begun(some_application(random))
    for _ in range(random.randrange(1, 7)):
        step = random.randrange(8)
        try:
            if step < 6:
                log.append(request.send(None if random.random() < 0.9 else "early"))
            elif step == 6:
                log.append(request.throw(random.choice([Odd("thrown"), Odd, asyncio.CancelledError(), GeneratorExit])))
            else:
                log.append(request.close())
        except BaseException as error:
            log.append((type(error), str(error)[:30]))
    del request
    book = routes.ledger()
    return log, [(row.route, row.requests, row.errors) for row in book.figures(book.names())], book.in_flight


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_however_it_is_driven_the_extension_and_python_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1500):
        assert played(fastest(), seed, monkeypatch) == played(Flights, seed, monkeypatch), seed
