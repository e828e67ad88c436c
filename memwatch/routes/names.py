"""What a request's route is called where no framework says: few names, whatever paths come."""

from __future__ import annotations

import re

LONGEST_NAME = 200
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
OTHER_METHOD = "OTHER"
"""Anybody can send any word as a method."""
ID = "{id}"
_MOST_SEGMENTS = 8
_LOOKS_LIKE_AN_ID = re.compile(
    r"""
      \d+                                    # 42
    | [0-9a-fA-F]{8}-[0-9a-fA-F-]{20,}       # a UUID
    | (?=.*\d)[0-9a-fA-F]{8,}                # a hash
    | (?=.*\d)[A-Za-z0-9_=~.%+-]{16,}        # a token
    | .{40,}                                 # a slug, a signature
    | .*[@:;,%].*                            # an address, a key
    | \d[\d.,_-]*                            # a version, a date
    """,
    re.VERBOSE | re.DOTALL,
)


def normalised(path: str) -> str:
    """A path with what looks like an id in each segment replaced: `/users/42/cart` is `/users/{id}/cart`.

    A guess, for applications whose framework says nothing: words that are ids (`/users/alice`) are not recognised, and the ledger's
    bound holds for them.
    """
    path = path[: 4 * LONGEST_NAME].partition("?")[0]
    segments = path.split("/")
    kept = [ID if segment and _LOOKS_LIKE_AN_ID.fullmatch(segment) else segment for segment in segments[: _MOST_SEGMENTS + 1]]
    return "/".join(kept) + ("/…" if len(segments) > _MOST_SEGMENTS + 1 else "") or "/"


def method(name: object) -> str:
    """The method if it is one of HTTP's, else `OTHER`."""
    return name if isinstance(name, str) and name in METHODS else OTHER_METHOD
