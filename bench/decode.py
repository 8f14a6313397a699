"""Measure the reading of frames, compared with bare PyAV in the same run. Each round runs all methods in a random order.

    python bench/decode.py [VIDEO] [--rounds N] [--threads N]

Each line is one method of reading the same file. `x bare` is its CPU time divided by that of bare PyAV in the same round
(median and span over the rounds); a busy machine affects CPU time less than wall time. The benchmark first checks that vidflow
and PyAV give the same frames.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from vidflow.domain.messages import ResumePoint
from vidflow.domain.sampling import format_time_base
from vidflow.infra.video import KeptFrame, open_video, read_kept_frames

SIZE = (320, 320)
Method = Callable[[Path, int], int]


def bare(path: Path, threads: int) -> int:
    """Decode and count all frames with PyAV alone."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        return sum(1 for _ in container.decode(stream))


def bare_rgb(path: Path, threads: int) -> int:
    """Decode all frames with PyAV alone, and convert each to 320x320 RGB with its own method."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        return sum(1 for frame in container.decode(stream) if frame.reformat(*SIZE, "rgb24").to_ndarray().size)


def make_reader(fps: int | None, *, pixels: bool) -> Method:
    """Return a method that reads with vidflow at a rate, with or without pixels."""

    def read(path: Path, threads: int) -> int:
        kept = 0
        with open_video(str(path), threads=threads) as video:
            for item in read_kept_frames(video, None if fps is None else Fraction(fps)):
                if isinstance(item, KeptFrame):
                    kept += 1
                    if pixels:
                        item.image(*SIZE)
        return kept

    return read


def read_resumed(path: Path, threads: int) -> int:
    """Read all frames with vidflow, resumed after the frame at 9/10 of the clip."""
    with open_video(str(path), threads=threads) as video:
        return sum(1 for item in read_kept_frames(video, None, _resume_points[path]) if isinstance(item, KeptFrame))


_resume_points: dict[Path, ResumePoint] = {}
METHODS: dict[str, Method] = {
    "bare PyAV, all": bare,
    "vidflow, all": make_reader(None, pixels=False),
    "vidflow, 5 per second": make_reader(5, pixels=False),
    "vidflow, 1 per second": make_reader(1, pixels=False),
    "bare PyAV, all, 320x320 RGB": bare_rgb,
    "vidflow, all, 320x320 RGB": make_reader(None, pixels=True),
    "vidflow, 5 per second, 320x320 RGB": make_reader(5, pixels=True),
    "vidflow, 1 per second, 320x320 RGB": make_reader(1, pixels=True),
    "vidflow, last tenth, resumed": read_resumed,
}


def synthetic(folder: Path, keyframe_s: int = 10) -> Path:
    """Create a clip of 10 s: 1280x720 H.264, 250 frames, a moving gradient. x264 makes a keyframe each 10 s, cameras each 1 to 4 s."""
    import numpy as np  # noqa: PLC0415  (needed only without a video)

    path = folder / f"synthetic-{keyframe_s}s.mp4"
    y, x = np.mgrid[0:720, 0:1280]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.options = {"g": str(25 * keyframe_s), "bf": "2", "preset": "veryfast", "crf": "23"}
        for i in range(250):
            picture = np.stack([(x + 5 * i) % 256, (y + 3 * i) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repeat(path: Path, times: int) -> Path:
    """Copy a clip of whole groups of pictures, played so many times."""
    copy = path.with_stem(f"{path.stem}-x{times}")
    with av.open(copy, "w") as output:
        shift = 0
        for number in range(times):
            with av.open(path) as container:
                source = container.streams.video[0]
                if number == 0:
                    stream = output.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        output.mux(packet)
                shift += source.duration or 0
    return copy


def prepare(path: Path) -> int:
    """Check that vidflow and PyAV give the same pts, record the late resume point, and return the number of frames."""
    with av.open(path) as container:
        expected = [frame.pts for frame in container.decode(video=0)]
    with open_video(str(path)) as video:
        kept = [
            (f.pts, ResumePoint(f.frame_number + 1, f.origin_pts, format_time_base(f.time_base), f.pts, f.time_s))
            for f in read_kept_frames(video)
            if isinstance(f, KeptFrame)
        ]
    assert [pts for pts, _ in kept] == expected, "vidflow and PyAV give different frames"
    _resume_points[path] = kept[len(kept) * 9 // 10][1]
    return len(kept)


@dataclass(frozen=True)
class Durations:
    wall_s: float
    cpu_s: float


def measure(path: Path, rounds: int, threads: int) -> dict[str, list[Durations]]:
    """Return the durations of each method in each round. The first round is a warm-up and is dropped."""
    durations: dict[str, list[Durations]] = {name: [] for name in METHODS}
    for number in range(rounds + 1):
        for name in random.sample(list(METHODS), len(METHODS)):
            wall_began_s, cpu_began_s = time.perf_counter(), time.process_time()
            METHODS[name](path, threads)
            if number:
                durations[name].append(Durations(time.perf_counter() - wall_began_s, time.process_time() - cpu_began_s))
    return durations


def print_table(frames: int, durations: dict[str, list[Durations]]) -> None:
    print(f"{'method':36}{'ms':>8}{'span':>14}{'CPU ms':>8}{'span':>14}{'frames/CPU s':>14}{'x bare':>8}{'span':>14}")
    bare_cpu_s = [round_.cpu_s for round_ in durations["bare PyAV, all"]]
    for name, rounds in durations.items():
        wall_s, cpu_s = [round_.wall_s for round_ in rounds], [round_.cpu_s for round_ in rounds]
        ratios = [ours / bare for ours, bare in zip(cpu_s, bare_cpu_s, strict=True)]
        print(
            f"{name:36}{milliseconds(wall_s)}{milliseconds(cpu_s)}{frames / statistics.median(cpu_s):14.0f}"
            f"{statistics.median(ratios):8.2f}{f'{min(ratios):.2f} to {max(ratios):.2f}':>14}"
        )


def milliseconds(seconds: list[float]) -> str:
    span = f"{min(seconds) * 1000:.0f} to {max(seconds) * 1000:.0f}"
    return f"{statistics.median(seconds) * 1000:8.0f}{span:>14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="a video file (default: a synthetic clip)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="decoding threads; 0 lets FFmpeg choose")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.video or synthetic(Path(folder))
        frames = prepare(path)
        print(f"{path.name}: {frames} frames, {args.rounds} rounds, {args.threads} thread(s)")
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, PyAV {av.__version__}")
        print_table(frames, measure(path, args.rounds, args.threads))


if __name__ == "__main__":
    main()
