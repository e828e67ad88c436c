#!/usr/bin/env python3
"""Which route leaks, on a real service: how often it is named, another one blamed, and the interval right.

    bench/routes.py [--runs 20] [--seconds 8] [--warm-up 2] [--leaks 0,2048,8192] [--connections 8] [--interval 50ms]

Each run is a Starlette service of 8 routes under uvicorn, in a process of its own, watched at a short interval; a client in this
process sends mixed traffic over concurrent connections: every route has its own mean and its own slow waves.  One route (another
in each run) keeps 2,048 or 8,192 bytes of each request, or none does; the others make garbage, some of it in cycles, fill bounded
caches and take memory for a moment.  The watch begins after *--warm-up* seconds of traffic, in which the caches fill.

*regression*: the routes judged on the readings of the run, whatever the detector said.  *report*: what `watcher.report()` said in
the end, which names a route only while the verdict is growing or leaking.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

SERVICE = """
import asyncio, collections, json, os, random, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from memwatch.integrations.asgi import MemwatchMiddleware
from memwatch.model import Verdict
from memwatch.vitals import Vitals
from memwatch.watcher import Watcher

leak, guilty, interval = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
kept, filled = [None] * 2_000_000, 0
cache, recent = collections.OrderedDict(), collections.deque(maxlen=500)

class Node:
    pass

def work(place, number):
    global filled
    rows = [{"id": n, "name": f"item {n} of {number}"} for n in range(place + 1)]
    if place == 1:
        recent.append(rows)
    if place == 2:  # a bounded cache
        cache[number % 3000] = "x" * 300
        if len(cache) > 1500:
            cache.popitem(last=False)
    if place == 3:  # garbage in cycles
        for _ in range(3):
            node = Node()
            node.self = node
    if place == 4:  # temporary memory
        rows.append("y" * random.randrange(1000, 100_000))
    if place == guilty and leak:
        kept[filled] = b"z" * (leak - 48)  # with its header and malloc's: leak bytes
        filled += 1
    return len(json.dumps(rows))

def endpoint(place):
    async def answer(request):
        size = work(place, int(request.path_params["number"]))
        if place % 2:
            await asyncio.sleep(0)
        return PlainTextResponse(str(size))
    return answer

async def found(request):
    said = await asyncio.to_thread(tell)
    return JSONResponse(said)

def tell():
    reported = watcher.report()
    look = watcher._routes
    by_report = [row for row in reported.routes]
    look.look(Verdict("rss", "leaking"), 0.0, asked=True)
    look._looked_at = -1
    look.look(Verdict("rss", "leaking"), 0.0, asked=True)
    return {"state": reported.verdict.state, "report": by_report, "regression": list(look.rows()), "note": look.note,
            "samples": reported.statistics.samples}

app = MemwatchMiddleware(Starlette(routes=[Route("/found", found), *(Route(f"/r{p}/{{number}}", endpoint(p)) for p in range(8))]))
vitals = Vitals()

class Memory:
    # The Python heap at each tick: a run is to take seconds, and its readings are to be as many as an hour's.
    def read(self, on_error=None):
        vitals._bind()
        return {name: value for source in ("memory", "malloc", "pools", "cpu") for name, value in vitals.sources[source]().items()}

watcher = Watcher(interval=interval, directory=False, evidence="off", source=Memory(), socket=False)

async def watch(request):
    watcher.start()
    return PlainTextResponse("watched")

app.app.routes.append(Route("/watch", watch))
# Of this protocol by name: else asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for an acknowledgement.
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
"""


class Connections:
    """Keep-alive connections to one server; a request goes out on each before any answer is read."""

    def __init__(self, port: int, count: int) -> None:
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        for connection in self.sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, paths: list[str]) -> None:
        """At most as many paths as connections."""
        used = self.sockets[: len(paths)]
        for connection, path in zip(used, paths, strict=True):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for connection in used:
            read_answer(connection)

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()


def read_answer(connection: socket.socket) -> bytes:
    """The body of an answer that has a Content-Length."""
    head, _, body = b"", b"", b""
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the server has closed the connection")
        head += chunk
        before, end, body = head.partition(b"\r\n\r\n")
        if end:
            break
    length = next(int(line[15:]) for line in before.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return body


def mixed(rng: random.Random, width: int) -> Iterator[list[str]]:
    """Paths, *width* at a time: eight routes, each with its own mean and its own slow waves."""
    means = [math.exp(rng.uniform(0, 2)) for _ in range(8)]
    levels = [0.0] * 8
    number = 0
    while True:
        levels = [0.995 * level + rng.gauss(0, 0.04) for level in levels]
        weights = [mean * math.exp(level) for mean, level in zip(means, levels, strict=True)]
        busy = rng.randrange(1, width + 1) if rng.random() < 0.3 else width
        number += 1
        yield [f"/r{place}/{number}" for place in rng.choices(range(8), weights, k=busy)]


def one(leak: int, guilty: int, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """One run: what the service said in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(leak), str(guilty), options.interval], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        connections = Connections(port, options.connections)
        traffic = mixed(random.Random(seed), options.connections)
        warm = time.monotonic() + options.warm_up
        while time.monotonic() < warm:
            connections.send(next(traffic))
        connections.send(["/watch"])
        sent = 0
        end = time.monotonic() + options.seconds
        for paths in traffic:
            connections.send(paths)
            sent += len(paths)
            if time.monotonic() > end:
                break
        connections.sockets[0].sendall(b"GET /found HTTP/1.1\r\nHost: x\r\n\r\n")
        found = json.loads(read_answer(connections.sockets[0]))
        connections.close()
        return found | {"sent": sent}
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="for each size of a leak")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds of traffic before the watch begins")
    parser.add_argument("--leaks", default="0,2048,8192", help="bytes per request")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--interval", default="50ms")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print each run")
    options = parser.parse_args()
    print(
        f"{options.runs} runs of {options.seconds:g} s each; {options.connections} connections, a reading each {options.interval}"
    )
    print(
        f"{'leak':>6} | {'requests':>8} {'readings':>8} | {'regression: named false covers':>31} |"
        f" {'report: growth named false':>27}"
    )
    for leak in map(int, options.leaks.split(",")):
        named = false = covered = judged = grew = reported = wrong = 0
        sent: list[int] = []
        samples: list[int] = []
        for run in range(options.runs):
            guilty = run % 8
            said = one(leak, guilty, options.seed * 1000 + run, options)
            sent.append(int(str(said["sent"])))
            samples.append(int(str(said["samples"])))
            mine = f"GET /r{guilty}/{{number}}"
            for rows, is_report in ((said["regression"], False), (said["report"], True)):
                assert isinstance(rows, list)
                blamed = [row for row in rows if row["blamed"]]
                hit = bool(leak) and any(row["route"] == mine for row in blamed)
                bad = any(row["route"] != mine and mine not in row["together_with"] for row in blamed) or (
                    not leak and bool(blamed)
                )
                if is_report:
                    grew += said["state"] in ("growing", "leaking")
                    reported += hit
                    wrong += bad
                    continue
                named += hit
                false += bad
                own = next((row for row in rows if row["route"] == mine and row["bytes_per_request"] is not None), None)
                if own is not None and not own["together_with"]:
                    judged += 1
                    covered += own["bytes_per_request_low"] <= leak <= own["bytes_per_request_high"]
                if options.verbose:
                    shown = [f"{row['route']} {row['bytes_per_request']:.0f}" for row in blamed]
                    estimate = "–"
                    if own is not None:
                        low, high = own["bytes_per_request_low"], own["bytes_per_request_high"]
                        estimate = f"{own['bytes_per_request']:.0f} ({low:.0f} to {high:.0f})"
                    print(f"    {mine}: {estimate}; {said['state']}; blamed {shown or said['note']}", flush=True)
        percent = 100 / options.runs
        covers = f"{100 * covered / judged:6.0f}" if judged else "     –"
        middle = sorted(sent)[len(sent) // 2], sorted(samples)[len(samples) // 2]
        print(
            f"{leak:6d} | {middle[0]:8d} {middle[1]:8d} | {named * percent:17.0f} {false * percent:5.0f}  {covers} |"
            f" {grew * percent:14.0f} {reported * percent:5.0f} {wrong * percent:5.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
