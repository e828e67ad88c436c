"""The C extensions; everything else is declared in pyproject.toml.

They are optional: without a compiler, or on another interpreter than CPython, memwatch installs and does without them.
"""

import sys

from setuptools import Extension, setup

FLAGS = ["-O2"]

extensions = [
    Extension("memwatch.evidence._sampler", ["memwatch/evidence/_sampler.c"], extra_compile_args=FLAGS, libraries=["m"], optional=True),
    Extension("memwatch.evidence._heap", ["memwatch/evidence/_heap.c"], extra_compile_args=FLAGS, optional=True),
]

setup(ext_modules=extensions if sys.implementation.name == "cpython" and sys.platform != "win32" else [])
