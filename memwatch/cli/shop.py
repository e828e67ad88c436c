"""The leaking service of `memwatch demo`: a shop that opens a session for every visitor and never closes one.

A program of its own (`python -P shop.py`): it prints the port it listens on, serves loopback only, and ends when its standard input
does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ITEMS = 50
"""In the cart of each visitor: about 20 KiB of small Python objects."""


class Session:
    """One visitor."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.cart = [{"item": f"item {index} of visitor {number}", "price": number + index / 100} for index in range(ITEMS)]


class SessionStore:
    """Here is the leak: sessions are added, and nothing ever removes them."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}

    def add(self) -> Session:
        session = Session(len(self.sessions))
        self.sessions[session.number] = session
        return session


STORE = SessionStore()


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"welcome, visitor {STORE.add().number}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal is the demo's."""


def end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
