"""Measure POST /scenario/init over many connections, compared with a bare handler without a database.

    python bench/api.py [--url http://127.0.0.1:8000] [--connections 16] [--seconds 5] [--rounds 5]

The same client alternates between both on the same machine, so the ratio is meaningful even if the absolute figures are not.
The benchmark creates scenarios with a source that does not exist. Run it against a vidflow without valuable data.
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
    """Send requests over one connection until `until_s`, at most `max_requests`. The client is minimal, so as not to dominate.

    Appends the duration of each request to `latencies_s`.
    """
    body = json.dumps(BODY).encode()
    head = f"POST /scenario/init HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for _ in range(max_requests) if max_requests else itertools.count():
            began_s = time.perf_counter()
            if began_s >= until_s:
                break
            writer.write(head.encode() + body)
            response = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in response.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            latencies_s.append(time.perf_counter() - began_s)
            if not response.startswith(b"HTTP/1.1 201"):
                raise SystemExit(f"Request failed: {response.splitlines()[0].decode()}")
    finally:
        writer.close()
        await writer.wait_closed()


async def measure_load(url: str, connections: int, seconds: float) -> tuple[float, float, float]:
    """Return requests per second, and p50 and p99 of the latency in ms."""
    parts = urlsplit(url)
    latencies_s: list[float] = []
    began_s = time.perf_counter()
    until_s = began_s + seconds
    await asyncio.gather(
        *(send_requests(parts.hostname or "", parts.port or 80, until_s, latencies_s) for _ in range(connections))
    )
    elapsed_s = time.perf_counter() - began_s
    quantiles = statistics.quantiles(latencies_s, n=100)
    return len(latencies_s) / elapsed_s, quantiles[49] * 1000, quantiles[98] * 1000


@contextmanager
def baseline() -> Iterator[str]:
    """Start a server with one bare handler, in its own process like the api."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with subprocess.Popen([sys.executable, __file__, "--serve-baseline", str(port)]) as server:
        try:
            until_s = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if time.monotonic() > until_s or server.poll() is not None:
                    raise SystemExit("The baseline server did not start.")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve-baseline", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_baseline:
        serve_baseline(args.serve_baseline)
        return
    api: list[tuple[float, float, float]] = []
    bare_handler: list[tuple[float, float, float]] = []
    with baseline() as baseline_url:
        for url in (args.url, baseline_url):  # warm up code, prepared statements and pages
            asyncio.run(measure_load(url, args.connections, 1.0))
        for _ in range(args.rounds):
            api.append(asyncio.run(measure_load(args.url, args.connections, args.seconds)))
            bare_handler.append(asyncio.run(measure_load(baseline_url, args.connections, args.seconds)))
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, {args.connections} connections, {args.rounds} rounds of {args.seconds:g} s"
    )
    print(f"{'':10} {'requests/s (min-max)':>28} {'p50 ms':>22} {'p99 ms':>22}")
    report("api", api)
    report("baseline", bare_handler)
    ratios = [ours[0] / bare[0] for ours, bare in zip(api, bare_handler, strict=True)]
    print(f"api / baseline, requests/s: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
