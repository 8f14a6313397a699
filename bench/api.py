"""How fast the api takes scenarios: POST /scenario/init by many connections, beside a bare handler without a database.

    python bench/api.py [--url http://127.0.0.1:8000] [--connections 16] [--seconds 5] [--rounds 5]

Both are asked in turns by the same client on the same machine, so that the ratio holds where the figures do not. The scenarios
that it makes name a source that does not exist at a URL that is no one's; run it against a vidflow whose data nobody needs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import uvicorn
from litestar import Litestar, post

BODY = {"source": "http://bench.invalid/video.mp4", "model": "motion", "fps": 2, "parameters": {"score_threshold": 0.4}}


@post("/scenario/init", sync_to_thread=False)
def bare(data: dict[str, object]) -> dict[str, object]:
    return data


async def send_requests(
    host: str, port: int, until_s: float, latencies_s: list[float], max_requests: int | None = None
) -> None:
    """Asks again and again over one connection, `max_requests` times at the most: a client so thin that it is not what is measured."""
    body = json.dumps(BODY).encode()
    head = f"POST /scenario/init HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for _ in range(max_requests) if max_requests else itertools.count():
            began_s = time.perf_counter()
            if began_s >= until_s:
                break
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            latencies_s.append(time.perf_counter() - began_s)
            if not answer.startswith(b"HTTP/1.1 201"):
                raise SystemExit(f"refused: {answer.splitlines()[0].decode()}")
    finally:
        writer.close()
        await writer.wait_closed()


async def measure_load(url: str, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in ms."""
    parts = urlsplit(url)
    taken_s: list[float] = []
    began_s = time.perf_counter()
    until_s = began_s + seconds
    await asyncio.gather(
        *(send_requests(parts.hostname or "", parts.port or 80, until_s, taken_s) for _ in range(connections))
    )
    elapsed_s = time.perf_counter() - began_s
    quantiles = statistics.quantiles(taken_s, n=100)
    return len(taken_s) / elapsed_s, quantiles[49] * 1000, quantiles[98] * 1000


@contextmanager
def baseline() -> Iterator[str]:
    """A server with one bare handler, in a process of its own as the api is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, __file__, "--serve-baseline", str(port)]) as server:
        try:
            until_s = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if time.monotonic() > until_s or server.poll() is not None:
                    raise SystemExit("the baseline's server did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def serve_baseline(port: int) -> None:
    app = Litestar([bare], logging_config=None, openapi_config=None)
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", access_log=False, log_level="error")


def report(name: str, rounds: list[tuple[float, float, float]]) -> None:
    cells = [
        f"{statistics.median(column):9.1f} ({min(column):.1f}-{max(column):.1f})"
        for column in zip(*rounds, strict=True)
    ]
    print(f"{name:10} {cells[0]:>28} {cells[1]:>22} {cells[2]:>22}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", default="http://127.0.0.1:8000")
    arguments.add_argument("--connections", type=int, default=16)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--serve-baseline", type=int, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve_baseline:
        serve_baseline(given.serve_baseline)
        return
    api: list[tuple[float, float, float]] = []
    bare_: list[tuple[float, float, float]] = []
    with baseline() as baseline_url:
        for url in (given.url, baseline_url):  # warms both up: code, prepared statements, pages
            asyncio.run(measure_load(url, given.connections, 1.0))
        for _ in range(given.rounds):
            api.append(asyncio.run(measure_load(given.url, given.connections, given.seconds)))
            bare_.append(asyncio.run(measure_load(baseline_url, given.connections, given.seconds)))
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, {given.connections} connections, {given.rounds} rounds of {given.seconds:g} s"
    )
    print(f"{'':10} {'requests/s (least-most)':>28} {'p50 ms':>22} {'p99 ms':>22}")
    report("api", api)
    report("baseline", bare_)
    ratios = [one[0] / other[0] for one, other in zip(api, bare_, strict=True)]
    print(f"api / baseline, requests/s: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
