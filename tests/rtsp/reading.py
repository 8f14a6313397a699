"""Test support: read a camera with a LiveReader, and check what comes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from fractions import Fraction

import pytest
from tests.http_server import LOOPBACK

from vidflow.domain.frame_rate import format_frame_rate
from vidflow.domain.messages import Deploy, GapReason, ResumePoint
from vidflow.infra.video import FrameGap, KeptFrame
from vidflow.infra.video.live import LiveReader
from vidflow.roles.worker.read import open_live

Steps = list[KeptFrame | FrameGap]
LIMIT_S = 60.0


def reader(url: str, rate: Fraction | None = None, resume: ResumePoint | None = None, capacity: int = 1) -> LiveReader:
    """Return the reader that a worker uses."""
    deploy = Deploy("", 1, url, "motion", fps=format_frame_rate(rate), resume=resume or ResumePoint())
    return open_live(deploy, capacity, access=LOOPBACK, interruption=threading.Event())


def take_until(live: LiveReader, is_enough: Callable[[Steps], bool], limit_s: float = LIMIT_S) -> Steps:
    """Take frames and gaps until they are enough."""
    taken: Steps = []
    deadline_s = time.monotonic() + limit_s
    while not is_enough(taken):
        assert time.monotonic() < deadline_s, taken[-3:]
        taken += live.take(0.25)
    return taken


def frames(taken: Iterable[object]) -> list[KeptFrame]:
    return [step for step in taken if isinstance(step, KeptFrame)]


def gaps(taken: Steps, reason: GapReason) -> list[FrameGap]:
    return [step for step in taken if isinstance(step, FrameGap) and step.reason is reason]


def has_frames(count: int) -> Callable[[Steps], bool]:
    return lambda taken: len(frames(taken)) >= count


def has_gap(*reasons: GapReason) -> Callable[[Steps], bool]:
    """Return whether there is a gap for one of the reasons, and a frame at the end."""
    return lambda taken: any(gaps(taken, reason) for reason in reasons) and isinstance(taken[-1], KeptFrame)


def assert_accounted_for(taken: Steps, fps: int = 25) -> None:
    """Assert that time goes on, and that frames and gaps together are all frames of the camera's rate."""
    times = [step.time_s if isinstance(step, KeptFrame) else step.from_s for step in taken]
    assert times == sorted(times)
    kept = frames(taken)
    assert [frame.frame_number for frame in kept] == list(range(kept[0].frame_number, kept[-1].frame_number + 1))
    missing = sum(step.frames or 0 for step in taken[taken.index(kept[0]) :] if isinstance(step, FrameGap))
    assert len(kept) + missing == pytest.approx((kept[-1].time_s - kept[0].time_s) * fps + 1, abs=2)
