"""Keys of cached calls, as cachetools names them."""

from __future__ import annotations

from typing import Any

_MARK = ("\0keywords",)
"""Stands between positional and keyword arguments in a key.  Text, so that the key has a name in a store that processes share."""


def hashkey(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a call; 1 and 1.0 are the same."""
    return args + _MARK + tuple(sorted(kwargs.items())) if kwargs else args


def methodkey(self: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a method call, without the object."""
    return hashkey(*args, **kwargs)


def typedkey(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a call with their types; 1 and 1.0 differ."""
    types = tuple(type(value) for _, value in sorted(kwargs.items()))
    return hashkey(*args, **kwargs) + types + tuple(map(type, args))


def typedmethodkey(self: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a method call with their types, without the object."""
    return typedkey(*args, **kwargs)
