"""What code and types are called where people read it: short paths, qualified names, no addresses, no user code run.

Law: nothing here calls a `repr`, `str`, `len`, `==` or attribute hook of the program's objects.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

Frame = tuple[str, str, int]
"""File name, qualified name, line."""

OURSELVES = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 - no pathlib in a service
STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep  # noqa: PTH100, PTH120
LONGEST = 200
_SITE = re.compile(r"^.*[/\\](?:site|dist)-packages[/\\]")

_module_of = type.__dict__["__module__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__


def is_ours(filename: str) -> bool:
    """Whether a file is part of memwatch (the command line's demo service is a program like any other)."""
    return filename.startswith(OURSELVES) and not filename.endswith("shop.py")


def is_standard(filename: str) -> bool:
    """Whether a file belongs to the standard library, or to the interpreter itself."""
    return (filename.startswith(STANDARD) and _SITE.match(filename) is None) or filename.startswith("<frozen ")


def is_installed(filename: str) -> bool:
    """Whether a file belongs to a package that was installed, and not to the program itself."""
    return _SITE.match(filename) is not None


@lru_cache(maxsize=2048)
def short_file(filename: str) -> str:
    """The part of a path that a person reads: below `site-packages`, the standard library, the working directory or `sys.path`."""
    shorter = _SITE.sub("", filename)
    if shorter != filename:
        return shorter
    if filename.startswith(STANDARD):
        return filename[len(STANDARD) :]
    roots = sorted({os.path.abspath(entry or ".") for entry in sys.path if isinstance(entry, str)}, key=len, reverse=True)  # noqa: PTH100
    for root in roots:
        if filename.startswith(root + os.sep) and len(root) > 1:
            return filename[len(root) + 1 :]
    parts = filename.rsplit(os.sep, 2)
    return f"{parts[1]}{os.sep}{parts[2]}" if len(parts) == 3 else filename


def site(frame: Frame) -> str:
    """A frame as labels say it: `app/sessions.py:48 SessionStore.add`."""
    filename, qualname, line = frame
    return f"{short_file(filename)}:{line} {shortened(qualname)}"


def type_name(kind: type) -> str:
    """`app.sessions.Session`; built-in types without their module."""
    try:
        module, qualname = _module_of(kind), _qualname_of(kind)
    except Exception:  # a half-made class
        return "?"
    if not isinstance(module, str) or not isinstance(qualname, str):
        return str(qualname) if isinstance(qualname, str) else "?"
    return shortened(qualname if module in ("builtins", "__builtin__") else f"{module}.{qualname}")


def shortened(text: str) -> str:
    """A name of a program's own making, of a length that a line can bear."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def instance_dict(thing: object) -> dict[str, Any] | None:
    """The attributes of an instance, without running a line of its class's."""
    for kind in type.__dict__["__mro__"].__get__(type(thing)):
        descriptor = type.__dict__["__dict__"].__get__(kind).get("__dict__")
        if descriptor is None:
            continue
        if type(descriptor) is not GetSetDescriptorType:
            return None
        try:
            found = descriptor.__get__(thing)
        except Exception:
            return None
        return found if isinstance(found, dict) else None
    return None


def slots(thing: object) -> dict[str, object]:
    """The values of an instance's slots."""
    found: dict[str, object] = {}
    for kind in type.__dict__["__mro__"].__get__(type(thing)):
        for name, descriptor in list(type.__dict__["__dict__"].__get__(kind).items()):
            if type(descriptor) is MemberDescriptorType and name not in found:
                try:
                    found[name] = descriptor.__get__(thing)
                except Exception:
                    continue
    return found


_LENGTHS: tuple[tuple[type, Any], ...] = tuple((kind, kind.__len__) for kind in (dict, list, set, frozenset, tuple))


def length(thing: object) -> int | None:
    """Entries of a built-in container or of a class derived from one, whatever the class says its length is."""
    for kind, measure in _LENGTHS:
        if isinstance_of(thing, kind):
            return int(measure(thing))
    deque = _deque()
    if deque is not None and isinstance_of(thing, deque):
        return int(deque.__len__(thing))
    return None


def isinstance_of(thing: object, kind: type) -> bool:
    """`isinstance` without `__class__` and `__instancecheck__`, which may be the program's."""
    return is_one_of(kind, type.__dict__["__mro__"].__get__(type(thing)))


def is_one_of(kind: type, kinds: Iterable[type]) -> bool:
    """`in` by identity: a metaclass may have an `__eq__` of its own."""
    return any(kind is other for other in kinds)


def _deque() -> Any:
    return getattr(sys.modules.get("collections"), "deque", None)
