"""Options that several commands take: one for each setting, and where the records are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from memwatch import config

_Command = TypeVar("_Command", bound=Callable[..., Any])

_METAVARS = {
    "interval": "DURATION",
    "growth_limit": "RATE",
    "memory_limit": "SIZE",
    "warning": "LEVEL",
    "critical": "LEVEL",
    "evidence": "MODE",
    "sample_every": "SIZE",
    "directory": "DIR",
    "name": "NAME",
    "cleanup_interval": "DURATION",
    "record_limit": "SIZE",
    "request_growth": "SIZE",
    "sinks": "NAMES",
    "socket": "MODE",
}
_HELP = {
    "interval": "Time between samples [10s].",
    "growth_limit": "A leak at or above this rate is critical [10MiB/min].",
    "memory_limit": "Memory the process may use [auto: the tightest limit found].",
    "warning": "Pressure level: 70% of the limit, or a size [70%].",
    "critical": "Pressure level: 85% of the limit, or a size [85%].",
    "evidence": "auto, off, sampling or tracemalloc [auto].",
    "sample_every": "Bytes between two sampled allocations, on average [64KiB].",
    "directory": "Where records are [MEMWATCH_DIR, else the user's state directory].",
    "name": "What the process is called in reports [from its command].",
    "cleanup_interval": "Time between periodic clean-ups, or off [5m].",
    "record_limit": "Size a record stays within [32MiB].",
    "request_growth": "A single request that grows memory by this much is told of, or off [10MiB].",
    "sinks": "Where leaks are told besides the log: sentry,prometheus,otel,webhook:URL [none].",
    "socket": "on: `memwatch report --now` reaches the process; control: `memwatch gc`, too; off [on].",
}


def settings(*names: str) -> Callable[[_Command], _Command]:
    """Add an option for each of the settings called *names*; all of them when none is named."""
    chosen = [setting for setting in config.SETTINGS if not names or setting.name in names]

    def decorate(command: _Command) -> _Command:
        for setting in reversed(chosen):
            if setting.name == "labels":
                option = click.option(
                    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Kept in the record; may be repeated."
                )
            else:
                flag = "--" + setting.name.replace("_", "-")
                option = click.option(flag, setting.name, metavar=_METAVARS[setting.name], help=_HELP[setting.name])
            command = option(command)
        return command

    return decorate


def load(**given: str | Sequence[str] | None) -> config.Config:
    """The settings from these options, the environment and `[tool.memwatch]` in the working directory.

    Raises:
        SettingError: one of them is unknown or malformed.
    """
    arguments: dict[str, Any] = dict(given)
    if "labels" in arguments:
        arguments["labels"] = ",".join(arguments["labels"]) or None
    return config.load(arguments, pyproject=Path("pyproject.toml"))


def record_directory(loaded: config.Config) -> Path:
    """Where records are by these settings; with records switched off, where they would be.

    Raises:
        SettingError: they say nothing, and the user has no home directory.
    """
    from memwatch.record import RecordError, default_directory  # loads the database: `memwatch run` starts its command first

    try:
        return loaded.directory or default_directory()
    except RecordError as error:
        raise config.SettingError(str(error)) from None
