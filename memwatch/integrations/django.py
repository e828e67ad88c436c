"""Django: counts requests per URL pattern, under WSGI and ASGI.

    MIDDLEWARE = ["memwatch.integrations.django.MemwatchMiddleware", ...]      # first

Law: Django is imported only by Django itself loading this; an answer is passed through as it is.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from memwatch.integrations.wsgi import followed
from memwatch.routes import UNMATCHED, ledger
from memwatch.routes.flights import Flight
from memwatch.routes.names import method, normalised


class MemwatchMiddleware:
    """Counts every request under the pattern it resolved to: `GET users/<int:pk>/`.

    Args:
        get_response: what comes below, a function or a coroutine function.

    A streaming answer is over after its last byte; any other when it leaves the middleware.  An exception in a view is an error,
    and so is a status of 500 or more.  A path that resolves to nothing is `(unmatched)`.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._ledger = ledger()
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """The interface of Django's middleware; a coroutine where `get_response` is one."""
        if self._is_async:
            return self._answer_later(request)
        flight = self._ledger.begin(_named, request, 0)
        try:
            response = self.get_response(request)
        except BaseException:
            self._ledger.end(flight, _named(request, 0), failed=True)
            raise
        return self._over(flight, request, response)

    async def _answer_later(self, request: Any) -> Any:
        flight = self._ledger.begin(_named, request, 0)
        waiting: Awaitable[Any] = self.get_response(request)
        try:
            response = await waiting
        except BaseException as error:
            failed = not isinstance(error, CancelledError | GeneratorExit)
            self._ledger.end(flight, _named(request, 0), failed=failed)
            raise
        return self._over(flight, request, response)

    def _over(self, flight: Flight, request: Any, response: Any) -> Any:
        status = getattr(response, "status_code", 0)
        route, failed = _named(request, status), status >= 500
        if not getattr(response, "streaming", False):
            self._ledger.end(flight, route, failed=failed)
            return response
        end = _Once(lambda broken: self._ledger.end(flight, route, failed=failed or broken))
        if getattr(response, "file_to_stream", None) is not None:
            # Other content would take from the server the file that it may hand to the kernel.
            return followed(response, lambda: end(False))
        chunks = response.streaming_content
        # Setting the content keeps what Django closes with the answer: the chunks' own close is among it.
        response.streaming_content = _streamed_async(chunks, end) if response.is_async else _streamed(chunks, end)
        return response


class _Once:
    """Ends a request once: at the end of its stream, or where the stream is thrown away."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[bool], None]) -> None:
        self._end: Callable[[bool], None] | None = end

    def __call__(self, broken: bool) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(broken)

    def __del__(self) -> None:
        self(False)


def _streamed(chunks: Iterator[bytes], end: _Once) -> Iterator[bytes]:
    broken = False
    try:
        yield from chunks
    except GeneratorExit:
        raise
    except BaseException:
        broken = True
        raise
    finally:
        end(broken)


async def _streamed_async(chunks: AsyncIterator[bytes], end: _Once) -> AsyncIterator[bytes]:
    broken = False
    try:
        async for chunk in chunks:
            yield chunk
    except (GeneratorExit, CancelledError):
        raise
    except BaseException:
        broken = True
        raise
    finally:
        end(broken)


def _named(request: Any, status: int) -> str:
    try:
        match = getattr(request, "resolver_match", None)
        if match is not None:
            return f"{method(request.method)} {match.route or '/'}"
        if status == 404:
            return UNMATCHED
        return f"{method(request.method)} {normalised(request.path)}"  # answered by a middleware before it was resolved
    except Exception:
        return UNMATCHED
