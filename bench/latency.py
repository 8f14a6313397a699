"""How long things take on a running vidflow: an answer, the way to the first frame, a result's way until it can be read.

    python bench/latency.py [--births 20] [--videos 5] [--requests 2000]

It starts a `vidflow dev` of its own, runs the sample clip `bikes` with the model `motion`, and prints the spread of each figure
in milliseconds. Beside them: a bare handler without a database for the requests, and for the results a bare consumer that sees
the same messages. When a worker sent a message is told by the message's own timestamp (whole milliseconds); when a row could
be read, by a client that asks each 5 ms and believes the moment in which it has the answer.
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
from vidflow.domain.messages import RESULTS, Frame, SourceOpened, decode_result
from vidflow.infra.kafka import admin, clients, offsets

POLL_S = 0.005
PAUSE_S = 0.3
LIMIT_S = 60.0
Samples = dict[str, list[float]]


@dataclass
class ObservedResults:
    """What a bare consumer sees of the results: when each was sent and when it was seen, in seconds since 1970."""

    opened: dict[str, float] = field(default_factory=dict)
    frames: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)


class _Page(msgspec.Struct):
    items: list[dict[str, object]]
    next: str | None
    complete: bool


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--births", type=int, default=20, help="scenarios of which the first frame is awaited")
    arguments.add_argument("--videos", type=int, default=5, help="scenarios of which each frame is awaited")
    arguments.add_argument("--requests", type=int, default=2000, help="for a scenario, of each way to ask")
    given = arguments.parse_args()
    with stack() as running, httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        with running_consumer(running) as sent:
            measure_first_frame(client, sent)  # warms up
            births: dict[str, list[float]] = defaultdict(list)
            results: dict[str, list[float]] = defaultdict(list)
            for _ in range(given.births):
                for name, ms in measure_first_frame(client, sent).items():
                    births[name].append(ms)
            for _ in range(given.videos):
                for name, several in measure_results(client, sent).items():
                    results[name] += several
        requests = measure_requests(running.url, given.requests)
    print(f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; all processes share them")
    show("from the 201 of a scenario", births)
    show("a result", results)
    show("POST /scenario/init", requests)


def measure_first_frame(client: httpx.Client, sent: ObservedResults) -> dict[str, float]:
    """Asks for a scenario on an idle vidflow; from its 201 on, when was what?"""
    uuid = create_scenario(client, fps=5)
    born_s = time.time()
    readable_s = poll_until(lambda: bool(page(client, uuid, -1).items))
    moves = client.get(f"/scenario/{uuid}/history").json()["items"]
    while not any(move["to_state"] == "active" for move in moves):
        time.sleep(POLL_S)
        moves = client.get(f"/scenario/{uuid}/history").json()["items"]
    at_s = {move["to_state"]: datetime.datetime.fromisoformat(move["at"]).timestamp() for move in reversed(moves)}
    wait_until_inactive(client, uuid)
    poll_until(lambda: (uuid, 0) in sent.frames)
    moments = {
        "given to a runner": at_s["in_startup_processing"],
        "source opened": sent.opened[uuid],
        "first frame sent": sent.frames[uuid, 0][0],
        "first frame readable": readable_s,
        "active": at_s["active"],
    }
    return {name: 1000 * (moment_s - born_s) for name, moment_s in moments.items()}


def measure_results(client: httpx.Client, sent: ObservedResults) -> Samples:
    """Reads along with a scenario that runs as fast as it can: of each frame, from sent to readable and to seen by a bare consumer."""
    uuid = create_scenario(client, fps="all")
    readable_s: dict[int, float] = {}
    while True:
        found = page(client, uuid, len(readable_s) - 1)
        now_s = time.time()
        for _ in found.items:
            readable_s[len(readable_s)] = now_s
        if found.complete:
            break
        time.sleep(POLL_S)
    poll_until(lambda: (uuid, len(readable_s) - 1) in sent.frames)
    frames = [(sent.frames[uuid, number], at_s) for number, at_s in readable_s.items()]
    time.sleep(PAUSE_S)
    return {
        "sent to readable": [1000 * (at_s - sent_s) for (sent_s, _), at_s in frames],
        "sent to a bare consumer": [1000 * (seen_s - sent_s) for (sent_s, seen_s), _ in frames],
    }


def create_scenario(client: httpx.Client, *, fps: float | str) -> str:
    answer = client.post(
        "/scenario/init", json={"source": resolve_video("sample:bikes"), "model": "motion", "fps": fps}
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["scenario_uuid"])


def page(client: httpx.Client, uuid: str, after: int) -> _Page:
    answer = client.get("/prediction", params={"scenario_uuid": uuid, "after": after, "limit": 1000})
    return msgspec.json.decode(answer.content, type=_Page)


def wait_until_inactive(client: httpx.Client, uuid: str) -> None:
    """Until it is inactive, and its worker gone: the next one begins on an idle vidflow."""
    until_s = time.monotonic() + LIMIT_S
    while client.get(f"/scenario/{uuid}").json()["state"] != "inactive":
        assert time.monotonic() < until_s, f"scenario {uuid} does not end"
        time.sleep(0.05)
    time.sleep(PAUSE_S)


def poll_until(holds: Callable[[], bool]) -> float:
    """Asks each 5 ms; the time of the first yes, in seconds since 1970."""
    until_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until_s, "it does not come"
        time.sleep(POLL_S)
    return time.time()


@contextmanager
def running_consumer(running: DevProcess) -> Iterator[ObservedResults]:
    """Reads the results beside the inbox while the body runs."""
    sent, over = ObservedResults(), threading.Event()
    client = admin.create_admin(running.kafka)
    reader = clients.create_consumer(running.kafka, client_id="bench-reads-along")
    offsets.assign_at_end(client, reader, [RESULTS])

    def read() -> None:
        while not over.is_set():
            message = reader.poll(0.1)
            if message is None or message.error():
                continue
            seen_s, sent_s = time.time(), message.timestamp()[1] / 1000
            result = decode_result(message.value())
            if isinstance(result, SourceOpened):
                sent.opened[result.scenario_uuid] = sent_s
            elif isinstance(result, Frame):
                sent.frames[result.scenario_uuid, result.frame_number] = sent_s, seen_s

    thread = threading.Thread(target=read, name="reads along")
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()
        reader.close()


def measure_requests(url: str, requests: int) -> Samples:
    """Requests for scenarios, one after another and by 8 connections, in turns with a bare handler."""
    taken: Samples = {}
    with api.baseline() as bare:
        for connections in (1, 8):
            for name, target in (("", url), (", a bare handler", bare)):
                measure_latencies(target, connections, requests // 10)  # warms up
                taken[f"{connections} connection{'s' * (connections > 1)}{name}"] = measure_latencies(
                    target, connections, requests
                )
    return taken


def measure_latencies(url: str, connections: int, requests: int) -> list[float]:
    """Milliseconds of each request."""
    parts = urlsplit(url)
    taken_s: list[float] = []

    async def run() -> None:
        each = (
            api.send_requests(parts.hostname or "", parts.port or 80, float("inf"), taken_s, requests // connections)
            for _ in range(connections)
        )
        await asyncio.gather(*each)

    asyncio.run(run())
    return [1000 * seconds for seconds in taken_s]


def show(title: str, spread: Samples) -> None:
    print(f"\n{title + ', ms':34}{'p50':>8}{'p99':>8}{'most':>8}{'count':>8}")
    for name, ms in spread.items():
        cuts = statistics.quantiles(ms, n=100, method="inclusive")
        print(f"{name:34}{cuts[49]:>8.1f}{cuts[98]:>8.1f}{max(ms):>8.1f}{len(ms):>8}")


if __name__ == "__main__":
    main()
