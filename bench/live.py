"""Measure cameras that are faster than the model: the lag from capture to stored result, dropped frames, and CPU per camera.

    python bench/live.py [--cameras 1,4,8,16] [--minutes 5] [--inference-s 0.3] [--size 640x360]

Linux only: it reads /proc. For each number of cameras, that many scenarios sample a camera of 25 fps at 5 fps, each with a model that
needs `--inference-s` per frame, of which it sleeps most. One line is printed per minute (or per --window-s), with times in milliseconds.
The lag runs from the capture, by the camera's own clock, until the row is inserted; the commit comes after it. It should stay below
two intervals of the sampling rate plus the inference. `stored` is the part of it after the inference. CPU is that of a worker in
percent of a core. The baseline is a bare PyAV that decodes the same camera in the same minute; `x bare` is the median ratio over the
workers and its span.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import psycopg

sys.path.append(str(Path(__file__).parents[1]))  # for the slow model of the fault suite

from tests.faults import slow_motion
from tests.faults.injection import workers_of
from tests.faults.system_under_test import environment_variables

from scripted_camera import camera
from servers import fdatasync_us
from stack import cpu_s
from vidflow.commands.dev import Stack
from vidflow.infra.process.stopping import Stop
from vidflow.settings import DevOptions

CAMERA_FPS = 25
FPS = 5
READY_LIMIT_S = 120.0
STARTED_LIMIT_S = 180.0
WARM_UP_S = 10.0
POLL_S = 0.2


@dataclass(frozen=True)
class Reading:
    """CPU seconds by worker, and those of the bare reader, at a time."""

    at_s: float
    workers_s: dict[int, float]
    bare_s: float


@dataclass(frozen=True)
class Stored:
    """The frames stored in a window: milliseconds since their capture and since their inference, and frames dropped before them."""

    lags_ms: list[float]
    storing_ms: list[float]
    dropped: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", default="1,4,8,16")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--window-s", type=float, default=60.0)
    parser.add_argument("--inference-s", type=float, default=0.3)
    parser.add_argument("--size", default="640x360")
    args = parser.parse_args()
    counts = [int(count) for count in args.cameras.split(",")]
    width, height = map(int, args.size.split("x"))
    bound_ms = 1000 * (2 / FPS + args.inference_s)
    print(f"{platform.platform()}, {os.cpu_count()} cores, fdatasync {fdatasync_us():.0f} us; shared by all processes")
    print(
        f"cameras {args.size} at {CAMERA_FPS} fps, sampled at {FPS}, inference {args.inference_s:g} s; lag should be < {bound_ms:.0f} ms"
    )
    print(
        f"{'cameras':>7}{'minute':>8}{'frames':>8}{'dropped':>9}{'lag p50':>9}{'p99':>7}{'max':>7}{'stored':>9}{'p99':>7}{'max':>7}"
        f"{'CPU %':>8}{'bare %':>8}  x bare"
    )
    with camera(fps=CAMERA_FPS, size=(width, height)) as url, running_stack(max(counts), args.inference_s) as stack:
        for count in counts:
            measure(stack, url, count, args.minutes * 60, args.window_s)


def measure(stack: Stack, url: str, count: int, duration_s: float, window_s: float) -> None:
    """Run scenarios for some time and print a line for each window."""
    with httpx.Client(base_url=stack.url, timeout=30) as client, bare_reader(url) as bare:
        uuids = [create_scenario(client, url) for _ in range(count)]
        try:
            wait_until_all_store(stack, uuids)
            time.sleep(WARM_UP_S)
            before = read_cpu(stack, bare)
            for number in range(1, max(1, round(duration_s / window_s)) + 1):
                since = time.time()
                time.sleep(max(0.0, before.at_s + window_s - time.monotonic()))
                after = read_cpu(stack, bare)
                print_line(count, number * window_s / 60, stack, uuids, (since, time.time()), (before, after))
                before = after
        finally:
            for uuid in uuids:
                assert client.post(f"/scenario/{uuid}/shutdown").status_code == 200
        wait_until_inactive(client, uuids)


def print_line(
    count: int, minute: float, stack: Stack, uuids: list[str], window: tuple[float, float], cpu: tuple[Reading, Reading]
) -> None:
    stored = read_stored(stack, uuids, *window)
    before, after = cpu
    elapsed_s = after.at_s - before.at_s
    workers = [
        100 * (after.workers_s[pid] - seconds) / elapsed_s
        for pid, seconds in before.workers_s.items()
        if pid in after.workers_s
    ]
    bare = 100 * (after.bare_s - before.bare_s) / elapsed_s
    ratios = [worker / bare for worker in workers]
    print(
        f"{count:>7}{minute:>8.1f}{len(stored.lags_ms):>8}{stored.dropped:>9}{spread(stored.lags_ms)}{spread(stored.storing_ms)}"
        f"{statistics.mean(workers):>8.1f}{bare:>8.1f}  {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        flush=True,
    )


def spread(times_ms: list[float]) -> str:
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    return f"{cuts[49]:>9.0f}{cuts[98]:>7.0f}{max(times_ms):>7.0f}"


def read_stored(stack: Stack, uuids: list[str], since: float, until: float) -> Stored:
    """Return what was stored in a window."""
    with connect(stack) as connection:
        rows = connection.execute(
            """
            SELECT extract(epoch FROM r.stored_at - coalesce(r.captured_at, to_timestamp(r.pts / 1e6)))::float8,
                   extract(epoch FROM r.stored_at - r.at::timestamptz)::float8,
                   (SELECT coalesce(sum(g.frames), 0)::int
                      FROM scenario_gaps g
                     WHERE g.scenario_uuid = r.scenario_uuid AND g.after_frame = r.frame_number - 1 AND g.reason = 'dropped')
              FROM scenario_results r
             WHERE r.scenario_uuid = ANY (%s::uuid[]) AND r.stored_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)
            """,
            (uuids, since, until),
        ).fetchall()
    assert len(rows) > 1, "No frames were stored."
    return Stored(
        [1000 * lag for lag, _, _ in rows], [1000 * storing for _, storing, _ in rows], sum(row[2] for row in rows)
    )


def read_cpu(stack: Stack, bare: int) -> Reading:
    workers = [worker for runner in stack.pids()["runner"] for worker in workers_of(runner)]
    return Reading(time.monotonic(), {pid: cpu_s(pid) for pid in workers}, cpu_s(bare))


def create_scenario(client: httpx.Client, url: str) -> str:
    answer = client.post("/scenario/init", json={"source": url, "model": slow_motion.NAME, "fps": FPS})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["scenario_uuid"])


def wait_until_all_store(stack: Stack, uuids: list[str]) -> None:
    until_s = time.monotonic() + STARTED_LIMIT_S
    with connect(stack) as connection:
        query = "SELECT count(*) FROM scenario_progress WHERE next_frame > 0 AND scenario_uuid = ANY (%s::uuid[])"
        while connection.execute(query, (uuids,)).fetchone() != (len(uuids),):
            assert time.monotonic() < until_s, "Not all scenarios have stored frames."
            time.sleep(POLL_S)


def wait_until_inactive(client: httpx.Client, uuids: list[str]) -> None:
    until_s = time.monotonic() + STARTED_LIMIT_S
    while any(client.get(f"/scenario/{uuid}").json()["state"] != "inactive" for uuid in uuids):
        assert time.monotonic() < until_s, "Not all scenarios have ended."
        time.sleep(POLL_S)


@contextmanager
def bare_reader(url: str) -> Iterator[int]:
    """Decode the camera with PyAV alone in a process of its own. Yield its pid."""
    process = multiprocessing.get_context("spawn").Process(target=decode, args=(url,), daemon=True)
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


def decode(url: str) -> None:
    with av.open(url, options={"rtsp_transport": "tcp"}) as container:
        for _ in container.decode(video=0):
            pass


@contextmanager
def running_stack(slots: int, inference_s: float) -> Iterator[Stack]:
    """Run a vidflow with a slow model, whose tables say when each frame was inserted."""
    with tempfile.TemporaryDirectory(prefix="vidflow-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        models = Path(folder, "models")
        models.mkdir()
        program = slow_motion.install(models) / f"{slow_motion.NAME}.py"
        pause = f"PAUSE_S: Final = {slow_motion.PAUSE_S}"
        assert pause in program.read_text()
        program.write_text(program.read_text().replace(pause, f"PAUSE_S: Final = {inference_s}"))
        paths = os.pathsep.join(filter(None, [str(models), os.environ.get("PYTHONPATH")]))
        with environment_variables(PYTHONPATH=paths):
            stack = Stack(
                DevOptions(port=0, data_dir=Path(folder, "data"), max_workers=slots),
                lambda _: None,
                lambda _, __: None,
                Stop(),
            )
            try:
                stack.start()
                stack.wait_until_ready(READY_LIMIT_S)
                with connect(stack) as connection:
                    connection.execute(
                        "ALTER TABLE scenario_results ADD COLUMN stored_at timestamptz DEFAULT clock_timestamp()"
                    )
                yield stack
            finally:
                stack.stop()


def connect(stack: Stack) -> psycopg.Connection[Any]:
    return psycopg.connect(stack.database_url, autocommit=True)


if __name__ == "__main__":
    main()
