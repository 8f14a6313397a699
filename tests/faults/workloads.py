"""The work that scenarios of the fault suite do: a clip, a model, a frame rate, and how many frames that must give."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from tests import clips
from tests.faults import slow_motion

RATE: Final = 25
BOTTLES_AT_1_FPS: Final = 40


@dataclass(frozen=True)
class Workload:
    """`frames` is known beforehand, not from a run: the frames that are to be kept."""

    source: Path
    model: str
    fps: int | str
    frames: int


def slow(folder: Path, frames: int) -> Workload:
    """Some 25 ms a frame, whatever else the machine does; each frame of the clip is kept."""
    return Workload(_clip(folder, "slow", frames), slow_motion.NAME, "all", frames)


def sampled(folder: Path, frames: int, fps: int = 5) -> Workload:
    """Every fifth frame of a clip with B-frames and long GOPs, as quickly as `motion` can."""
    path = folder / f"sampled-{frames}.mp4"
    clips.long_gop_with_b_frames(path, frames * RATE // fps)
    return Workload(path, "motion", fps, frames)


def bottles(shared: Path) -> Workload:
    """A real clip and a real detector."""
    shared = shared.resolve()  # as the api stores it
    source = shared / "videos/bottle-detection.mp4"
    return Workload(source, str(shared / "models/yolox_nano.toml"), 1, BOTTLES_AT_1_FPS)


def _clip(folder: Path, name: str, frames: int) -> Path:
    path = folder / f"{name}-{frames}.mp4"
    pictures = (clips.moving_square(index) for index in range(frames))
    return clips.write(path, pictures, [1000 // RATE * index for index in range(frames)], rate=Fraction(RATE))
