"""Measure how long results take from the worker to the reader, and the CPU that each process spends per frame.

python bench/results.py [--loads 1x2,4x17.5,8x125] [--seconds 20] [--rounds 3] [--beside SRC]

Linux only: it reads /proc. It starts its own `vidflow dev`. A load `4x17.5` is four scenarios of 17.5 frames/s: their video is tiny, and
their model waits until the next frame is due and returns ten detections. A result is sent at the time `at` of its row (whole milliseconds)
and readable when a client that polls one of the scenarios every 5 ms has received it. The CPU is measured without that client.

The baseline is an idle vidflow: `idle` is its CPU in percent of a core, which is part of the CPU per frame. `--beside SRC` also runs the
version of vidflow whose `src` folder this is, in alternating rounds, and prints the ratio of the CPU per frame with its spread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg

sys.path.append(str(Path(__file__).parents[1]))  # for the clips of the tests

from tests import clips
from tests.faults.system_under_test import environment_variables

from servers import fdatasync_us
from stack import DevProcess, cpu_s, processes_by_role, stack

POLL_S = 0.005
WARM_UP_S = 10.0
LIMIT_S = 60.0
SLOTS = 16
VIDEO_FRAMES = 20_000
MODEL = '''
"""A model that waits until its next frame is due."""
import time
from vidflow.domain.detections import Detection

FOUND = tuple(Detection("person", 0.9 - n / 100, (n * 10.0, 20.5, n * 10.0 + 50.25, 200.75)) for n in range(10))

class Paced:
    labels, input_size, warmup_frames, batch = ("person",), None, 0, 1
    due_s = None

    def infer(self, pictures):
        now_s = time.monotonic()
        self.due_s = max(self.due_s or now_s, now_s - 1.0) + len(pictures) / {rate}
        time.sleep(max(0.0, self.due_s - now_s))
        return [FOUND] * len(pictures)

def load(_bundle, parameters):
    return Paced()
'''


@dataclass(frozen=True)
class Load:
    """A number of scenarios, each with a rate of frames per second."""

    scenarios: int
    rate: float

    @classmethod
    def parse(cls, text: str) -> Load:
        scenarios, _, rate = text.partition("x")
        return cls(int(scenarios), float(rate))

    def __str__(self) -> str:
        return f"{self.scenarios} x {self.rate:g}/s"

    @property
    def model(self) -> str:
        return f"paced_{self.rate:g}".replace(".", "_")


@dataclass(frozen=True)
class Cost:
    """What a load costs: frames per second, CPU milliseconds per frame by process, and milliseconds from sent to readable."""

    frames_per_s: float
    cpu_ms: dict[str, float]
    latencies_ms: list[float]

    @property
    def outside_workers_ms(self) -> float:
        return sum(ms for name, ms in self.cpu_ms.items() if name != "workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", default="1x2,4x17.5,8x125")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of each of the two measurements of a load"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="source folder of another version, for a comparison")
    args = parser.parse_args()
    loads = [Load.parse(text) for text in args.loads.split(",")]
    versions = {"this": None, **({"other": args.beside.resolve()} if args.beside else {})}
    costs: dict[tuple[str, Load], list[Cost]] = defaultdict(list)
    print(f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; shared by all processes")
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-") as folder:
        Path(folder).chmod(0o755)
        video = write_video(Path(folder))
        for _ in range(args.rounds):
            for version, source in versions.items():
                with running_version(Path(folder), loads, source) as running:
                    print(f"\n{version}: idle, CPU %: {describe(measure_idle(running, args.seconds))}", flush=True)
                    for load in loads:
                        cost = measure(running, video, load, args.seconds)
                        costs[version, load].append(cost)
                        show(load, cost)
    summarize(costs, loads, compare="other" in versions)


def show(load: Load, cost: Cost) -> None:
    cuts = statistics.quantiles(cost.latencies_ms, n=100, method="inclusive")
    print(
        f"{load!s:>12}: {cost.frames_per_s:.0f} frames/s, sent to readable p50 {cuts[49]:.1f} p99 {cuts[98]:.1f} "
        f"max {max(cost.latencies_ms):.1f} ms; CPU ms a frame outside the workers {cost.outside_workers_ms:.2f}: {describe(cost.cpu_ms)}",
        flush=True,
    )


def describe(figures: dict[str, float]) -> str:
    ordered = sorted(figures.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {figure:.2f}" for name, figure in ordered if figure >= 0.005)


def summarize(costs: dict[tuple[str, Load], list[Cost]], loads: list[Load], *, compare: bool) -> None:
    print()
    for load in loads:
        ours = [cost.outside_workers_ms for cost in costs["this", load]]
        line = f"{load!s:>12}: CPU outside the workers, median {statistics.median(ours):.2f} ms a frame"
        if compare:
            theirs = [cost.outside_workers_ms for cost in costs["other", load]]
            ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
            line += f", other {statistics.median(theirs):.2f}: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line)


def measure_idle(running: DevProcess, seconds: float) -> dict[str, float]:
    """Return the CPU of each process in percent of a core."""
    time.sleep(WARM_UP_S)
    before, began_s = read_cpu(running), time.monotonic()
    time.sleep(seconds)
    elapsed_s, after = time.monotonic() - began_s, read_cpu(running)
    return {name: 100 * (after[name] - spent_s) / elapsed_s for name, spent_s in before.items()}


def measure(running: DevProcess, video: Path, load: Load, seconds: float) -> Cost:
    with httpx.Client(base_url=running.url, timeout=LIMIT_S) as client, connect(running) as connection:
        uuids = [create_scenario(client, video, load) for _ in range(load.scenarios)]
        wait_until(lambda: len(count_stored(connection, uuids)) == len(uuids))
        time.sleep(WARM_UP_S)
        stored, before, began_s = sum(count_stored(connection, uuids).values()), read_cpu(running), time.monotonic()
        time.sleep(seconds)
        after, elapsed_s = read_cpu(running), time.monotonic() - began_s
        frames = sum(count_stored(connection, uuids).values()) - stored
        latencies_ms = follow(client, connection, uuids[0], seconds)
        for uuid in uuids:
            assert client.post(f"/scenario/{uuid}/shutdown").status_code == 200
        wait_until(lambda: all(client.get(f"/scenario/{uuid}").json()["state"] == "inactive" for uuid in uuids))
    cpu_ms = {name: 1000 * (after.get(name, 0.0) - spent_s) / frames for name, spent_s in before.items()}
    return Cost(frames / elapsed_s, cpu_ms, latencies_ms)


def follow(client: httpx.Client, connection: psycopg.Connection[Any], uuid: str, seconds: float) -> list[float]:
    """Return the milliseconds from sending each frame of a scenario until a client has read it."""
    after = count_stored(connection, [uuid])[uuid] - 1
    readable_s: dict[int, float] = {}
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        items = client.get("/prediction", params={"scenario_uuid": uuid, "after": after, "limit": 1000}).json()["items"]
        now_s = time.time()
        readable_s |= {item["frame_number"]: now_s for item in items}
        after = max(readable_s, default=after)
        time.sleep(POLL_S)
    sent_s = connection.execute(
        """
        SELECT frame_number, extract(epoch FROM at::timestamptz)::float8
          FROM scenario_results
         WHERE scenario_uuid = %s AND frame_number = ANY (%s)
        """,
        (uuid, list(readable_s)),
    ).fetchall()
    return [1000 * (readable_s[number] - at_s) for number, at_s in sent_s]


def read_cpu(running: DevProcess) -> dict[str, float]:
    """Return the CPU seconds of each process by name. Processes that started a moment ago are ignored."""
    spent_s: dict[str, float] = {}
    for name, pids in processes_by_role(running.process.pid).items():
        spent_s["workers" if name.endswith("forkserver") else name] = sum(cpu_s(pid) for pid in pids)
    return spent_s


def create_scenario(client: httpx.Client, video: Path, load: Load) -> str:
    answer = client.post("/scenario/init", json={"source": str(video), "model": load.model, "fps": "all"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["scenario_uuid"])


def count_stored(connection: psycopg.Connection[Any], uuids: list[str]) -> dict[str, int]:
    query = """
        SELECT scenario_uuid::text, next_frame FROM scenario_progress WHERE next_frame > 0 AND scenario_uuid = ANY (%s::uuid[])
    """
    return dict(connection.execute(query, (uuids,)).fetchall())


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until_s, "Timed out."
        time.sleep(0.1)


@contextmanager
def running_version(folder: Path, loads: list[Load], source: Path | None) -> Iterator[DevProcess]:
    """Run a vidflow with a model for each rate, from this source folder or another one."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    for load in loads:
        (models / f"{load.model}.py").write_text(MODEL.replace("{rate}", str(load.rate)))
    metadata = models / "paced-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: paced\nVersion: 1.0\n")
    entries = "".join(f"{load.model} = {load.model}:load\n" for load in loads)
    (metadata / "entry_points.txt").write_text(f"[vidflow.models]\n{entries}")
    paths = [str(path) for path in (source, models) if path] + list(filter(None, [os.environ.get("PYTHONPATH")]))
    with environment_variables(PYTHONPATH=os.pathsep.join(paths)), stack("--max-workers", str(SLOTS)) as running:
        yield running


def write_video(folder: Path) -> Path:
    picture = np.zeros((64, 96, 3), np.uint8)
    return clips.write(folder / "tiny.mp4", [picture] * VIDEO_FRAMES, [40 * n for n in range(VIDEO_FRAMES)])


def connect(running: DevProcess) -> psycopg.Connection[Any]:
    return psycopg.connect(running.database_url, autocommit=True)


if __name__ == "__main__":
    main()
