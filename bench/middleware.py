#!/usr/bin/env python3
"""What everything switched on costs a service per request: watcher, middleware and, if installed, Prometheus, against bare.

    bench/middleware.py [--seconds 3] [--pairs 9] [--connections 16] [--only starlette|flask] [--cost]

A Starlette service under uvicorn and a Flask service under gunicorn (4 threads), each twice, bare and with everything on, in
processes of their own; stretches of load take turns (A B A B …), and the table shows the median of each and the median of the
ratios of every B to the mean of its two neighbours.  With *--cost*: microseconds of CPU of the ledger and of the middlewares alone,
without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from routes import Connections

STARLETTE = """
import json, sys
import uvicorn, socket
from starlette.applications import Starlette
from starlette.responses import JSONResponse as Answer
from starlette.routing import Route
orders = {n: {"id": n, "items": [{"sku": str(k), "price": k * 1.5} for k in range(20)]} for n in range(1000)}
async def order(request):
    found = orders[request.path_params["number"] % 1000]
    return Answer({"order": found, "total": sum(item["price"] for item in found["items"])})
app = Starlette(routes=[Route("/orders/{number:int}", order)])
if sys.argv[1] == "on":
    ON
    from memwatch.integrations.asgi import MemwatchMiddleware
    app.add_middleware(MemwatchMiddleware)
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
"""
FLASK = """
import os
from flask import Flask, jsonify
orders = {n: {"id": n, "items": [{"sku": str(k), "price": k * 1.5} for k in range(20)]} for n in range(1000)}
app = Flask(__name__)
@app.route("/orders/<int:number>")
def order(number):
    found = orders[number % 1000]
    return jsonify({"order": found, "total": sum(item["price"] for item in found["items"])})
if os.environ["ON"] == "on":
    ON
    from memwatch.integrations.wsgi import init_app
    init_app(app)
"""
ON = """import memwatch, importlib.util
    sinks = ["prometheus"] if importlib.util.find_spec("prometheus_client") and importlib.util.find_spec("memwatch.sinks") else None
    memwatch.start(sinks=sinks)"""

PARTS = {"all": ON, "middleware": "pass", "unsampled": ON.replace("start(", "start(evidence='off', ")}


class Service:
    """One server in a process of its own."""

    def __init__(self, kind: str, on: bool, folder: Path, connections: int, part: str) -> None:
        environment = {"PATH": "/usr/bin:/bin", "ON": "on" if on else "off", "MEMWATCH_DIR": str(folder / "records")}
        if kind == "starlette":
            command = [sys.executable, "-c", STARLETTE.replace("    ON\n", f"    {PARTS[part]}\n", 1), environment["ON"]]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            assert self.process.stdout is not None
            port = int(self.process.stdout.readline())
        else:
            (folder / "app.py").write_text(FLASK.replace("    ON\n", f"    {PARTS[part]}\n", 1))
            command = [sys.executable, "-m", "gunicorn", "app:app", "--chdir", str(folder), "--bind", "127.0.0.1:0"]
            command += ["--worker-class", "gthread", "--threads", "4", "--keep-alive", "30", "--no-control-socket"]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
            assert self.process.stderr is not None
            port = next(int(line.split("127.0.0.1:")[1].split()[0]) for line in self.process.stderr if "Listening at" in line)
        self.connections = Connections(port, connections)
        self.requests, self.used_s = 0, 0.0

    def cpu_s(self) -> float:
        """CPU used by the server's processes."""
        process = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def stretch(self, seconds: float) -> float:
        """Requests per second; adds to `requests` and `used_s`."""
        before_s = self.cpu_s()
        done, paths = 0, [f"/orders/{number}" for number in range(len(self.connections.sockets))]
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.connections.send(paths)
            done += len(paths)
        self.requests += done
        self.used_s += self.cpu_s() - before_s
        return done / (time.perf_counter() - began)

    def end(self) -> None:
        self.connections.close()
        self.process.terminate()
        self.process.wait()


def compare(kind: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / word for word in ("bare", "on")]
        for folder in folders:
            folder.mkdir()
        connections = min(options.connections, 4) if kind == "flask" else options.connections
        bare, watched = (
            Service(kind, on, folder, connections, options.part) for on, folder in zip((False, True), folders, strict=True)
        )
        try:
            for service in (bare, watched):
                service.stretch(min(1.0, options.seconds))
                service.requests, service.used_s = 0, 0.0
            a, b = [bare.stretch(options.seconds)], []
            for _ in range(options.pairs):
                b.append(watched.stretch(options.seconds))
                a.append(bare.stretch(options.seconds))
        finally:
            bare.end()
            watched.end()
    ratios = sorted(2 * on / (before + after) for before, on, after in zip(a, b, a[1:], strict=False))
    middle = statistics.median(ratios)
    spread = f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
    cpu = [service.used_s / service.requests * 1e6 for service in (bare, watched)]
    print(
        f"{kind:10} {statistics.median(a):10.0f}/s {statistics.median(b):10.0f}/s {middle:8.3f} {spread}"
        f"   CPU per request {cpu[0]:.0f} and {cpu[1]:.0f} µs: {cpu[0] / cpu[1]:.3f}",
        flush=True,
    )


def cost() -> None:
    """Microseconds of what runs per request."""
    from memwatch.integrations import asgi, wsgi
    from memwatch.routes import Ledger

    ledger = Ledger()

    def counted() -> None:
        ledger.end(ledger.begin(), "GET /orders/{number}")

    class Template:
        path = "/orders/{number}"
        methods = ("GET",)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Template
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def nothing(*_: Any) -> Any:
        return None

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b"x"]

    def start(*_: Any) -> Any:
        return None

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders/list", "SCRIPT_NAME": ""}
    watched_wsgi, watched_asgi = wsgi.MemwatchMiddleware(application), asgi.MemwatchMiddleware(app)

    def drive(one: Any) -> float:
        coroutine = one({"type": "http", "method": "GET", "path": "/orders/1", "root_path": ""}, nothing, nothing)
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        return 0.0

    def microseconds(call: Any, times: int = 20_000) -> float:
        found = []
        for _ in range(7):
            began = time.process_time()
            for _ in range(times):
                call()
            found.append((time.process_time() - began) / times * 1e6)
        return min(found)

    asyncio.set_event_loop(None)
    print(f"ledger, begin and end: {microseconds(counted):5.2f} µs")
    print(f"ASGI middleware:       {microseconds(lambda: drive(watched_asgi)) - microseconds(lambda: drive(app)):5.2f} µs")
    bare = microseconds(lambda: application(environ, start))
    print(f"WSGI middleware:       {microseconds(lambda: watched_wsgi(environ, start)) - bare:5.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each stretch")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", choices=("starlette", "flask"))
    parser.add_argument("--part", choices=PARTS, default="all", help="all, the middleware alone, or all but the allocation sampler")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
    print(f"{options.pairs} pairs of stretches of {options.seconds:g} s, interleaved")
    print(f"{'service':10} {'bare':>12} {'everything on':>12} {'ratio':>6}")
    for kind in (options.only,) if options.only else ("starlette", "flask"):
        compare(kind, options)


if __name__ == "__main__":
    main()
