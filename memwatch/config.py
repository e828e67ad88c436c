"""Settings: what they are called, what they accept, where each value came from.

Law: arguments > `MEMWATCH_*` > `[tool.memwatch]` (the last for the CLI and pytest only) > default.  An unknown or malformed
setting is a `SettingError` that names the setting, its source, what it accepts and the nearest valid name.  Nothing is ever
silently ignored, and a bare number where a unit matters is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from memwatch import units

ENVIRONMENT_PREFIX = "MEMWATCH_"
DISABLE = "MEMWATCH_DISABLE"
# Names under the prefix that are not settings of the watcher: the kill switch, the token of the endpoints, and what
# `memwatch run` hands to its children.
RESERVED = {DISABLE, "MEMWATCH_TOKEN"}
RESERVED_PREFIXES = ("MEMWATCH_RUN_", "MEMWATCH_PYTEST_")

EvidenceMode = Literal["auto", "off", "sampling", "tracemalloc"]
SocketMode = Literal["on", "off", "control"]
SOCKET_MODES: tuple[SocketMode, ...] = ("on", "off", "control")
EVIDENCE_MODES: tuple[EvidenceMode, ...] = ("auto", "off", "sampling", "tracemalloc")


class SettingError(ValueError):
    """A setting that is unknown or malformed.  The message says which, from where, what is accepted, and what to do."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of a watcher, parsed.  Sizes are bytes, durations seconds."""

    interval_s: float = 10.0
    growth_limit_bytes_per_s: float = 10 * 1024**2 / 60
    """A leak at or above this rate is critical; slower ones are still found and reported."""
    growth_limit_of_limit_per_s: float | None = None
    """Set instead of the absolute rate where it was given as percent of the memory limit per time."""
    memory_limit_bytes: int | None = None
    """None: the tightest limit found (cgroup, rlimit, host)."""
    warning: float = 0.70
    """A fraction of the limit up to 1, or bytes above 1."""
    critical: float = 0.85
    evidence: EvidenceMode = "auto"
    sample_bytes: int | None = None
    """Bytes between two sampled allocations, on average; None: 64 KiB, and more in a program that allocates fast."""
    directory: Path | Literal[False] | None = None
    """None: the state directory of the user; False: no record."""
    name: str | None = None
    """None: derived from the command."""
    labels: Mapping[str, str] = field(default_factory=dict)
    cleanup_interval_s: float = 300.0
    """0: no periodic clean-up."""
    record_limit_bytes: int = 32 * 1024**2
    request_growth_bytes: int = 10 * 1024**2
    """A single request that grows resident memory by this much while no other is under way is told of; 0: none is."""
    sinks: tuple[str, ...] = ()
    """Names of sinks (`memwatch.sinks`)."""
    socket: SocketMode = "on"
    """Whether `memwatch report --now` reaches the process; `control`: `memwatch gc` as well."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Setting name to where its value came from, for those that are not defaults."""

    def growth_limit(self, memory_limit_bytes: float | None) -> float:
        """The growth limit in bytes per second, given the effective memory limit."""
        if self.growth_limit_of_limit_per_s is not None and memory_limit_bytes:
            return self.growth_limit_of_limit_per_s * memory_limit_bytes
        return self.growth_limit_bytes_per_s

    def level_bytes(self, level: float, memory_limit_bytes: float | None) -> float | None:
        """A pressure level in bytes: absolute as given, or a fraction of the limit; None where there is no limit."""
        if level > 1:
            return level
        return None if memory_limit_bytes is None else level * memory_limit_bytes

    def agrees(self, other: Config, name: str) -> bool:
        """Whether the setting called *name* has the same value in both."""
        return all(getattr(self, part) == getattr(other, part) for part in _FIELDS[name])


_FIELDS: Mapping[str, tuple[str, ...]] = {
    "interval": ("interval_s",),
    "growth_limit": ("growth_limit_bytes_per_s", "growth_limit_of_limit_per_s"),
    "memory_limit": ("memory_limit_bytes",),
    "warning": ("warning",),
    "critical": ("critical",),
    "evidence": ("evidence",),
    "sample_every": ("sample_bytes",),
    "directory": ("directory",),
    "name": ("name",),
    "labels": ("labels",),
    "cleanup_interval": ("cleanup_interval_s",),
    "record_limit": ("record_limit_bytes",),
    "request_growth": ("request_growth_bytes",),
    "sinks": ("sinks",),
    "socket": ("socket",),
}


class _Refused(ValueError):
    """A parser's refusal; the message is what is accepted."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name in each of the three sources, and how its value is read."""

    name: str
    """Keyword of `memwatch.start()` and key in `[tool.memwatch]`."""
    environment: str
    accepts: str
    parse: Callable[[Any], dict[str, Any]]
    """Value as given to the fields of Config it sets; raises ValueError or TypeError."""


def _interval(value: Any) -> dict[str, Any]:
    seconds = units.parse_duration(value)
    if not 0.05 <= seconds <= 3600:
        raise _Refused("between 50ms and 1h")
    return {"interval_s": seconds}


def _growth_limit(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and "%" in value:
        share = units.parse_rate(value, of=1.0)
        if share <= 0:
            raise _Refused("more than 0")
        return {"growth_limit_of_limit_per_s": share}
    rate = units.parse_rate(value)
    if rate <= 0:
        raise _Refused("more than 0")
    return {"growth_limit_bytes_per_s": rate}


def _memory_limit(value: Any) -> dict[str, Any]:
    if value == "auto":
        return {"memory_limit_bytes": None}
    size = units.parse_size(value)
    if size < 1024**2:
        raise _Refused("at least 1MiB")
    return {"memory_limit_bytes": size}


def _level(name: str) -> Callable[[Any], dict[str, Any]]:
    def parse(value: Any) -> dict[str, Any]:
        if isinstance(value, bool):
            raise TypeError(value)
        if isinstance(value, int | float):
            if abs(value) > 1:
                raise _Refused("a fraction above 0 and up to 1, or a size with its unit")
            fraction = float(value)
        elif isinstance(value, str) and value.strip().endswith("%"):
            fraction = units.parse_fraction(value)
        else:
            try:
                fraction = float(value)
            except ValueError:
                size = units.parse_size(value)
                if size <= 1:
                    raise _Refused("at least 1MiB") from None
                return {name: float(size)}
        if not 0 < fraction <= 1 or math.isnan(fraction):
            raise _Refused("a fraction above 0 and up to 1, or a size with its unit")
        return {name: fraction}

    return parse


def _evidence(value: Any) -> dict[str, Any]:
    if value not in EVIDENCE_MODES:
        raise _Refused("")
    return {"evidence": value}


def _sample_every(value: Any) -> dict[str, Any]:
    size = units.parse_size(value)
    if not 4096 <= size <= 64 * 1024**2:
        raise _Refused("from 4KiB to 64MiB")
    return {"sample_bytes": size}


def _directory(value: Any) -> dict[str, Any]:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("off", "false", "none")):
        return {"directory": False}
    if value is None:
        return {"directory": None}
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError(value)
    path = _without_null(os.fspath(value))
    try:
        # Absolute from here on: the program may change its working directory.
        return {"directory": Path(os.path.abspath(Path(path).expanduser()))}  # noqa: PTH100 - Path.absolute keeps `..`
    except RuntimeError:
        raise _Refused("the home directory of a user there is") from None
    except OSError:
        raise _Refused("an absolute path: the working directory is gone") from None


def _without_null(text: str) -> str:
    """Text that may be part of a path and of the environment."""
    if "\0" in text:
        raise _Refused("without a null character")
    return text


def _name(value: Any) -> dict[str, Any]:
    if value is None:
        return {"name": None}
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise TypeError(value)
    return {"name": _without_null(value.strip())}


def _labels(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        pairs: dict[str, str] = {}
        for part in filter(None, (piece.strip() for piece in value.split(","))):
            key, equals, text = part.partition("=")
            if not equals or not key.strip():
                raise _Refused("")
            pairs[key.strip()] = text.strip()
        return {"labels": pairs}
    if not isinstance(value, Mapping):
        raise TypeError(value)
    return {"labels": {_without_null(str(key)): _without_null(str(text)) for key, text in value.items()}}


def _cleanup_interval(value: Any) -> dict[str, Any]:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("off", "false", "none")):
        return {"cleanup_interval_s": 0.0}
    seconds = units.parse_duration(value)
    if not 1 <= seconds <= 365 * 86400:
        raise _Refused("at least 1s")
    return {"cleanup_interval_s": seconds}


def _record_limit(value: Any) -> dict[str, Any]:
    size = units.parse_size(value)
    if size < 1024**2:
        raise _Refused("at least 1MiB")
    return {"record_limit_bytes": size}


def _request_growth(value: Any) -> dict[str, Any]:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("off", "false", "none")):
        return {"request_growth_bytes": 0}
    size = units.parse_size(value)
    if size < 1024**2:
        raise _Refused("at least 1MiB")
    return {"request_growth_bytes": size}


def _sinks(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        # A webhook's address may hold a comma.
        value = [piece.strip() for piece in re.split(r",(?=\s*(?:[a-z]+\s*(?:,|$)|[a-z]+:))", value)]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise TypeError(value)
    return {"sinks": tuple(filter(None, value))}


def _socket(value: Any) -> dict[str, Any]:
    said = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    if said not in SOCKET_MODES:
        raise _Refused("")
    return {"socket": said}


SETTINGS: tuple[Setting, ...] = (
    Setting("interval", "MEMWATCH_INTERVAL", f"{units.DURATIONS_ACCEPTED}, between 50ms and 1h", _interval),
    Setting("growth_limit", "MEMWATCH_GROWTH_LIMIT", units.RATES_ACCEPTED, _growth_limit),
    Setting("memory_limit", "MEMWATCH_MEMORY_LIMIT", f"'auto', or {units.SIZES_ACCEPTED}, at least 1MiB", _memory_limit),
    Setting("warning", "MEMWATCH_WARNING", "a fraction of the limit (0.70, 70%) or a size (500MB)", _level("warning")),
    Setting("critical", "MEMWATCH_CRITICAL", "a fraction of the limit (0.85, 85%) or a size (700MB)", _level("critical")),
    Setting("evidence", "MEMWATCH_EVIDENCE", "one of " + ", ".join(EVIDENCE_MODES), _evidence),
    Setting("sample_every", "MEMWATCH_SAMPLE_EVERY", f"{units.SIZES_ACCEPTED}, from 4KiB to 64MiB", _sample_every),
    Setting("directory", "MEMWATCH_DIR", "a directory, or 'off' for no record", _directory),
    Setting("name", "MEMWATCH_NAME", "a name of 1 to 200 characters", _name),
    Setting("labels", "MEMWATCH_LABELS", "pairs such as version=1.4.2,team=shop (or a mapping)", _labels),
    Setting(
        "cleanup_interval", "MEMWATCH_CLEANUP_INTERVAL", f"'off', or {units.DURATIONS_ACCEPTED}, at least 1s", _cleanup_interval
    ),
    Setting("record_limit", "MEMWATCH_RECORD_LIMIT", f"{units.SIZES_ACCEPTED}, at least 1MiB", _record_limit),
    Setting("request_growth", "MEMWATCH_REQUEST_GROWTH", f"'off', or {units.SIZES_ACCEPTED}, at least 1MiB", _request_growth),
    Setting("sinks", "MEMWATCH_SINKS", "names such as sentry,prometheus (or a list)", _sinks),
    Setting("socket", "MEMWATCH_SOCKET", "one of " + ", ".join(SOCKET_MODES), _socket),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}
_BY_ENVIRONMENT = {setting.environment: setting for setting in SETTINGS}


def is_disabled(environ: Mapping[str, str] | None = None) -> bool:
    """Whether `MEMWATCH_DISABLE` is set to something that means yes."""
    value = (os.environ if environ is None else environ).get(DISABLE, "")
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def load(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    pyproject: Path | None = None,
) -> Config:
    """Read the settings from all sources.

    Args:
        arguments: what was given in code; a key whose value is None counts as not given.
        environ: defaults to `os.environ`.
        pyproject: a `pyproject.toml` to read `[tool.memwatch]` from; None reads none (services read none).

    Raises:
        SettingError: an unknown or malformed setting in any source; with the kill switch set, those of the environment are passed
            over instead: whoever pulls it must not be stopped by a misspelt variable.
    """
    environ = os.environ if environ is None else environ
    disabled = is_disabled(environ)
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, pairs in (
        (_tool_table(pyproject), "toml"),
        (_environment(environ, strict=not disabled), "environment"),
        (_arguments(arguments or {}), "arguments"),
    ):
        for setting, value, origin in source:
            try:
                found.update(_read(setting, value, origin, in_environment=pairs == "environment"))
            except SettingError:
                if disabled and pairs == "environment":
                    continue
                raise
            origins[setting.name] = origin
    config = replace(Config(), **found, origins=origins)
    if not disabled:
        _check_levels(config)
    return config


def _read(setting: Setting, value: Any, origin: str, *, in_environment: bool) -> dict[str, Any]:
    shown = setting.environment if in_environment else setting.name
    try:
        return setting.parse(value)
    except (ValueError, TypeError, OverflowError):
        bare = isinstance(value, int | float) or (isinstance(value, str) and value.strip().replace(".", "", 1).isdigit())
        said = _said(value)
        hint = f" {said} has no unit." if bare and "unit" in setting.accepts else ""
        raise SettingError(f"{shown}: {said} (from {origin}) is not accepted.{hint} Give {setting.accepts}.") from None


def _said(value: Any) -> str:
    """A value as a message shows it; of an endless one its beginning."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "an endless number"
    return text if len(text) <= 200 else f"{text[:200]}…"


def _arguments(arguments: Mapping[str, Any]) -> list[tuple[Setting, Any, str]]:
    result = []
    for name, value in arguments.items():
        if name not in _BY_NAME:
            raise SettingError(_unknown(name, "argument", list(_BY_NAME)))
        if value is not None:
            result.append((_BY_NAME[name], value, "argument"))
    return result


def _environment(environ: Mapping[str, str], *, strict: bool) -> list[tuple[Setting, Any, str]]:
    result = []
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED or name.startswith(RESERVED_PREFIXES):
            continue
        if name not in _BY_ENVIRONMENT:
            if not strict:
                continue
            raise SettingError(_unknown(name, "environment", [*_BY_ENVIRONMENT, *RESERVED]))
        result.append((_BY_ENVIRONMENT[name], value, f"environment variable {name}"))
    return result


def _tool_table(pyproject: Path | None) -> list[tuple[Setting, Any, str]]:
    if pyproject is None or not pyproject.is_file():
        return []
    import tomllib  # only the CLI and pytest read it; a service never pays for it

    try:
        table = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("memwatch", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(f"{pyproject}: cannot be read: {error}") from None
    result = []
    for name, value in table.items():
        if name not in _BY_NAME:
            raise SettingError(_unknown(name, f"[tool.memwatch] in {pyproject}", list(_BY_NAME)))
        result.append((_BY_NAME[name], value, f"[tool.memwatch] in {pyproject}"))
    return result


def _unknown(name: str, source: str, valid: list[str]) -> str:
    import difflib  # only who has mistyped pays

    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    suggestion = f", did you mean {near[0]}?" if near else "."
    return f"{name}: unknown setting{suggestion} (From {source}; settings are {', '.join(sorted(valid))}.)"


def _check_levels(config: Config) -> None:
    same_kind = (config.warning > 1) == (config.critical > 1)
    if same_kind and config.warning > config.critical:
        origin = config.origins.get("warning") or config.origins.get("critical") or "default"
        raise SettingError(
            f"warning: {config.warning:g} (from {origin}) is above critical ({config.critical:g}). "
            "Give a warning level at or below the critical one."
        )


def described(config: Config) -> list[tuple[str, str, str]]:
    """Every setting as (name, value as text, where it came from), for `memwatch doctor`."""

    def level(value: float) -> str:
        return f"{value:.0%} of the limit" if value <= 1 else units.format_size(value)

    share = config.growth_limit_of_limit_per_s
    values = {
        "interval": units.format_duration(config.interval_s),
        "growth_limit": f"{share * 3600:.3g} of the limit per hour"
        if share is not None
        else units.format_rate(config.growth_limit_bytes_per_s, sign=False),
        "memory_limit": "auto" if config.memory_limit_bytes is None else units.format_size(config.memory_limit_bytes),
        "warning": level(config.warning),
        "critical": level(config.critical),
        "evidence": config.evidence,
        "sample_every": "64KiB, more where allocations are many"
        if config.sample_bytes is None
        else units.format_size(config.sample_bytes),
        "directory": "off"
        if config.directory is False
        else "the user's state directory"
        if config.directory is None
        else str(config.directory),
        "name": config.name or "from the command",
        "labels": ", ".join(f"{key}={value}" for key, value in config.labels.items()) or "none",
        "cleanup_interval": units.format_duration(config.cleanup_interval_s) if config.cleanup_interval_s else "off",
        "record_limit": units.format_size(config.record_limit_bytes),
        "request_growth": units.format_size(config.request_growth_bytes) if config.request_growth_bytes else "off",
        "sinks": ", ".join(name.partition(":")[0] for name in config.sinks) or "none",  # an address may hold a secret
        "socket": config.socket,
    }
    return [(setting.name, values[setting.name], config.origins.get(setting.name, "default")) for setting in SETTINGS]
