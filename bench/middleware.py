#!/usr/bin/env python3
"""What everything switched on costs a service per request: watcher, middleware and, if installed, Prometheus, against bare.

    bench/middleware.py [--pairs 48] [--repeats 15] [--seconds 0.05] [--settle 11] [--connections 16] [--items 20]
                        [--only starlette|flask] [--part …] [--control] [--cost] [--instructions]

A Starlette service under uvicorn and a Flask service under gunicorn (4 threads), each twice, bare and with everything on.  One
process is up to a tenth faster than the next for no other reason than where its memory lies: so every pair is a new pair of
processes, whose stretches of load take turns (A B B A, then B A A B), and the table shows medians over the pairs with their 95 %
intervals.  The ratio of CPU is bare ÷ watched, as that of throughput is watched ÷ bare.  With *--control*: bare against bare.  With
*--cost*: microseconds of CPU of the ledger and of the middlewares alone, without a server, with the extension and without.  With
*--instructions*: those of a request of the Starlette service under callgrind, bare and with parts.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
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
orders = {n: {"id": n, "items": [{"sku": str(k), "price": k * 1.5} for k in range(ITEMS)]} for n in range(1000)}
async def order(request):
    found = orders[request.path_params["number"] % 1000]
    return Answer({"order": found, "total": sum(item["price"] for item in found["items"])})
app = Starlette(routes=[Route("/orders/{number:int}", order)])
if sys.argv[1] == "on":
    ON
    if PART == "empty":
        class Middleware:
            def __init__(self, app):
                self.app = app
            async def __call__(self, scope, receive, send):
                await self.app(scope, receive, send)
    else:
        from memwatch.integrations.asgi import MemwatchMiddleware as Middleware
    if WITH_MIDDLEWARE:
        app.add_middleware(Middleware)
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=60)).run(sockets=[listener])
"""
FLASK = """
import os
from flask import Flask, jsonify
orders = {n: {"id": n, "items": [{"sku": str(k), "price": k * 1.5} for k in range(ITEMS)]} for n in range(1000)}
app = Flask(__name__)
@app.route("/orders/<int:number>")
def order(number):
    found = orders[number % 1000]
    return jsonify({"order": found, "total": sum(item["price"] for item in found["items"])})
if os.environ["ON"] == "on":
    ON
    if PART == "empty":
        class Middleware:
            def __init__(self, app):
                self.app = app
            def __call__(self, environ, start_response):
                return self.app(environ, start_response)
        app.wsgi_app = Middleware(app.wsgi_app)
    elif WITH_MIDDLEWARE:
        from memwatch.integrations.wsgi import init_app
        init_app(app)
"""
ON = """import memwatch, importlib.util
    sinks = ["prometheus"] if importlib.util.find_spec("prometheus_client") and importlib.util.find_spec("memwatch.sinks") else None
    memwatch.start(sinks=sinks)"""

SAMPLER = "from memwatch.evidence import _sampler; _sampler.start(mean_bytes=8 << 20)"
UNSAMPLED = ON.replace("start(", "start(evidence='off', ")
LOADED = ON + "; memwatch.stop()"
PARTS = {
    "all": ON,
    "middleware": "pass",
    "empty": "pass",
    "unsampled": UNSAMPLED,
    "sampler": SAMPLER,
    "loaded": LOADED,
    "watcher": UNSAMPLED,
}
ALONE = ("sampler", "loaded", "watcher")
"""Parts without the middleware."""


def written(service: str, part: str, items: int) -> str:
    """The service's source with that part switched on."""
    return f"PART, ITEMS, WITH_MIDDLEWARE = {part!r}, {items}, {part not in ALONE}\n" + service.replace(
        "    ON\n", f"    {PARTS[part]}\n", 1
    )


TOGETHER = 6
"""Pairs that settle at a time."""


class Service:
    """One server in a process of its own."""

    def __init__(self, kind: str, on: bool, folder: Path, connections: int, part: str, items: int, seed: int) -> None:
        environment = {
            "PYTHONHASHSEED": str(seed),
            "PATH": "/usr/bin:/bin",
            "ON": "on" if on else "off",
            "MEMWATCH_DIR": str(folder / "records"),
        }
        if kind == "starlette":
            command = [sys.executable, "-c", written(STARLETTE, part, items), environment["ON"]]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            assert self.process.stdout is not None
            port = int(self.process.stdout.readline())
        else:
            (folder / "app.py").write_text(written(FLASK, part, items))
            command = [sys.executable, "-m", "gunicorn", "app:app", "--chdir", str(folder), "--bind", "127.0.0.1:0"]
            command += ["--worker-class", "gthread", "--threads", "4", "--keep-alive", "60", "--no-control-socket"]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
            assert self.process.stderr is not None
            port = next(int(line.split("127.0.0.1:")[1].split()[0]) for line in self.process.stderr if "Listening at" in line)
        for one in (psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)):
            for thread in one.threads():
                os.sched_setaffinity(thread.id, {0})
        self.connections = Connections(port, connections)
        self.requests, self.used_s = 0, 0.0

    def cpu_s(self) -> float:
        """CPU used by the server's processes, to the nanosecond."""
        process = psutil.Process(self.process.pid)
        used_ns = 0
        for one in (process, *process.children(recursive=True)):
            used_ns += sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{one.pid}/task").glob("*/schedstat"))
        return used_ns / 1e9

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


Round = tuple[float, float, float, float]
"""Requests per second bare and with everything on, and CPU per request in microseconds of both."""


def started(kind: str, options: argparse.Namespace, turn: int, folder: Path) -> list[Service]:
    """A pair of new processes: bare, and with everything on."""
    folders = [folder / f"{turn}-{word}" for word in ("bare", "on")]
    for each in folders:
        each.mkdir()
    connections = min(options.connections, 4) if kind == "flask" else options.connections
    made = {
        place: Service(kind, bool(place) and not options.control, folders[place], connections, options.part, options.items, turn)
        for place in ((0, 1), (1, 0))[turn // 2 % 2]  # which is started first is not the same thing as which is which
    }
    return [made[0], made[1]]


def measured(pair: list[Service], options: argparse.Namespace, turn: int) -> Round:
    for service in pair:
        service.stretch(1.0)  # the sampler has taken note of the load
        service.requests, service.used_s = 0, 0.0
    rates: tuple[list[float], list[float]] = ([], [])
    # A B B A, or B A A B: whatever drifts in a line cancels out.
    for which in ((0, 1, 1, 0), (1, 0, 0, 1))[turn % 2] * options.repeats:
        rates[which].append(pair[which].stretch(options.seconds))
    rate, ratio = statistics.median(rates[0]), statistics.median(on / bare for bare, on in zip(*rates, strict=True))
    cpu_us = [service.used_s / service.requests * 1e6 for service in pair]
    return rate, rate * ratio, cpu_us[0], cpu_us[1]


def together(kind: str, options: argparse.Namespace, turns: list[int]) -> list[Round]:
    """Pairs that settle side by side, and are measured one after the other."""
    pairs: list[list[Service]] = []
    with tempfile.TemporaryDirectory() as name:
        try:
            pairs.extend(started(kind, options, turn, Path(name)) for turn in turns)  # one by one: all that are started are ended
            for pair in pairs:
                for service in pair:
                    service.stretch(0.5)
            ready = time.monotonic() + options.settle
            while time.monotonic() < ready:
                # Under some load, not under all: until the watcher has looked once.
                for pair in pairs:
                    for service in pair:
                        service.stretch(0.05)
            return [measured(pair, options, turn) for pair, turn in zip(pairs, turns, strict=True)]
        finally:
            for pair in pairs:
                for service in pair:
                    service.end()


def middle(values: list[float]) -> tuple[float, float, float]:
    """The median, and the 95 % interval for it from the order of the values (no distribution assumed)."""
    ranked, count = sorted(values), len(values)
    below, chance = 0, 0.5**count
    while chance <= 0.025 and below < count // 2:
        below += 1
        chance += math.comb(count, below) * 0.5**count
    low = max(0, below - 1)
    return statistics.median(ranked), ranked[low], ranked[count - 1 - low]


def compare(kind: str, options: argparse.Namespace) -> None:
    rounds: list[Round] = []
    for first in range(0, options.pairs, TOGETHER):
        rounds += together(kind, options, list(range(first, min(first + TOGETHER, options.pairs))))
    rate = [on / bare for bare, on, _, _ in rounds]
    cpu = [bare / on for _, _, bare, on in rounds]
    columns = [statistics.median(column) for column in zip(*rounds, strict=True)]
    said = ["{:.3f} ({:.3f} to {:.3f})".format(*middle(ratios)) for ratios in (rate, cpu)]
    print(
        f"{kind:10} {columns[0]:8.0f}/s {columns[1]:8.0f}/s  {said[0]}  {columns[2]:6.0f} µs {columns[3]:6.0f} µs  {said[1]}",
        flush=True,
    )


def cost() -> None:
    """Microseconds of what runs per request, with the extension and without."""
    from memwatch import routes
    from memwatch.integrations import asgi, wsgi
    from memwatch.routes.flights import Flights
    from memwatch.routes.ledger import fastest

    class Template:
        path = "/orders/{number}"
        methods = ("GET",)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Template
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def nothing(*_: Any) -> Any:
        return None

    class Request:
        class url_rule:
            rule = "/orders/<int:number>"

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return iter([b"x"])

    def start(*_: Any) -> Any:
        return None

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders/1", "SCRIPT_NAME": "", "werkzeug.request": Request}

    def drive_asgi(one: Any) -> None:
        coroutine = one({"type": "http", "method": "GET", "path": "/orders/1", "root_path": ""}, nothing, nothing)
        try:
            coroutine.send(None)
        except StopIteration:
            pass

    def drive_wsgi(one: Any) -> None:
        answer = one(environ, start)
        for _ in answer:
            pass
        if hasattr(answer, "close"):
            answer.close()

    def microseconds(call: Any, *arguments: Any, times: int = 20_000) -> float:
        found = []
        for _ in range(7):
            began = time.process_time()
            for _ in range(times):
                call(*arguments)
            found.append((time.process_time() - began) / times * 1e6)
        return min(found)

    asyncio.set_event_loop(None)
    bare_asgi, bare_wsgi = microseconds(drive_asgi, app), microseconds(drive_wsgi, application)
    print(f"{'µs a request':14} {'ledger':>8} {'ASGI':>8} {'WSGI':>8}")
    for kind, label in ((fastest(), "as built here"), (Flights, "in Python")):
        ledger = routes._ledger = routes.Ledger(flights=kind)
        watched_asgi, watched_wsgi = asgi.MemwatchMiddleware(app), wsgi.MemwatchMiddleware(application)
        counted = microseconds(lambda ledger=ledger: ledger.end(ledger.begin(), "GET /orders/{number}"))
        more = microseconds(drive_asgi, watched_asgi) - bare_asgi, microseconds(drive_wsgi, watched_wsgi) - bare_wsgi
        print(f"{label:14} {counted:8.2f} {more[0]:8.2f} {more[1]:8.2f}")


def instructions() -> None:
    """Instructions of a request under callgrind: exact but for where objects lie, which some dictionaries go by."""

    def total(part: str, on: str, requests: int) -> int:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command += [sys.executable, "-c", written(STARLETTE, part, 20), on]
        environment = {"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None and process.stderr is not None
            connections = Connections(int(process.stdout.readline()), 16)
            for _ in range(requests // 16):
                connections.send([f"/orders/{number}" for number in range(16)])
            connections.close()
            process.terminate()
            said = process.stderr.read()
        return int(next(line.split()[-1] for line in said.splitlines() if "Collected :" in line))

    bare = 0.0
    print(f"{'instructions a request':24} {'':>9} {'more':>7}")
    for label, part, on in (("bare", "middleware", "off"), ("middleware", "middleware", "on"), ("sampler", "sampler", "on")):
        total(part, on, 16)  # whatever is to be compiled or cached on disk is now
        each = (total(part, on, 1920) - total(part, on, 320)) / 1600
        bare = bare or each
        print(f"{label:24} {each:9,.0f} {each / bare - 1:7.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each stretch")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument(
        "--settle",
        type=float,
        default=11.0,
        help="seconds between the start and the first stretch: what a service does once is not counted",
    )
    parser.add_argument("--repeats", type=int, default=15, help="of the four stretches of a pair")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--items", type=int, default=20, help="of the order that is answered: what a request does besides")
    parser.add_argument("--only", choices=("starlette", "flask"))
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="all",
        help="all; all but the allocation sampler; the middleware alone; one that does nothing in its place; the sampler alone; "
        "what is loaded alone (started and stopped); the watcher alone",
    )
    parser.add_argument("--control", action="store_true", help="bare against bare: what the bench itself is worth")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--instructions", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    if options.cost:
        cost()
        return
    if options.instructions:
        instructions()
        return
    print(f"{options.pairs} pairs of processes, {4 * options.repeats} stretches of {options.seconds:g} s each")
    print(f"{'service':10} {'bare':>10} {'on':>10}  {'throughput':24} {'CPU':>9} {'on':>9}  CPU")
    for kind in (options.only,) if options.only else ("starlette", "flask"):
        compare(kind, options)


if __name__ == "__main__":
    main()
