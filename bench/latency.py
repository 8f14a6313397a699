"""Measure latencies of a running vidflow: of requests, up to the first frame, and from sending a result until it can be read.

    python bench/latency.py [--births 20] [--videos 5] [--requests 2000]

It starts its own `vidflow dev`, runs the sample clip `bikes` with the model `motion`, and prints the spread of each latency in
milliseconds. The baselines are a bare handler without a database for requests, and a bare consumer of the same messages for
results. A result is sent at its message's timestamp (whole milliseconds). It is readable when a client that polls every 5 ms has
received it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import msgspec

import api
from servers import fdatasync_us
from stack import DevProcess, stack
from vidflow.commands.run.source import resolve_video
from vidflow.domain.messages import Frame, SourceOpened, decode_result
from vidflow.domain.topics import RESULTS
from vidflow.infra.kafka import admin, clients, offsets

POLL_S = 0.005
PAUSE_S = 0.3
LIMIT_S = 60.0
Samples = dict[str, list[float]]


@dataclass
class ObservedResults:
    """Times of the results that a bare consumer has read, in seconds since 1970.

    `opened`: by scenario, when the worker opened the source. `frames`: by scenario and frame number, when the frame was sent and
    when it was received. `inferred`: by scenario, when its frames were inferred, in order.
    """

    opened: dict[str, float] = field(default_factory=dict)
    frames: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    inferred: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class _Page(msgspec.Struct):
    items: list[dict[str, object]]
    next: str | None
    complete: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--births", type=int, default=20, help="scenarios for the latency to the first frame")
    parser.add_argument("--videos", type=int, default=5, help="scenarios for the latency of each frame")
    parser.add_argument("--requests", type=int, default=2000, help="requests per number of connections and server")
    args = parser.parse_args()
    with stack() as running, httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        with running_consumer(running) as observed:
            measure_first_frame(client, observed)  # warm-up
            births: dict[str, list[float]] = defaultdict(list)
            results: dict[str, list[float]] = defaultdict(list)
            for _ in range(args.births):
                for name, ms in measure_first_frame(client, observed).items():
                    births[name].append(ms)
            for _ in range(args.videos):
                for name, latencies_ms in measure_results(client, observed).items():
                    results[name] += latencies_ms
        requests = measure_requests(running.url, args.requests)
    print(f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; shared by all processes")
    show("from the 201 of a scenario", births)
    show("a result", results)
    show("POST /scenario/init", requests)


def measure_first_frame(client: httpx.Client, observed: ObservedResults) -> dict[str, float]:
    """Create a scenario on an idle vidflow. Return the milliseconds from its 201 to each event."""
    uuid = create_scenario(client, fps=5)
    created_s = time.time()
    readable_s = poll_until(lambda: bool(read_page(client, uuid, -1).items))
    transitions = client.get(f"/scenario/{uuid}/history").json()["items"]
    while not any(transition["to_state"] == "active" for transition in transitions):
        time.sleep(POLL_S)
        transitions = client.get(f"/scenario/{uuid}/history").json()["items"]
    reached_s = {
        transition["to_state"]: datetime.datetime.fromisoformat(transition["at"]).timestamp()
        for transition in reversed(transitions)
    }
    wait_until_inactive(client, uuid)
    poll_until(lambda: (uuid, 0) in observed.frames)
    event_times_s = {
        "assigned to a runner": reached_s["in_startup_processing"],
        "source opened": observed.opened[uuid],
        "first frame sent": observed.frames[uuid, 0][0],
        "first frame readable": readable_s,
        "active": reached_s["active"],
    }
    return {name: 1000 * (event_s - created_s) for name, event_s in event_times_s.items()}


def measure_results(client: httpx.Client, observed: ObservedResults) -> Samples:
    """Follow a scenario at full speed. Return the milliseconds from sending each frame until it is readable, and until consumed."""
    uuid = create_scenario(client, fps="all")
    readable_s: dict[int, float] = {}
    while True:
        results = read_page(client, uuid, len(readable_s) - 1)
        now_s = time.time()
        for _ in results.items:
            readable_s[len(readable_s)] = now_s
        if results.complete:
            break
        time.sleep(POLL_S)
    poll_until(lambda: (uuid, len(readable_s) - 1) in observed.frames)
    frames = [(observed.frames[uuid, number], read_s) for number, read_s in readable_s.items()]
    time.sleep(PAUSE_S)
    return {
        "sent to readable": [1000 * (read_s - sent_s) for (sent_s, _), read_s in frames],
        "sent to a bare consumer": [1000 * (received_s - sent_s) for (sent_s, received_s), _ in frames],
    }


def create_scenario(client: httpx.Client, *, fps: float | str) -> str:
    response = client.post(
        "/scenario/init", json={"source": resolve_video("sample:bikes"), "model": "motion", "fps": fps}
    )
    assert response.status_code == 201, response.text
    return str(response.json()["scenario_uuid"])


def read_page(client: httpx.Client, uuid: str, after: int) -> _Page:
    response = client.get("/prediction", params={"scenario_uuid": uuid, "after": after, "limit": 1000})
    return msgspec.json.decode(response.content, type=_Page)


def wait_until_inactive(client: httpx.Client, uuid: str) -> None:
    """Wait until the scenario is inactive and its worker has exited, so that the next one starts on an idle vidflow."""
    until_s = time.monotonic() + LIMIT_S
    while client.get(f"/scenario/{uuid}").json()["state"] != "inactive":
        assert time.monotonic() < until_s, f"Scenario {uuid} did not end."
        time.sleep(0.05)
    time.sleep(PAUSE_S)


def poll_until(condition: Callable[[], bool]) -> float:
    """Check the condition every 5 ms. Return the time when it first holds, in seconds since 1970."""
    until_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until_s, "Timed out while polling."
        time.sleep(POLL_S)
    return time.time()


@contextmanager
def running_consumer(running: DevProcess) -> Iterator[ObservedResults]:
    """Read the results alongside the inbox while the body runs."""
    observed, stopped = ObservedResults(), threading.Event()
    client = admin.create_admin(running.kafka)
    reader = clients.create_consumer(running.kafka, client_id="bench-consumer")
    offsets.assign_at_end(client, reader, [RESULTS])

    def read() -> None:
        while not stopped.is_set():
            message = reader.poll(0.1)
            if message is None or message.error():
                continue
            received_s, sent_s = time.time(), message.timestamp()[1] / 1000
            result = decode_result(message.value())
            if isinstance(result, SourceOpened):
                observed.opened[result.scenario_uuid] = sent_s
            elif isinstance(result, Frame):
                observed.frames[result.scenario_uuid, result.frame_number] = sent_s, received_s
                observed.inferred[result.scenario_uuid].append(datetime.datetime.fromisoformat(result.at).timestamp())

    thread = threading.Thread(target=read, name="results consumer")
    thread.start()
    try:
        yield observed
    finally:
        stopped.set()
        thread.join()
        reader.close()


def measure_requests(url: str, requests: int) -> Samples:
    """Measure POST /scenario/init over 1 and 8 connections, alternating with a bare handler."""
    latencies: Samples = {}
    with api.baseline() as bare:
        for connections in (1, 8):
            for name, target in (("", url), (", a bare handler", bare)):
                measure_latencies(target, connections, requests // 10)  # warm-up
                latencies[f"{connections} connection{'s' * (connections > 1)}{name}"] = measure_latencies(
                    target, connections, requests
                )
    return latencies


def measure_latencies(url: str, connections: int, requests: int) -> list[float]:
    """Return the milliseconds of each request."""
    parts = urlsplit(url)
    latencies_s: list[float] = []

    async def run() -> None:
        senders = (
            api.send_requests(
                parts.hostname or "", parts.port or 80, float("inf"), latencies_s, requests // connections
            )
            for _ in range(connections)
        )
        await asyncio.gather(*senders)

    asyncio.run(run())
    return [1000 * seconds for seconds in latencies_s]


def show(title: str, spread: Samples) -> None:
    print(f"\n{title + ', ms':34}{'p50':>8}{'p99':>8}{'max':>8}{'count':>8}")
    for name, ms in spread.items():
        cuts = statistics.quantiles(ms, n=100, method="inclusive")
        print(f"{name:34}{cuts[49]:>8.1f}{cuts[98]:>8.1f}{max(ms):>8.1f}{len(ms):>8}")


if __name__ == "__main__":
    main()
