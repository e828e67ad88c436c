"""The C extensions; everything else is declared in pyproject.toml.

They are optional: without a compiler, or on another interpreter than CPython, memwatch installs and does without them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup


def extension(name: str, *libraries: str, more: Sequence[str] = ()) -> Extension:
    """*more*: sources beside the one of the extension's name, and headers."""
    path = Path("memwatch", *name.split("."))
    sources = [path.with_suffix(".c"), *(path.with_name(each) for each in more)]
    return Extension(
        f"memwatch.{name}",
        [str(source) for source in sources if source.suffix == ".c"],
        depends=[str(source) for source in sources if source.suffix == ".h"],
        extra_compile_args=["-O2"],
        libraries=list(libraries),
        optional=True,
    )


extensions = [
    extension("evidence._sampler", "m", "dl", "pthread", more=("_stacks.c", "_stacks.h")),
    extension("evidence._heap"),
    extension("routes._flights", "m", more=("_awaited.c", "_flights.h")),
    extension("caches._engine"),
]

setup(ext_modules=extensions if sys.implementation.name == "cpython" and sys.platform != "win32" else [])
