"""Measure the frames per second of workers beside the loops that people write without vidflow, in the same run. Linux only.

    python bench/worker.py [VIDEO] [--opencv-python PATH] [--at-once 2,4,8] [--seconds N] [--rounds N] [--sampled VIDEO]

It starts its own `vidflow dev` and runs the model yolox_nano. Each round runs a worker and its peers one after the other:

- one video on an idle machine, all frames, beside bench/opencv_script.py with OpenCV's and onnxruntime's default threads
  (--opencv-python: a Python with opencv-python-headless, onnxruntime and numpy; without it there is no such peer);
- n videos at once, beside n processes of a bare loop: PyAV, swscale, onnxruntime, one thread each;
- 1280x720 H.264 at one frame per second, six times as long (--sampled; default: synthetic clips with a keyframe per 10 s, 2 s and 1 s),
  beside the script.

A worker's time is that from its source being opened to its last frame. Ratios are those of one round: median (minimum-maximum).
`fairness` is the slowest stream's rate by the fastest one's.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import av
import httpx
import numpy as np
import onnxruntime

from decode import repeat, synthetic
from latency import ObservedResults, running_consumer
from stack import DevProcess, processes_by_role, stack, workers_of
from vidflow.commands.run.source import resolve_video
from vidflow.infra.models.label_files import BUILT_IN_FOLDER

MODEL = BUILT_IN_FOLDER / "yolox_nano.onnx"
LIMIT_S = 900.0
POLL_S = 0.1
SIZE, SCORE = 416, 0.4
SCRIPT = Path(__file__).with_name("opencv_script.py")


@dataclass(frozen=True)
class Streams:
    """What n streams at once did: frames of all, seconds of all together, the rate of each, and the scenarios if they are vidflow's."""

    frames: int
    seconds: float
    rates: tuple[float, ...]
    uuids: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    @property
    def fairness(self) -> float:
        return min(self.rates) / max(self.rates)


def main() -> None:
    args = _parse_arguments()
    if args.bare:
        run_bare_loop(str(args.video), args.seconds)
        return
    counts = [int(count) for count in args.at_once.split(",") if count]
    with (
        tempfile.TemporaryDirectory() as folder,
        stack("--max-workers", str(max([1, *counts]))) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
        running_consumer(running) as observed,
        PrivateMemory(running, max) as memory,
    ):
        video = str(args.video or resolve_video("sample:bikes"))
        sampled = (
            [args.sampled] if args.sampled else [repeat(synthetic(Path(folder), every_s), 6) for every_s in (10, 2, 1)]
        )
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds, {args.seconds:g} s"
        )
        measure = partial(run_workers, client, observed)
        measure(video, 1, args.seconds, fps=0)  # warm-up
        if args.opencv_python is not None:
            script = [str(args.opencv_python), str(SCRIPT), str(MODEL)]
            for path, seconds, fps in (
                (video, args.seconds, 0),
                *((str(clip), 6 * args.seconds, 1) for clip in sampled),
            ):
                peer = [*script, path, str(seconds), str(fps)]
                rounds = [(measure(path, 1, seconds, fps=fps), run_processes(peer, 1)) for _ in range(args.rounds)]
                print_row(f"alone, {Path(path).name}, {'1 per second' if fps else 'all'}", "OpenCV script", rounds)
        for count in counts:
            bare = [sys.executable, __file__, video, "--bare", "--seconds", str(args.seconds)]
            rounds = [
                (measure(video, count, args.seconds, fps=0), run_processes(bare, count)) for _ in range(args.rounds)
            ]
            print_row(f"{count} at once, {Path(video).name}, all", f"{count} bare loops", rounds)
    print(f"largest private memory of a worker: {memory.largest_bytes / 1e6:.0f} MB")


def run_workers(
    client: httpx.Client,
    observed: ObservedResults,
    video: str,
    count: int,
    seconds: float,
    fps: float,
    model: str = "yolox_nano",
) -> Streams:
    """Run as many scenarios at once and return what their workers did, from the opened source to the last frame of each."""
    body = {"source": video, "model": model, "fps": fps or "all", "parameters": {"duration_s": seconds}}
    uuids = []
    for _ in range(count):
        response = client.post("/scenario/init", json=body)
        response.raise_for_status()
        uuids.append(response.json()["scenario_uuid"])
    streams = [_wait_for_stream(client, observed, uuid) for uuid in uuids]
    return Streams(
        sum(frames for frames, _, _ in streams),
        max(end_s for _, _, end_s in streams) - min(began_s for _, began_s, _ in streams),
        tuple(frames / (end_s - began_s) for frames, began_s, end_s in streams),
        tuple(uuids),
    )


def _wait_for_stream(client: httpx.Client, observed: ObservedResults, uuid: str) -> tuple[int, float, float]:
    """Wait until the scenario is complete. Return its frames, and when its source was opened and its last frame was sent."""
    limit_s = time.monotonic() + LIMIT_S
    while (scenario := client.get(f"/scenario/{uuid}").json())["state"] != "inactive":
        if time.monotonic() > limit_s:
            raise SystemExit(f"scenario {uuid} did not end within {LIMIT_S:.0f} s")
        time.sleep(POLL_S)
    frames = scenario["frames_stored"]
    while (uuid, frames - 1) not in observed.frames:
        if time.monotonic() > limit_s:
            raise SystemExit(f"the last frame of scenario {uuid} did not arrive")
        time.sleep(POLL_S)
    return frames, observed.opened[uuid], observed.frames[uuid, frames - 1][0]


def run_processes(command: list[str], count: int) -> Streams:
    """Run as many copies of a loop at once. Each prints its frames and seconds."""
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    outputs = [process.communicate(timeout=LIMIT_S)[0].split() for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"failed: {' '.join(command)}")
    measured = [(int(frames), float(seconds)) for frames, seconds in outputs]
    rates = tuple(frames / seconds for frames, seconds in measured)
    return Streams(sum(frames for frames, _ in measured), max(seconds for _, seconds in measured), rates)


def run_bare_loop(video: str, seconds: float) -> None:
    """Read, infer and decode every frame with one thread, and print frames and seconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    frames, began_s = 0, time.perf_counter()
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= seconds:
                break
            _infer_bare(session, frame)
            frames += 1
    print(frames, time.perf_counter() - began_s)


def _infer_bare(session: onnxruntime.InferenceSession, frame: av.VideoFrame) -> int:
    """Return the number of objects before non-maximum suppression, which costs little."""
    ratio = min(SIZE / frame.width, SIZE / frame.height)
    width, height = int(frame.width * ratio), int(frame.height * ratio)
    picture = frame.reformat(width, height, "bgr24", interpolation="BILINEAR").to_ndarray()
    tensor = np.full((1, 3, SIZE, SIZE), 114, np.float32)
    tensor[0, :, :height, :width] = picture.transpose(2, 0, 1)
    rows = session.run(None, {session.get_inputs()[0].name: tensor})[0][0]
    return int(((rows[:, 4:5] * rows[:, 5:]).max(axis=1) > SCORE).sum())


class PrivateMemory:
    """Samples the memory that workers and inference processes share with no other process, on a thread, while the block runs.

    `combine`: makes one number of those of the processes, such as `max` or `sum`. `largest_bytes` is the largest such number.
    """

    def __init__(self, running: DevProcess, combine: Callable[[list[int]], int]) -> None:
        self._runners, self._combine = processes_by_role(running.process.pid)["runner"], combine
        self.largest_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="private memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(POLL_S):
            sizes = [_private_bytes(pid) for runner in self._runners for pid in workers_of(runner)]
            self.largest_bytes = max(self.largest_bytes, self._combine([0, *sizes]))


def print_row(name: str, peer: str, rounds: list[tuple[Streams, Streams]]) -> None:
    ratios = [ours.rate / theirs.rate for ours, theirs in rounds]
    fairness = [ours.fairness for ours, _ in rounds]
    rates, peers = [ours.rate for ours, _ in rounds], [theirs.rate for _, theirs in rounds]
    print(
        f"{name:44} vidflow {format_spread(rates, 1)}/s, {peer} {format_spread(peers, 1)}/s, "
        f"ratio {format_spread(ratios, 2)}, fairness {format_spread(fairness, 2)}"
    )


def format_spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _private_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other and no file, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="default: the sample clip bikes")
    parser.add_argument("--opencv-python", type=Path)
    parser.add_argument("--sampled", type=Path)
    parser.add_argument("--at-once", default="2,4,8")
    parser.add_argument("--seconds", type=float, default=10.0, help="how much of each video")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help="only run the bare loop on the video, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
