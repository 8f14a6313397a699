"""How fast frames are read: vidflow's reading beside bare PyAV, in one run, each round in another order.

    python bench/decode.py [VIDEO] [--rounds N] [--threads N]

Each line is one way through the same file. `x bare` is its CPU time over that of bare PyAV in the same round (a busy
machine disturbs it less than wall time): the median, and the span over the rounds. What both give is compared first: a
fast wrong answer is none.
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
    """PyAV alone: open, decode, count."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        return sum(1 for _ in container.decode(stream))


def bare_rgb(path: Path, threads: int) -> int:
    """PyAV alone, each frame reformatted to 320x320 RGB by its own method."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        return sum(1 for f in container.decode(stream) if f.reformat(*SIZE, "rgb24").to_ndarray().size)


def make_reader(fps: int | None, *, pixels: bool) -> Method:
    """vidflow at a rate, with or without the pixels."""

    def way(path: Path, threads: int) -> int:
        kept = 0
        with open_video(str(path), threads=threads) as video:
            for item in read_kept_frames(video, None if fps is None else Fraction(fps)):
                if isinstance(item, KeptFrame):
                    kept += 1
                    if pixels:
                        item.image(*SIZE)
        return kept

    return way


def read_resumed(path: Path, threads: int) -> int:
    """vidflow, all frames, resumed behind the frame at 9/10 of the clip."""
    with open_video(str(path), threads=threads) as video:
        return sum(1 for item in read_kept_frames(video, None, _resume_points[path]) if isinstance(item, KeptFrame))


_resume_points: dict[Path, ResumePoint] = {}
METHODS: dict[str, Method] = {
    "bare PyAV, all": bare,
    "vidflow, all": make_reader(None, pixels=False),
    "vidflow, 5 a second": make_reader(5, pixels=False),
    "vidflow, 1 a second": make_reader(1, pixels=False),
    "bare PyAV, all, 320x320 RGB": bare_rgb,
    "vidflow, all, 320x320 RGB": make_reader(None, pixels=True),
    "vidflow, 5 a second, 320x320 RGB": make_reader(5, pixels=True),
    "vidflow, 1 a second, 320x320 RGB": make_reader(1, pixels=True),
    "vidflow, last tenth, resumed": read_resumed,
}


def synthetic(folder: Path) -> Path:
    """A clip like a camera's: 1280x720 H.264, 250 frames, one keyframe in 10 s, a moving gradient."""
    import numpy as np  # noqa: PLC0415  (only where no video is given)

    path = folder / "synthetic.mp4"
    y, x = np.mgrid[0:720, 0:1280]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.options = {"g": "250", "bf": "2", "preset": "veryfast", "crf": "23"}
        for i in range(250):
            picture = np.stack([(x + 5 * i) % 256, (y + 3 * i) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def prepare(path: Path) -> int:
    """Checks that both give the same pts, notes the late resume point, and returns the number of frames."""
    with av.open(path) as container:
        expected = [frame.pts for frame in container.decode(video=0)]
    with open_video(str(path)) as video:
        kept = [
            (k.pts, ResumePoint(k.frame_number + 1, k.origin_pts, format_time_base(k.time_base), k.pts, k.time_s))
            for k in read_kept_frames(video)
            if isinstance(k, KeptFrame)
        ]
    assert [pts for pts, _ in kept] == expected, "vidflow and PyAV give different frames"
    _resume_points[path] = kept[len(kept) * 9 // 10][1]
    return len(kept)


@dataclass(frozen=True)
class Durations:
    wall_s: float
    cpu_s: float


def measure(path: Path, rounds: int, threads: int) -> dict[str, list[Durations]]:
    """What each way took in each round; the first round is thrown away."""
    taken: dict[str, list[Durations]] = {name: [] for name in METHODS}
    for number in range(rounds + 1):
        for name in random.sample(list(METHODS), len(METHODS)):
            wall, cpu = time.perf_counter(), time.process_time()
            METHODS[name](path, threads)
            if number:
                taken[name].append(Durations(time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def table(frames: int, taken: dict[str, list[Durations]]) -> None:
    print(f"{'way':36}{'ms':>8}{'span':>14}{'CPU ms':>8}{'span':>14}{'frames/CPU s':>14}{'x bare':>8}{'span':>14}")
    base = [each.cpu_s for each in taken["bare PyAV, all"]]
    for name, each in taken.items():
        wall, cpu = [one.wall_s for one in each], [one.cpu_s for one in each]
        ratios = [own / bare for own, bare in zip(cpu, base, strict=True)]
        print(
            f"{name:36}{milliseconds(wall)}{milliseconds(cpu)}{frames / statistics.median(cpu):14.0f}"
            f"{statistics.median(ratios):8.2f}{f'{min(ratios):.2f} to {max(ratios):.2f}':>14}"
        )


def milliseconds(seconds: list[float]) -> str:
    span = f"{min(seconds) * 1000:.0f} to {max(seconds) * 1000:.0f}"
    return f"{statistics.median(seconds) * 1000:8.0f}{span:>14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="a video file; without one a clip is made")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="decoding threads; 0: as many as FFmpeg likes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.video or synthetic(Path(folder))
        frames = prepare(path)
        print(f"{path.name}: {frames} frames, {given.rounds} rounds, {given.threads} thread(s)")
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, PyAV {av.__version__}")
        table(frames, measure(path, given.rounds, given.threads))


if __name__ == "__main__":
    main()
