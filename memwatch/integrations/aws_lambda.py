"""AWS Lambda: the process is frozen between invocations, so that samples are taken at the handler's boundaries and not by a thread.

@memwatch.integrations.aws_lambda.watched
def handler(event, context): ...
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar, overload

from memwatch.config import SettingError, is_disabled
from memwatch.watcher import Watcher

Handler = TypeVar("Handler", bound=Callable[..., Any])

NOMINAL_INTERVAL = "1s"
"""What the trend takes for the time between samples until it has seen how far apart invocations are."""


@overload
def watched(handler: Handler) -> Handler: ...
@overload
def watched(handler: None = None, **settings: Any) -> Callable[[Handler], Handler]: ...
def watched(handler: Handler | None = None, **settings: Any) -> Handler | Callable[[Handler], Handler]:
    """Sample before the first and after every invocation of a handler; also as `@watched(memory_limit="512MiB")`.

    The memory limit is that of the function (`AWS_LAMBDA_FUNCTION_MEMORY_SIZE`); the record goes to the only place that can be
    written, below `/tmp`, and is as short-lived as the sandbox: give `sinks=` or read the log.

    Args:
        settings: those of `memwatch.start`.

    Raises:
        memwatch.config.SettingError: a setting is unknown or malformed.

    Cost: one sample per invocation (bench/tick.py); whatever memwatch meets, the handler's result and exceptions are its own.
    """
    if handler is None:
        return lambda decorated: watched(decorated, **settings)
    watcher = Watcher(**(_defaults() | settings))

    @functools.wraps(handler)
    def invoke(*arguments: Any, **more: Any) -> Any:
        if is_disabled():
            return handler(*arguments, **more)
        if watcher.statistics().samples == 0:
            watcher.start(thread=False)
            watcher.tick()
        try:
            return handler(*arguments, **more)
        finally:
            watcher.tick()

    invoke.memwatch = watcher  # type: ignore[attr-defined]
    return invoke


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {"interval": NOMINAL_INTERVAL, "socket": "off"}
    size = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if size:
        if not size.isdigit():
            raise SettingError(f"AWS_LAMBDA_FUNCTION_MEMORY_SIZE: {size!r} is not a number of MiB.")
        found["memory_limit"] = f"{size}MiB"
    if "MEMWATCH_DIR" not in os.environ:
        found["directory"] = os.path.join(tempfile.gettempdir(), "memwatch")  # noqa: PTH118
    if name := os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        found["name"] = name
    return found
