"""`memwatch serve`: the dashboard over all records of this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket

import click

from memwatch.cli import OK, options
from memwatch.cli.screen import say

NEEDED = ("starlette", "uvicorn", "sse_starlette")
TOKEN = "MEMWATCH_TOKEN"


class _Refused(click.ClickException):
    """It cannot be served as asked."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        say(self.message)


@click.command("serve", short_help="The dashboard: every record in a browser, live.")
@click.option(
    "--host", metavar="HOST", default="127.0.0.1", help="Where to listen; beyond this machine a token is needed [127.0.0.1]."
)
@click.option("--port", metavar="PORT", type=click.IntRange(0, 65535), default=8910, help="0 takes any free one [8910].")
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="A name the dashboard is reached by; may be repeated.")
@options.settings("directory")
def command(host: str, port: int, names: tuple[str, ...], directory: str | None) -> int:
    """The dashboard over all records of this machine: every process, one process, two moments compared; live.

    It reads records only: no service needs to be alive.  Beyond this machine (--host) whoever reads it has to know the token in
    MEMWATCH_TOKEN; where that is set it is asked for on this machine, too.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _Refused("memwatch serve needs starlette and uvicorn: pip install 'memwatch[web]'")
    place = options.record_directory(options.load(directory=directory))
    token = os.environ.get(TOKEN, "").strip() or None
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # before a token is asked for that would not help
        raise _Refused(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    if token is None and not _is_loopback(host):
        raise _Refused(
            f"--host {host} can be reached from other machines: set {TOKEN} to at least 16 characters first "
            '(python -c "import secrets; print(secrets.token_urlsafe())")'
        )
    from memwatch.web import server
    from memwatch.web.app import dashboard

    try:
        app = dashboard(place, token=token, hosts=(*names, host))
    except ValueError as error:
        raise _Refused(f"{TOKEN}: {error}") from None
    try:
        listening = server.listen(host, port)
    except OSError as error:
        hint = "; is it served already? --port 0 takes a free one" if error.errno == 98 or "in use" in str(error) else ""
        raise _Refused(f"cannot listen on {host} port {port}: {error.strerror or error}{hint}") from None
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    server.run(app, listening, lambda: say(f"the dashboard of {place} is at http://{shown}:{bound}/ (Ctrl-C ends it)"))
    return OK


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
