"""The work of scenarios in the fault suite: a clip or a camera, a model, a frame rate, and the number of frames to expect."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from tests import clips, slow_nets
from tests.faults import slow_motion
from tests.rtsp.camera import Camera

RATE: Final = 25
CAMERA_RATE: Final = 50
SHARED_ITERATIONS: Final = 6000
BOTTLES_AT_1_FPS: Final = 40


@dataclass(frozen=True)
class Workload:
    """What a scenario processes. `frames` is the number of frames to be kept, computed and not taken from a run.

    A camera has no end, so `frames` is None, and `live_rate` is the number of frames to be kept in each second. `is_shared`: the
    model can run in an inference process.
    """

    source: Path | str
    model: str
    fps: int | str
    frames: int | None
    live_rate: int | None = None
    is_shared: bool = False


def slow(folder: Path, frames: int) -> Workload:
    """A clip of which every frame is kept, at about 25 ms per frame regardless of the load on the machine."""
    return Workload(_clip(folder, "slow", frames), slow_motion.NAME, "all", frames)


def sampled(folder: Path, frames: int, fps: int = 5) -> Workload:
    """Every fifth frame of a clip with B-frames and long GOPs, as fast as `motion` can process it."""
    path = folder / f"sampled-{frames}.mp4"
    clips.long_gop_with_b_frames(path, frames * RATE // fps)
    return Workload(path, "motion", fps, frames)


def shared(folder: Path, frames: int) -> Workload:
    """A clip of which every frame is kept, with a model that workers share, at about 25 ms per frame on an idle core."""
    model = slow_nets.write(folder, "shared", iterations=SHARED_ITERATIONS)
    return Workload(_clip(folder, "shared", frames), str(folder / f"{model}.toml"), "all", frames, is_shared=True)


def watched(camera: Camera) -> Workload:
    """Each frame of a camera, which sends them faster than `slow_motion` takes them: the others are dropped."""
    return Workload(camera.url, slow_motion.NAME, "all", None, camera.fps)


def watched_now_and_then(camera: Camera, fps: int = 5) -> Workload:
    """Some frames of a camera, as many as `motion` can process."""
    return Workload(camera.url, "motion", fps, None, fps)


def bottles(shared: Path) -> Workload:
    """A real clip and a real detector."""
    shared = shared.resolve()  # the API stores resolved paths
    source = shared / "videos/bottle-detection.mp4"
    return Workload(source, str(shared / "models/yolox_nano.toml"), 1, BOTTLES_AT_1_FPS)


def _clip(folder: Path, name: str, frames: int) -> Path:
    path = folder / f"{name}-{frames}.mp4"
    pictures = (clips.moving_square(index) for index in range(frames))
    return clips.write(path, pictures, [1000 // RATE * index for index in range(frames)], rate=Fraction(RATE))
