"""The C extensions; everything else is declared in pyproject.toml.

They are optional: without a compiler, or on another interpreter than CPython, memwatch installs and does without them.
"""

import sys

from setuptools import Extension, setup


def extension(name: str, *libraries: str) -> Extension:
    path = f"memwatch/{name.replace('.', '/')}.c"
    return Extension(f"memwatch.{name}", [path], extra_compile_args=["-O2"], libraries=list(libraries), optional=True)


extensions = [
    extension("evidence._sampler", "m", "dl", "pthread"),
    extension("evidence._heap"),
    extension("routes._flights", "m"),
    extension("caches._engine"),
]

setup(ext_modules=extensions if sys.implementation.name == "cpython" and sys.platform != "win32" else [])
