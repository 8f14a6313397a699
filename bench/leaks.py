"""Measure what grows: in a reader over 1,000 reconnects to a camera, and in a vidflow over 1,000 started and stopped scenarios.

    python bench/leaks.py [--reconnects 1000] [--scenarios 1000] [--only reconnects|scenarios]

Linux only: it reads /proc. A camera of its own ends the connections by turns: closed, reset, cut in the handshake, or silent. The
baseline is a bare PyAV that connects to the same camera as often. `per 1,000` is the slope of a line through the second half of the
samples, as the first half fills caches and memory pools. The scenarios read a camera that goes on; each is stopped after its first
stored frame.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import av
import httpx

sys.path.append(str(Path(__file__).parents[1]))  # for the process helpers of the tests

from tests.faults.injection import workers_of
from tests.integration.processes import children

from scripted_camera import Ending, camera
from stack import SERVERS, processes_by_role, stack
from vidflow.domain.errors import Unavailable
from vidflow.domain.messages import ResumePoint
from vidflow.domain.source_access import SourceAccess, allow_local_networks
from vidflow.infra.video import Interruption, KeptFrame, Video, open_video
from vidflow.infra.video.live import LiveReader

SAMPLES = 40
FRAMES = 12
"""Frames that the camera sends on each connection."""
ENDINGS = [Ending.CLOSE, Ending.RESET, Ending.CLOSE, Ending.CUT] * 10 + [Ending.SILENCE]
IN_PARALLEL = 2
LIMIT_S = 120.0
POLL_S = 0.02
FIELDS = ("MB", "threads", "descriptors", "children")


@dataclass(frozen=True)
class Usage:
    """What the processes of one part use together."""

    mb: float
    threads: int
    descriptors: int
    children: int


Samples = list[tuple[int, dict[str, Usage]]]
"""Usage by part, after so many rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconnects", type=int, default=1000)
    parser.add_argument("--scenarios", type=int, default=1000)
    parser.add_argument("--only", choices=("reconnects", "scenarios"))
    args = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    if args.only != "scenarios":
        show(f"{args.reconnects} reconnects", measure_reconnects(args.reconnects))
    if args.only != "reconnects":
        show(f"{args.scenarios} scenarios", measure_scenarios(args.scenarios))


def measure_reconnects(count: int) -> Samples:
    """Reconnect in two processes, one after the other: the reader, and bare PyAV."""
    samples: Samples = []
    with camera(frames=FRAMES, endings=ENDINGS) as url:
        for name, body in (("LiveReader", read_live), ("bare PyAV", read_bare)):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=body, args=(url, count, theirs))
            process.start()
            theirs.close()
            with suppress(EOFError):
                while True:
                    samples.append((ours.recv(), {name: read_usage([process.pid or 0])}))
                    ours.send(None)
            process.join()
            assert process.exitcode == 0, f"{name} ended with {process.exitcode}"
    return samples


def read_live(url: str, count: int, samples: Connection) -> None:
    """Read with a LiveReader until it has connected `count` times."""
    connections = 0

    def connect(*, interruption: Interruption) -> Video:
        nonlocal connections
        connections += 1
        return open_video(url, access=allow_local_networks(SourceAccess()), interruption=interruption)

    frames, sample = 0, Sampler(samples, count)
    with LiveReader(connect, url, lambda error: not isinstance(error, Unavailable), None, ResumePoint(), 4) as reader:
        while connections < count:
            frames += sum(isinstance(step, KeptFrame) for step in reader.take(0.25))
            sample.take(connections)
    assert frames > count, f"only {frames} frames were read"


def read_bare(url: str, count: int, samples: Connection) -> None:
    """Connect `count` times with PyAV alone. A silent camera is closed at once, as PyAV would wait for it."""
    sample = Sampler(samples, count)
    for number in range(count):
        with (
            suppress(av.error.FFmpegError),
            av.open(url, options={"rtsp_transport": "tcp"}, timeout=(10, 1)) as container,
        ):
            for _ in container.decode(video=0):
                pass
        sample.take(number + 1)


class Sampler:
    """Asks the parent process to look at this one, SAMPLES times in all."""

    def __init__(self, samples: Connection, count: int) -> None:
        self._samples, self._step, self._next = samples, max(1, count // SAMPLES), 1

    def take(self, number: int) -> None:
        if number >= self._next:
            self._samples.send(number)
            self._samples.recv()
            self._next = number + self._step


def measure_scenarios(count: int) -> Samples:
    """Start and stop scenarios on a running vidflow, a few at a time."""
    samples: Samples = []
    with (
        camera() as url,
        stack() as running,
        httpx.Client(base_url=running.url, timeout=LIMIT_S) as client,
        ThreadPoolExecutor(IN_PARALLEL, thread_name_prefix="scenario") as threads,
    ):
        step = max(IN_PARALLEL, count // SAMPLES)
        list(
            threads.map(lambda _: run_scenario(client, url), range(IN_PARALLEL))
        )  # a first worker makes a runner import more
        for done in range(0, count + 1, step):
            wait_until(lambda: not any(map(workers_of, processes_by_role(running.process.pid)["runner"])))
            parts = processes_by_role(running.process.pid)
            samples.append((done, {name: read_usage(pids) for name, pids in parts.items()}))
            list(threads.map(lambda _: run_scenario(client, url), range(min(step, count - done))))
            wait_until(lambda: client.get("/health/system").status_code == 200)
    return samples


def run_scenario(client: httpx.Client, url: str) -> None:
    """Create a scenario, stop it after its first frame and wait until it is inactive."""
    answer = client.post("/scenario/init", json={"source": url, "model": "motion", "fps": 5})
    assert answer.status_code == 201, answer.text
    path = f"/scenario/{answer.json()['scenario_uuid']}"
    wait_until(lambda: client.get(path).json()["frames_stored"] > 0)
    assert client.post(f"{path}/shutdown").status_code == 200
    wait_until(lambda: client.get(path).json()["state"] == "inactive")
    assert client.get(path).json()["outcome"] == "stopped"


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until_s, "Timed out while polling."
        time.sleep(POLL_S)


def read_usage(pids: list[int]) -> Usage:
    """Return what the processes use together. One that has ended uses nothing."""
    usages = list(_usages(pids))
    return Usage(
        sum(usage.mb for usage in usages),
        sum(usage.threads for usage in usages),
        sum(usage.descriptors for usage in usages),
        sum(usage.children for usage in usages),
    )


def _usages(pids: list[int]) -> Iterator[Usage]:
    for pid in pids:
        with suppress(OSError):
            proc = Path("/proc", str(pid))
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            descriptors = len(list((proc / "fd").iterdir()))
            mb = int(status.get("VmRSS", "0").split()[0]) * 1024 / 1e6
            yield Usage(mb, int(status["Threads"]), descriptors, len(children(pid)))


def show(title: str, samples: Samples) -> None:
    names = list(dict.fromkeys(name for _, usages in samples for name in usages))
    print(f"\n{title:24}" + "".join(f"{field:>13}{'':>9}{'per 1,000':>11}" for field in FIELDS))
    for name in names:
        found = [(number, astuple(usages[name])) for number, usages in samples if name in usages]
        cells = ""
        for index in range(len(FIELDS)):
            values = [values[index] for _, values in found]
            later = found[len(found) // 2 :]
            per_1000 = 0.0
            if len({number for number, _ in later}) > 1:
                per_1000 = (
                    1000
                    * statistics.linear_regression(
                        [number for number, _ in later], [values[index] for _, values in later]
                    ).slope
                )
            cells += f"{values[0]:>13.0f} ->{values[-1]:>6.0f}{per_1000:>+11.1f}"
        note = " (server)" if name in SERVERS else ""
        print(f"{name + note:24}{cells}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
