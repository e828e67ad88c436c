"""Jupyter and IPython: `%load_ext memwatch`, then `%%memwatch` above a cell, and `%memwatch` for the report of the kernel."""

from __future__ import annotations

import shlex
from typing import Any

import memwatch
from memwatch import units
from memwatch.config import SettingError
from memwatch.gate.blocks import limit, parts


def load(shell: Any) -> None:
    """Register the magics; what `%load_ext memwatch` calls.

    Args:
        shell: the running `InteractiveShell`.
    """
    shell.register_magic_function(lambda line: report(line), "line", "memwatch")
    shell.register_magic_function(lambda line, cell: measure(shell, line, cell), "cell", "memwatch")


def unload(shell: Any) -> None:
    """Forget the magics; what `%unload_ext memwatch` calls."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("memwatch", None)


def report(line: str) -> memwatch.Report | None:
    """`%memwatch`: the report of the kernel, which is watched from then on; `%memwatch interval=1s` with settings of
    `memwatch.start`; `%memwatch stop` ends the watch."""
    if line.strip() == "stop":
        memwatch.stop()
        return None
    settings = {}
    for word in shlex.split(line):
        name, equals, value = word.partition("=")
        if not equals:
            raise SettingError(f"%memwatch: {word!r} is not accepted.  Give nothing, stop, or settings such as interval=1s.")
        settings[name] = value
    return memwatch.start(**settings).report()  # type: ignore[arg-type]


def measure(shell: Any, line: str, cell: str) -> None:
    """`%%memwatch`: run a cell, and print what it keeps and what it peaked at.

    What the cell assigns to a name of the notebook, it keeps.  `%%memwatch --growth 100MB` warns beyond that.
    """
    words = shlex.split(line)
    most = None
    if words:
        if len(words) != 2 or words[0] != "--growth":
            raise SettingError(f"%%memwatch: {line.strip()!r} is not accepted.  Give nothing, or --growth SIZE.")
        most = units.parse_size(words[1])
    # The first cell within a cell imports and caches what IPython needs for it: not what this cell keeps.
    shell.run_cell("pass", silent=True, store_history=False)
    with limit(measure_peak=True) as measured:
        result = shell.run_cell(cell, silent=False, store_history=False)
    if not result.success:
        return  # the cell has shown why
    grown = measured.growth or 0
    peak = f", peaked at {units.format_size(measured.peak)} ({measured.peak_engine})" if measured.peak is not None else ""
    print(f"memwatch: the cell keeps {units.format_size(grown)}{peak}; {parts(measured.details)}")
    if most is not None and grown > most:
        print(f"memwatch: that is above {units.format_size(most)}")
