"""Read the kept frames just before a resume point, to warm up a stateful model. frames.py reads those after it.

The frames are found by seeking. Only frames that are certain to be the first of their sampling cells count, so the cell in
which a seek lands is skipped. There is no result if the first frame is not a keyframe, if a packet is lost, or if the stored
frame itself is not found.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Final

import av
from av.video.frame import VideoFrame

from vidflow.domain.messages import CorruptPolicy, ResumePoint
from vidflow.domain.sampling import USUAL_RATE, Sampler, SeekToPts, plan_resume
from vidflow.infra.video.frames import KeptFrame, is_independent
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import Event
from vidflow.infra.video.pixels import displayed_size, read_orientation
from vidflow.infra.video.source import SourceInfo

MAX_SEEK_BACK_S: Final = 3600
"""Longest distance to seek back: at very low frame rates, a warm-up would mean decoding days of video."""
MIN_SEEK_BACK_S: Final = 2


def read_warmup_frames(
    video: Video, rate: Fraction | None, resume: ResumePoint, count: int, on_corrupt: CorruptPolicy = CorruptPolicy.KEEP
) -> list[KeptFrame] | None:
    """Return the last `count` kept frames up to the stored one in `resume`, in order; None if seeking cannot determine them.

    The video's position is undefined afterwards: restart it before reading from it.
    """
    source = video.source
    start = Sampler(source.build_timeline(), rate)
    point = plan_resume(resume, start, seekable=source.seekable)
    if not isinstance(point, SeekToPts):
        return None
    expected_s = Fraction(count + 1) / (rate or source.average_rate or USUAL_RATE)
    for distance_s in (
        max(expected_s * 2, Fraction(MIN_SEEK_BACK_S)),
        max(expected_s * 8, Fraction(MIN_SEEK_BACK_S * 8)),
    ):
        if distance_s > MAX_SEEK_BACK_S:
            return None
        try:
            events = video.seek(point.last_pts - math.ceil(distance_s / source.time_base))
            frames = _read_up_to(point, events, source, rate, count, on_corrupt)
        except (av.error.FFmpegError, OverflowError):
            return None
        if frames is not None and len(frames) == count:
            return frames
    return None


def _read_up_to(
    point: SeekToPts,
    events: Iterator[Event],
    source: SourceInfo,
    rate: Fraction | None,
    count: int,
    on_corrupt: CorruptPolicy,
) -> list[KeptFrame] | None:
    """Return the last kept frames of `events` up to the stored one, at most `count`; None if that one does not occur."""
    sampler = Sampler(point.sampler.timeline, rate)
    frames: deque[KeptFrame] = deque(maxlen=count)
    started = False
    for event in events:
        if not isinstance(event, VideoFrame) or event.pts is None or not (started or is_independent(event)):
            return None
        sampler, kept = sampler.sample_frame(event.pts)
        tick = sampler.timeline.tick or 0
        is_missing = event.is_corrupt and on_corrupt is CorruptPolicy.SKIP
        # The cell in which the seek landed may have started before that place, unless the video starts there.
        if kept and not is_missing and (started or rate is None or tick == sampler.timeline.origin):
            frames.append(_build_kept_frame(event, sampler, source, tick))
        started = started or kept
        if tick >= point.last_pts:
            return (
                _number_frames(frames, point.sampler.next_frame)
                if frames and frames[-1].pts == point.last_pts == tick
                else None
            )
    return None


def _build_kept_frame(frame: VideoFrame, sampler: Sampler, source: SourceInfo, tick: int) -> KeptFrame:
    timeline = sampler.timeline
    orientation = read_orientation(frame)
    width, height = displayed_size(frame, orientation, source.pixel_aspect, source.crop)
    return KeptFrame(
        0, tick, source.time_base, timeline.origin or 0, float(timeline.seconds_since_start(tick)),
        width, height, frame.is_corrupt, 0, frame, orientation, source.crop,
    )  # fmt: skip


def _number_frames(frames: deque[KeptFrame], next_frame: int) -> list[KeptFrame]:
    first = next_frame - len(frames)
    return [replace(frame, frame_number=first + index) for index, frame in enumerate(frames)]
