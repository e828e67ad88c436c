"""Who may ask: tokens, and the Host header; for the endpoints a service mounts and for the dashboard.

Law: pure, and in constant time where a secret is compared.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable

TOKEN_AT_LEAST = 16


def token_of(text: str) -> bytes:
    """A token as it is compared.

    Raises:
        ValueError: it is short enough to be guessed.
    """
    if not isinstance(text, str) or len(text.strip()) < TOKEN_AT_LEAST:
        raise ValueError(f"the token must be text of at least {TOKEN_AT_LEAST} characters, such as secrets.token_urlsafe() makes")
    return text.strip().encode()


def is_token(given: str, token: bytes) -> bool:
    """Whether that is the token; takes the same time whether the first character is wrong or the last."""
    return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)


def bearer(header: str) -> str | None:
    """The token in an `Authorization` header; None if it has none."""
    scheme, _, given = header.partition(" ")
    return given.strip() if scheme.lower() == "bearer" and given.strip() else None


def host_names(hosts: Iterable[str]) -> frozenset[str]:
    """Names that a Host header may have, as they are compared."""
    return frozenset(host.lower().rstrip(".") for host in hosts)


def is_our_host(host: str, allowed: frozenset[str]) -> bool:
    """Whether a Host header means us: `localhost`, an address in figures, or one of *allowed* (`host_names`; `*` is all).

    A page of another site reaches a server of this machine by a name that resolves to it; that name is here.
    """
    if "*" in allowed:
        return True
    name = host.lower()
    if name.startswith("[") and "]" in name:
        name, _, rest = name[1:].partition("]")
    else:
        name, colon, port = name.partition(":")
        rest = colon + port
    if rest and not re.fullmatch(r":[0-9]*", rest):  # localhost:80@elsewhere
        return False
    name = name.rstrip(".")
    if name == "localhost" or name in allowed or host.lower() in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
