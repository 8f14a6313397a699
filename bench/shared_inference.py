"""Measure streams whose model runs in one process for all of them, beside the same streams with a model in each worker. Linux only.

    python bench/shared_inference.py [VIDEO] [--model NAME] [--streams 1,4,8,16,32] [--seconds N] [--rounds N] [--device DEVICE]

It starts a `vidflow dev` of each kind, both on the same machine, one after the other in each round. All frames of the video are
processed (default: a synthetic 1280x720 H.264 clip). For each number of streams it prints the frames per second of all, the 95th
percentile of the time from one frame of a stream to its next, the fairness (the slowest stream's rate by the fastest one's) and the
private memory of all workers and inference processes together. Ratios are those of one round: median (minimum-maximum).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx

from decode import synthetic
from latency import running_consumer
from stack import stack
from worker import PrivateMemory, format_spread, run_workers

PERCENTILE = 95


@dataclass(frozen=True)
class Measured:
    """What n streams did: frames per second of all, ms from frame to frame, fairness, and bytes of memory."""

    rate: float
    interval_ms: float
    fairness: float
    memory_bytes: int


def main() -> None:
    args = _parse_arguments()
    counts = [int(count) for count in args.streams.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        video = str(args.video or synthetic(Path(folder)))
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds, {args.seconds:g} s, "
            f"device {args.device or 'default'}"
        )
        rounds = [
            {mode: measure_mode(mode, args, video, counts) for mode in ("worker", "shared")} for _ in range(args.rounds)
        ]
    for index, count in enumerate(counts):
        workers = [measured["worker"][index] for measured in rounds]
        shared = [measured["shared"][index] for measured in rounds]
        ratios = [ours.rate / theirs.rate for ours, theirs in zip(shared, workers, strict=True)]
        print(f"{count:3} streams: shared {_describe(shared)}\n{'':12}worker {_describe(workers)}")
        print(f"{'':12}shared by worker {format_spread(ratios, 2)}")


def measure_mode(mode: str, args: argparse.Namespace, video: str, counts: list[int]) -> list[Measured]:
    """Start a vidflow whose models run there, and measure each number of streams."""
    options = ["--max-workers", str(max(counts)), "--inference", mode]
    if args.device is not None:
        options += ["--device", args.device]
    with (
        stack(*options) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
        running_consumer(running) as observed,
    ):
        run_workers(client, observed, video, 1, args.seconds, fps=0, model=args.model)  # warm-up
        measured = []
        for count in counts:
            with PrivateMemory(running, sum) as memory:
                streams = run_workers(client, observed, video, count, args.seconds, fps=0, model=args.model)
            times = [observed.inferred[uuid] for uuid in streams.uuids]
            intervals = [1000 * (later - earlier) for stream in times for earlier, later in pairwise(stream)]
            p95 = statistics.quantiles(intervals, n=100)[PERCENTILE - 1]
            measured.append(Measured(streams.rate, p95, streams.fairness, memory.largest_bytes))
        return measured


def _describe(rounds: list[Measured]) -> str:
    return (
        f"{format_spread([m.rate for m in rounds], 1)} frames/s, p95 {format_spread([m.interval_ms for m in rounds], 0)} ms, "
        f"fairness {format_spread([m.fairness for m in rounds], 2)}, {format_spread([m.memory_bytes / 1e6 for m in rounds], 0)} MB"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="default: a synthetic clip of 10 s")
    parser.add_argument("--model", default="yolox_nano")
    parser.add_argument("--streams", default="1,4,8,16,32")
    parser.add_argument("--seconds", type=float, default=10.0, help="how much of the video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="as in vidflow dev")
    return parser.parse_args()


if __name__ == "__main__":
    main()
