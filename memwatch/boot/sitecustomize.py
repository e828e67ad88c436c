"""Starts memwatch in every Python that `memwatch run` starts, because this folder is first on its PYTHONPATH.

Law: the program runs as it would without us: its own sitecustomize runs, `sys.path` has no entry of ours, and whatever goes wrong
here costs one line on stderr at most.  Any Python may be handed this file, so that it is written for all of them, 2.7 included.
"""

# ruff: noqa: PTH100, PTH110, PTH118, PTH120, UP024, UP031, UP036
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disable-error-code="arg-type,union-attr"

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_HERE)
_NOTES = "MEMWATCH_RUN_NOTES"
_OURSELVES = sys.modules[__name__]  # Python 2 empties a module that nobody refers to, while its functions still run


def _is_ours(entry):
    try:
        return os.path.abspath(entry or ".") == _HERE
    except (IOError, OSError):  # a relative one where the working directory has been deleted
        return False


def _run_the_next_sitecustomize():
    """Do what Python would have done had we not been first: import `sitecustomize`, and let its errors be Python's to tell."""
    sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)]
    sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ImportError as error:
        # No such module is the usual case; one that exists and misses another is its owner's error.
        if getattr(error, "name", None) != "sitecustomize" and str(error) != "No module named sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", _OURSELVES)


def _start():
    """Start memwatch; say how that went where `memwatch run` can read it."""
    if sys.version_info < (3, 11):  # the interpreter need not be the one memwatch is installed in
        return "python %d.%d" % sys.version_info[:2]
    try:
        watcher = _memwatch().start()
        return "watching" if watcher.running else "off"
    except Exception as error:
        problem = "%s: %s" % (type(error).__name__, str(error).replace("\n", " "))
        try:
            sys.stderr.write("memwatch: process %d is not watched: %s\n" % (os.getpid(), problem))
        except Exception:
            pass  # no stderr: there is nobody to tell
        return problem


def _memwatch():
    """The memwatch of this interpreter if it has one, else the one this file belongs to, without touching `sys.path`."""
    import importlib.util

    spec = importlib.util.find_spec("memwatch")
    if spec is None:
        spec = importlib.util.spec_from_file_location(
            "memwatch", os.path.join(_PACKAGE, "__init__.py"), submodule_search_locations=[_PACKAGE]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["memwatch"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["memwatch"]
            raise
        return module
    places = spec.submodule_search_locations or ()
    if not any(os.path.exists(os.path.join(place, "watcher.py")) for place in places):
        raise ImportError("another module has the name memwatch here: %s" % (spec.origin or list(places)))
    import memwatch

    return memwatch


def _note(outcome):
    folder = os.environ.get(_NOTES)
    if not folder:
        return
    try:
        with open(os.path.join(folder, str(os.getpid())), "w") as file:
            file.write(outcome)
    except (IOError, OSError):
        pass  # `memwatch run` has ended before this process began


try:
    _run_the_next_sitecustomize()
except Exception:
    _note(_start())
    raise
_note(_start())
