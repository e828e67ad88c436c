"""Every setting of the plugin, in one table: command line > environment > ini file > default.

Law: each setting works from all three places, and a value that cannot be read is a usage error that names where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from memwatch import units
from memwatch.gate.limits import ENGINES, LimitError, count_of, size_of
from pytest_memwatch.rules import Rule, parse_rule

ENVIRONMENT = "MEMWATCH_PYTEST_"
MODES = ("fail", "warn", "report")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class Option(NamedTuple):
    """One setting."""

    name: str
    """`growth` is `--memwatch-growth`, `MEMWATCH_PYTEST_GROWTH` and `memwatch_growth`."""
    read: Callable[[str, str], Any]
    """From a name and a text to a value; raises LimitError."""
    default: str | None
    help: str
    metavar: str | None = None
    """None for a flag."""
    aliases: tuple[str, ...] = ()
    lines: bool = False
    """May be given several times; the ini value has one per line."""


def flag(name: str, text: str) -> bool:
    if text.strip().lower() in _YES:
        return True
    if text.strip().lower() in _NO:
        return False
    raise LimitError(f"{name}={text!r} is neither yes nor no")


def _text(name: str, text: str) -> str | None:
    return text or None


def _one_of(*accepted: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in accepted:
            raise LimitError(f"{name}={text!r} is none of {', '.join(accepted)}")
        return text

    return read


def channels(name: str, text: str) -> tuple[str, ...]:
    words = tuple(word for word in text.replace(",", " ").split() if word != "none")
    known = ("fds", "threads", "children", "tasks")
    for word in words:
        if word not in known:
            raise LimitError(f"{name}={text!r}: {word!r} is none of {', '.join(known)}")
    return words


def _rules(name: str, text: str) -> tuple[Rule, ...]:
    return tuple(parse_rule(part) for part in text.split(",") if part.strip())


def _count(name: str, text: str) -> int:
    return count_of(name, text) or 0


def _lines(name: str, text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


OPTIONS = (
    Option("growth", size_of, "1MiB", "bytes a test may retain over set-up, call and tear-down [1MiB]", "SIZE", ("max-growth",)),
    Option("peak", size_of, None, "bytes a test's body may use at once [no limit]", "SIZE", ("max-peak",)),
    Option("mode", _one_of(*MODES), "fail", "what a leak does: fail, warn or report [fail]", "MODE"),
    Option("rerun", _count, "3", "how often a suspicious test is repeated before it is judged; 0 judges once [3]", "N"),
    Option("warmup", _count, "0", "repetitions that do not count, before those [0]", "N"),
    Option("resources", channels, "fds,threads,children,tasks", "what is counted, or none [fds,threads,children,tasks]", "LIST"),
    Option("strict", flag, "no", "a suspicious test that cannot be repeated fails, too"),
    Option("limits", _lines, "", "limits by path: 'tests/slow/**: growth=20MB, fds=2'", "'GLOB: KEY=VALUE, …'", (), True),
    Option("engine", _one_of(*ENGINES), "auto", "what measures a peak: auto, memray, tracemalloc or rss [auto]", "ENGINE"),
    Option("gc-freeze", flag, "yes", "freeze what is there before the tests, so that collections are cheap [yes]"),
    Option("top", _count, "5", "how many tests, fixtures and warm-ups the summary lists [5]", "N"),
    Option("json", _text, None, "write everything to this file", "FILE"),
    Option("md", _text, None, "write a summary for a pull request to this file", "FILE"),
    Option("html", _text, None, "write a page with pictures to this file", "FILE"),
    Option(
        "github",
        _one_of("auto", "on", "off"),
        "auto",
        "GitHub annotations; auto: where GITHUB_ACTIONS is set [auto]",
        "WHEN",
    ),
    Option("baseline", _text, None, "compare with this file; written if not there, or with --memwatch-update", "FILE"),
    Option("update", flag, "no", "write the baseline anew"),
    Option("fail-on", _rules, None, "what is worse than the baseline allows: 'growth:20%%+1MB, peak:10%%'", "RULE"),
    Option("crash-log", _text, None, "directory of the logs that name the test a killed worker ran [in pytest's cache]", "DIR"),
)
ON = Option("on", flag, "no", "check every test")


class Settings:
    """All settings of a session, read once; `settings.growth`, `settings.fail_on`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {key: [str(one) for one in value] if isinstance(value, tuple) else value for key, value in self._values.items()}


def add(parser: pytest.Parser) -> None:
    """Declare every option and ini key."""
    group = parser.getgroup("memwatch", "memwatch: a gate for memory")
    group.addoption("--memwatch", action="store_const", const="yes", default=None, dest="memwatch_on", help=f"{ON.help}")
    group.addoption("--no-memwatch", action="store_const", const="never", dest="memwatch_on", help="check no test, marked or not")
    parser.addini("memwatch", ON.help, default="")
    for option in OPTIONS:
        flags = [f"--memwatch-{name}" for name in (option.name, *option.aliases)]
        dest = f"memwatch_{option.name.replace('-', '_')}"
        if option.metavar is None:
            group.addoption(*flags, action="store_const", const="yes", default=None, dest=dest, help=option.help)
            if option.default == "yes":
                group.addoption(f"--no-memwatch-{option.name}", action="store_const", const="no", dest=dest, help="do not")
        else:
            group.addoption(
                *flags,
                action="append" if option.lines else "store",
                default=None,
                dest=dest,
                metavar=option.metavar,
                help=option.help,
            )
        for name in (option.name, *option.aliases):
            parser.addini(f"memwatch_{name.replace('-', '_')}", option.help.replace("%%", "%"), default="")


def is_on(config: pytest.Config) -> bool | None:
    """Whether every test is checked; None: never, whatever is marked."""
    given = config.getoption("memwatch_on", None)
    if given == "never":
        return None
    text, origin = given, "--memwatch"
    if text is None:
        text, origin = os.environ.get(f"{ENVIRONMENT}ON"), f"{ENVIRONMENT}ON"
    if text is None:
        text, origin = str(config.getini("memwatch") or "no"), "memwatch (ini)"
    return bool(_value(ON, text, origin))


def load(config: pytest.Config) -> Settings:
    """Read every setting.

    Raises:
        pytest.UsageError: one cannot be read; the message says which and where it stands.
    """
    values = {option.name.replace("-", "_"): _load(option, config) for option in OPTIONS}
    return Settings(values)


def _load(option: Option, config: pytest.Config) -> Any:
    key = option.name.replace("-", "_")
    given = config.getoption(f"memwatch_{key}", None)
    if given is not None:
        return _value(option, "\n".join(given) if isinstance(given, list) else given, f"--memwatch-{option.name}")
    for name in (option.name, *option.aliases):
        variable = ENVIRONMENT + name.replace("-", "_").upper()
        if variable in os.environ:
            return _value(option, os.environ[variable].replace(";", "\n") if option.lines else os.environ[variable], variable)
    for name in (option.name, *option.aliases):
        ini = f"memwatch_{name.replace('-', '_')}"
        text = config.getini(ini)
        if text not in ("", None):
            return _value(option, "\n".join(text) if isinstance(text, list) else str(text), f"{ini} (ini)")
    return None if option.default is None else option.read(option.name, option.default)


def _value(option: Option, text: str, origin: str) -> Any:
    try:
        return option.read(origin, text)
    except (LimitError, units.UnitError) as error:
        raise pytest.UsageError(f"memwatch: {error}") from None
