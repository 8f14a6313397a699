"""The kept frames just before a resume point: what a stateful model is shown first. Not the frames behind it: frames.py.

They are found by seeking. Only frames that surely are the first of their cells count: where a seek lands in the middle of a
cell, that cell is passed over. Nothing is sure where the way does not begin at a whole picture, where something is lost on it,
or where the stored frame itself does not come by: then there is no answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import av
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter

from vidflow.domain.messages import ResumePoint
from vidflow.domain.sampling import USUAL_RATE, Sampler, SeekToPts, build_timeline, plan_resume
from vidflow.infra.video.frames import KeptFrame
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.pixels import displayed_size, read_orientation
from vidflow.infra.video.source import SourceInfo

MAX_SEEK_BACK_S: Final = 3600
"""A longer way back is not looked for: a day's worth of frames is no warm-up."""
MIN_SEEK_BACK_S: Final = 2


def read_warmup_frames(video: Video, rate: Fraction | None, resume: ResumePoint, count: int) -> list[KeptFrame] | None:
    """The last `count` kept frames up to the stored one that `resume` names, in order; None where seeking cannot tell them.

    The video stands anywhere afterwards: restart it before it is read.
    """
    source = video.source
    start = Sampler(build_timeline(source.time_base, source.average_rate), rate)
    point = plan_resume(resume, start, seekable=source.seekable)
    if not isinstance(point, SeekToPts):
        return None
    usual_s = Fraction(count + 1) / (rate or source.average_rate or USUAL_RATE)
    for way_s in (max(usual_s * 2, Fraction(MIN_SEEK_BACK_S)), max(usual_s * 8, Fraction(MIN_SEEK_BACK_S * 8))):
        if way_s > MAX_SEEK_BACK_S:
            return None
        try:
            events = video.seek(point.last_pts - math.ceil(way_s / source.time_base))
            found = _read_up_to(point, events, source, rate, count)
        except (av.error.FFmpegError, OverflowError):
            return None
        if found is not None and len(found) == count:
            return found
    return None


def _read_up_to(
    point: SeekToPts, events: Iterator[VideoFrame | LostPacket], source: SourceInfo, rate: Fraction | None, count: int
) -> list[KeptFrame] | None:
    """The last kept frames of `events` up to the stored one, at most `count`; None where that one does not come by."""
    sampler = Sampler(point.sampler.timeline, rate)
    found: deque[KeptFrame] = deque(maxlen=count)
    scaler = VideoReformatter()
    begun = False
    for event in events:
        if isinstance(event, LostPacket) or event.pts is None or not (begun or _is_independent(event)):
            return None
        sampler, kept = sampler.sample_frame(event.pts)
        tick = sampler.timeline.tick or 0
        # The cell in which the seek landed may have begun before it, unless that is where the video begins.
        if kept and (begun or rate is None or tick == sampler.timeline.origin):
            found.append(_build_kept_frame(event, sampler, source, tick, scaler))
        begun = begun or kept
        if tick >= point.last_pts:
            return (
                _number_frames(found, point.sampler.next_frame)
                if found and found[-1].pts == point.last_pts == tick
                else None
            )
    return None


def _build_kept_frame(
    frame: VideoFrame, sampler: Sampler, source: SourceInfo, tick: int, scaler: VideoReformatter
) -> KeptFrame:
    placed = sampler.timeline
    orientation = read_orientation(frame)
    width, height = displayed_size(frame, orientation)
    return KeptFrame(
        0, tick, source.time_base, placed.origin or 0, float(placed.seconds_since_start(tick)), width, height, frame, orientation, scaler
    )  # fmt: skip


def _is_independent(frame: VideoFrame) -> bool:
    """Whether the frame leans on no other."""
    return bool(frame.key_frame) and frame.pict_type in {PictureType.NONE, PictureType.I}


def _number_frames(found: deque[KeptFrame], next_frame: int) -> list[KeptFrame]:
    first = next_frame - len(found)
    return [
        KeptFrame(
            first + place, frame.pts, frame.time_base, frame.origin_pts, frame.time_s, frame.width, frame.height,
            frame.decoded, frame.orientation, frame.scaler,
        )
        for place, frame in enumerate(found)
    ]  # fmt: skip
