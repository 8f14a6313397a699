"""The first step of a worker: read a source as numbered frames, grouped into batches for the model.

infra/video selects the frames to keep. This module drops the poisonous ones that the scenario skips, numbers the rest and
yields the frames that warm up a stateful model first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.live_end import LiveLimits
from vidflow.domain.messages import ClockChanges, Deploy, GapReason, ResumePoint
from vidflow.domain.redaction import redact
from vidflow.domain.source_access import SourceAccess
from vidflow.domain.source_schemes import SCHEMES, find_scheme, is_always_live
from vidflow.infra import video as videos
from vidflow.infra.video import FrameGap, Interruption, KeptFrame, Video, live_detection, open_video
from vidflow.infra.video.camera_answer import require_answer
from vidflow.infra.video.hls_file import HlsPosition
from vidflow.infra.video.live import LiveReader
from vidflow.infra.video.warmup import read_warmup_frames
from vidflow.roles.worker.prepared_pictures import PicturePreparation, PreparedPicture
from vidflow.roles.worker.source_path import build_camera_refusal, resolve_source

MAX_BATCH_WAIT_S: Final = 0.25
"""Longest time a partial batch waits before it is inferred, so that results come soon even if frames are rare."""
FATAL_LIVE_CODES: Final = frozenset(
    {"source_unauthorized", "source_denied", "source_refused", "source_tls", "source_forbidden", "source_encrypted"}
)
"""Errors of a live source that no later attempt mends. It is waited for after any other one."""


class NumberedFrame(msgspec.Struct, frozen=True):
    """A kept frame and its number in the scenario, which does not count skipped frames.

    `prepared`: the frame's picture as the model gets it, None if that is the frame itself.
    """

    number: int
    frame: KeptFrame
    prepared: PreparedPicture | None = None

    @property
    def picture(self) -> KeptFrame | PreparedPicture:
        """The picture for the model."""
        return self.prepared or self.frame


class FrameBatch(msgspec.Struct, frozen=True):
    """Frames for one inference, in order. Those of a warm-up give no results."""

    frames: tuple[NumberedFrame, ...]
    is_warmup: bool = False

    @property
    def size_bytes(self) -> int:
        """The memory of its pictures."""
        return sum(numbered.picture.size_bytes for numbered in self.frames)


def open_source(
    deploy: Deploy, media_root: Path | None, *, any_file: bool, access: SourceAccess, interruption: Interruption
) -> Video:
    """Open the source if this runner may read it (see `resolve_source`).

    Raises SourceError, Unavailable if a retry may help, or ReadingStopped.
    """
    return open_video(
        resolve_source(deploy.source, media_root, any_file=any_file),
        expected_identity=deploy.resume.identity,
        follow_s=deploy.parameters.follow_s if deploy.parameters.follow else None,
        stream=deploy.parameters.stream,
        was_read=deploy.resume.next_frame > 0 or deploy.resume.identity is not None,
        access=access,
        interruption=interruption,
    )


def is_live(deploy: Deploy, *, access: SourceAccess, interruption: Interruption) -> bool:
    """Return whether the source is live: as it was when it was first opened, as the scenario says, or as the source shows.

    Raises ReadingStopped.
    """
    if is_always_live(deploy.source) or access.names_device(deploy.source):
        return True
    stated = deploy.parameters.live if deploy.resume.live is None else deploy.resume.live
    return live_detection.is_live(deploy.source, access, interruption) if stated is None else stated


def open_live(deploy: Deploy, capacity: int, *, access: SourceAccess, interruption: Interruption) -> LiveReader:
    """Return a reader of a live source, which waits for the source as long as it takes. `capacity`: frames that may wait at most.

    Raises SourceError for a path that is not that of an allowed camera.
    """
    if find_scheme(deploy.source) not in SCHEMES and not access.names_device(deploy.source):
        raise build_camera_refusal(deploy.source)
    codes = FATAL_LIVE_CODES if deploy.parameters.stream is None else FATAL_LIVE_CODES | {"source_no_video_stream"}
    return LiveReader(
        partial(
            open_video,
            deploy.source,
            stream=deploy.parameters.stream,
            live=True,
            hls_position=HlsPosition(),
            access=access,
        ),
        display_name=redact(deploy.source),
        is_fatal=lambda error: error.code in codes or not isinstance(error, SourceError | Unavailable),
        rate=parse_frame_rate(deploy.fps),
        resume=deploy.resume,
        capacity=capacity,
        limits=LiveLimits.from_parameters(deploy.parameters),
        require_answer=partial(require_answer, deploy.source, access, interruption),
    )


def end_after(
    steps: Iterable[FrameBatch | NumberedFrame | FrameGap | ClockChanges], duration_s: float | None
) -> Iterator[FrameBatch | NumberedFrame | FrameGap | ClockChanges]:
    """Yield the steps before `duration_s` (None: all). A gap that lasts longer ends there, with an unknown number of frames.

    Jumps of the clock count up to the frame that shows that the end has come, since its time follows from them.
    """
    for step in steps:
        if duration_s is not None and isinstance(step, NumberedFrame) and step.frame.time_s >= duration_s:
            if step.frame.clock_jumps:
                yield ClockChanges(duration_s, step.frame.clock_jumps)
            return
        if duration_s is not None and isinstance(step, FrameGap) and step.to_s > duration_s:
            if step.from_s < duration_s:
                yield replace(step, to_s=duration_s, frames=None)
            return
        yield step


def group_newest(steps: Iterable[KeptFrame | FrameGap]) -> Iterator[FrameBatch | FrameGap]:
    """Yield gaps, and the frames between two of them as one batch."""
    batch: list[NumberedFrame] = []
    for step in steps:
        if isinstance(step, KeptFrame):
            batch.append(NumberedFrame(step.frame_number, step))
            continue
        if batch:
            yield FrameBatch(tuple(batch))
            batch = []
        yield step
    if batch:
        yield FrameBatch(tuple(batch))


def read_numbered_frames(
    video: Video, rate: Fraction | None, deploy: Deploy, warmup_frames: int
) -> Iterator[FrameBatch | NumberedFrame | FrameGap | ClockChanges]:
    """Yield a warm-up batch if needed, then frames from the resume point's number on, and gaps, in order. Last are late clock jumps.

    A gap carries the number of the last frame before it. `warmup_frames`: how many frames before the resume point the model needs
    to see, so that its results equal those of an uninterrupted run.
    """
    resume, warmup_count = deploy.resume, min(warmup_frames, deploy.resume.next_frame)
    on_corrupt = deploy.parameters.on_corrupt
    skipped_before = (
        sum(skip.frames for skip in deploy.skips if skip.after_pts != resume.last_pts) if resume.next_frame else 0
    )
    if not warmup_count:
        yield from _read_from_resume(video, rate, deploy, skipped_before)
        return
    warmup = None if skipped_before else read_warmup_frames(video, rate, resume, warmup_count, on_corrupt)
    video.restart()
    if warmup is None:
        yield from _read_from_start(video, rate, deploy, warmup_count)
        return
    yield _build_warmup_batch(NumberedFrame(frame.frame_number, frame) for frame in warmup)
    yield from _read_from_resume(video, rate, deploy, skipped_before)


def _read_from_resume(
    video: Video, rate: Fraction | None, deploy: Deploy, skipped_before: int
) -> Iterator[NumberedFrame | FrameGap | ClockChanges]:
    """`skipped_before`: kept frames before the resume point that were skipped and have no number."""
    resume = msgspec.structs.replace(deploy.resume, next_frame=deploy.resume.next_frame + skipped_before)
    kept = videos.read_kept_frames(video, rate, resume, deploy.parameters.on_corrupt)
    return _assign_numbers(kept, deploy, skipped_before)


def _read_from_start(
    video: Video, rate: Fraction | None, deploy: Deploy, warmup_frames: int
) -> Iterator[FrameBatch | NumberedFrame | FrameGap | ClockChanges]:
    """Decode the source from its start, which is slow but works for every source."""
    from_start = msgspec.structs.replace(deploy, resume=ResumePoint(identity=deploy.resume.identity))
    first, warmup = deploy.resume.next_frame, deque[NumberedFrame](maxlen=warmup_frames)
    late: list[FrameGap | ClockChanges] = []  # after the last stored frame
    kept = videos.read_kept_frames(video, rate, from_start.resume, deploy.parameters.on_corrupt)
    for step in _assign_numbers(kept, from_start, 0):
        if isinstance(step, ClockChanges):
            late.append(step)
            continue
        number = step.after_frame + 1 if isinstance(step, FrameGap) else step.number
        if warmup and number >= first:
            if isinstance(step, FrameGap):
                late.append(step)
                continue
            yield _build_warmup_batch(warmup)
            warmup.clear()
            yield from late
            late.clear()
        if number >= first:
            yield step
        elif isinstance(step, NumberedFrame):
            warmup.append(step)
    yield from late


def _build_warmup_batch(frames: Iterable[NumberedFrame]) -> FrameBatch:
    return FrameBatch(tuple(frames), is_warmup=True)


def _assign_numbers(
    kept: Iterable[KeptFrame | FrameGap | ClockChanges], deploy: Deploy, skipped_before: int
) -> Iterator[NumberedFrame | FrameGap | ClockChanges]:
    """Yield frames and gaps with the scenario's numbers. Frames covered by a skip are dropped and reported as a gap."""
    skips = {skip.after_pts: skip.frames for skip in deploy.skips}
    last_pts, last_number = deploy.resume.last_pts, deploy.resume.next_frame - 1
    to_skip = skips.pop(last_pts, 0)
    skipped: list[KeptFrame] = []
    jumps, jumped_s = 0, 0.0  # of the clock, since the last frame
    for step in kept:
        if isinstance(step, FrameGap):
            yield replace(step, after_frame=last_number)
            continue
        if isinstance(step, ClockChanges):
            jumps, jumped_s = jumps + step.jumps, step.time_s
            continue
        if to_skip:
            skipped.append(step)
            jumps, jumped_s = jumps + step.clock_jumps, step.time_s
            to_skip, skipped_before = to_skip - 1, skipped_before + 1
            if not to_skip:
                yield _build_skip_gap(last_number, skipped)
                skipped = []
            continue
        last_pts, last_number = step.pts, step.frame_number - skipped_before
        yield NumberedFrame(last_number, replace(step, clock_jumps=step.clock_jumps + jumps) if jumps else step)
        jumps = 0
        to_skip = skips.pop(last_pts, 0)
    if skipped:
        yield _build_skip_gap(last_number, skipped)
    if jumps:
        yield ClockChanges(jumped_s, jumps)


def _build_skip_gap(after_frame: int, frames: list[KeptFrame]) -> FrameGap:
    return FrameGap(after_frame, frames[0].time_s, frames[-1].time_s, len(frames), GapReason.SKIPPED)


def group_into_batches(
    steps: Iterable[FrameBatch | NumberedFrame | FrameGap | ClockChanges], size: int, singles: int
) -> Iterator[FrameBatch | FrameGap | ClockChanges]:
    """Yield the steps with frames grouped into batches of `size`. The first `singles` frames are batches of one.

    A batch closes early before a gap, and when its first frame has waited for `MAX_BATCH_WAIT_S`.
    """
    batch: list[NumberedFrame] = []
    since_s = 0.0
    for step in steps:
        if not isinstance(step, NumberedFrame):
            if batch:
                yield FrameBatch(tuple(batch))
                batch = []
            yield step
            continue
        since_s = since_s if batch else time.monotonic()
        batch.append(step)
        if singles > 0 or len(batch) >= size or time.monotonic() - since_s > MAX_BATCH_WAIT_S:
            yield FrameBatch(tuple(batch))
            batch, singles = [], singles - 1
    if batch:
        yield FrameBatch(tuple(batch))


def prepare_pictures(
    batches: Iterable[FrameBatch | FrameGap | ClockChanges], preparation: PicturePreparation
) -> Iterator[FrameBatch | FrameGap | ClockChanges]:
    """Yield the steps with the pictures of their frames prepared for the model."""
    for step in batches:
        if isinstance(step, FrameBatch):
            frames = (msgspec.structs.replace(n, prepared=preparation.prepare(n.frame)) for n in step.frames)
            yield FrameBatch(tuple(frames), step.is_warmup)
        else:
            yield step
