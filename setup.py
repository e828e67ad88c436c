"""The C extensions; everything else is declared in pyproject.toml.

They are optional: without a compiler, or on another interpreter than CPython, memwatch installs and does without them.
"""

import sys

from setuptools import Extension, setup


def extension(name: str, *libraries: str) -> Extension:
    path = f"memwatch/evidence/{name}.c"
    return Extension(f"memwatch.evidence.{name}", [path], extra_compile_args=["-O2"], libraries=list(libraries), optional=True)


extensions = [extension("_sampler", "m", "dl", "pthread"), extension("_heap")]

setup(ext_modules=extensions if sys.implementation.name == "cpython" and sys.platform != "win32" else [])
