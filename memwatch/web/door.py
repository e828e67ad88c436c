"""Who may come in: the token, the session that a browser gets for it, and how fast wrong ones may be tried.

Law: the token comes in a header or in the body of a form, never in an address, which ends up in logs; it is compared in constant
time, and an answer tells a wrong one from a right one and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from memwatch.access import bearer, is_token, token_of

COOKIE = "memwatch-session"
SESSION_S = 12 * 3600.0
"""A session lasts a working day; the token is asked for again after that."""
WRONG_S = 0.5
"""Wrong tokens are answered one after the other, each after this long."""
WAITING_MOST = 16
"""Wrong tokens that wait for their answer; who comes then is sent away before it is looked at."""


class Busy(Exception):
    """Too many wrong tokens wait for their answer."""


class Door:
    """Admits requests.

    Args:
        token: None lets everybody in.

    Raises:
        ValueError: the token is short enough to be guessed.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token_of(token)
        self._waiting = 0
        self._line = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._token is None

    async def admits(self, headers: Mapping[str, str]) -> bool | None:
        """Whether a request may come in; None if it brought nothing to tell by.

        Raises:
            Busy: nobody has the time to look.
        """
        if self._token is None or self._has_session(headers.get("cookie", "")):
            return True
        given = bearer(headers.get("authorization", ""))
        return None if given is None else await self.is_right(given)

    async def is_right(self, given: str) -> bool:
        """Whether that is the token; a wrong one waits.

        Raises:
            Busy: nobody has the time to look.
        """
        if self._waiting >= WAITING_MOST:
            raise Busy
        if self._token is not None and is_token(given, self._token):
            return True
        self._waiting += 1
        try:
            async with self._line:
                await asyncio.sleep(WRONG_S)
        finally:
            self._waiting -= 1
        return False

    def session(self) -> str:
        """The value of a new session's cookie: when it ends, signed."""
        ends = str(int(time.time() + SESSION_S))
        return f"{ends}.{self._signature(ends)}"

    def _has_session(self, cookies: str) -> bool:
        try:
            found = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        ends, _, signature = (found.value if found is not None else "").partition(".")
        if not hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), self._signature(ends).encode()):
            return False
        return time.time() < int(ends)

    def _signature(self, ends: str) -> str:
        assert self._token is not None
        return hmac.new(
            self._token, f"memwatch session until {ends}".encode("utf-8", "surrogateescape"), hashlib.sha256
        ).hexdigest()
