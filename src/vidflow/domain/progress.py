"""How a worker's message changes the progress of its scenario. The inbox decides by it what to store.

The stored rows of a scenario are always 0 … next_frame - 1 and are never rewritten. The number of a message decides: if it is
next_frame, the message is new; if lower, a repeat; if higher, frames are missing. Nothing after such a hole is stored.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from vidflow.domain.live_clock import CAPTURE_TIME_BASE, MAX_OFFSET_US
from vidflow.domain.messages import (
    CaptureClock,
    End,
    EndReason,
    Frame,
    Gap,
    GapReason,
    Result,
    SourceLost,
    SourceOpened,
)
from vidflow.domain.warnings import WarningCode, Warnings, add_occurrences


class Progress(msgspec.Struct, frozen=True):
    """How far the results of a scenario are stored, and its current epoch.

    `next_frame` is the lowest frame number not stored. The `last_*` fields are those of the frame before it. The `end_*` fields
    are those of the newest end marker, `hole_epoch` is the newest epoch with a hole, `repeats` counts repeated messages. `lost`
    says why the live source has sent nothing since the last frame. A `closed` scenario stores nothing more.
    """

    epoch: int = 0
    closed: bool = False
    next_frame: int = 0
    origin_pts: int | None = None
    time_base: str | None = None
    last_pts: int | None = None
    last_time_s: float | None = None
    end_epoch: int | None = None
    end_last_frame: int | None = None
    end_reason: EndReason | None = None
    hole_epoch: int | None = None
    repeats: int = 0
    opened: SourceOpened | None = None
    warnings: Warnings = ()
    lost: SourceLost | None = None


class Verdict(StrEnum):
    """What happens to a message."""

    STORED = "stored"
    REPEAT = "repeat"
    HOLE = "hole"
    IGNORED = "ignored"


def advance(progress: Progress, message: Result) -> tuple[Progress, Verdict]:
    """Return the progress after `message` and what to do with the message itself.

    Messages of an epoch older than the current one are ignored, and so are all messages of a closed scenario.
    """
    if progress.closed or message.epoch < progress.epoch:
        return progress, Verdict.IGNORED
    if isinstance(message, SourceOpened):
        return _apply_opened(progress, message)
    if isinstance(message, SourceLost):
        return msgspec.structs.replace(progress, lost=message), Verdict.STORED
    number = _number(message)
    if number > progress.next_frame:
        return msgspec.structs.replace(
            progress, hole_epoch=_max_epoch(progress.hole_epoch, message.epoch)
        ), Verdict.HOLE
    if isinstance(message, End):
        return _apply_end(progress, message)
    if number < progress.next_frame:
        return msgspec.structs.replace(progress, repeats=progress.repeats + 1), Verdict.REPEAT
    if isinstance(message, Gap):
        return _apply_gap(progress, message), Verdict.STORED
    return _apply_frame(progress, message), Verdict.STORED


def _number(message: Frame | Gap | End) -> int:
    """Return the number that must equal next_frame for the message to be stored. A gap or an end follows the frame it names."""
    if isinstance(message, Frame):
        return message.frame_number
    return (message.after_frame if isinstance(message, Gap) else message.last_frame) + 1


def _apply_opened(progress: Progress, message: SourceOpened) -> tuple[Progress, Verdict]:
    if progress.opened is not None and progress.opened.epoch >= message.epoch:
        return progress, Verdict.REPEAT
    return msgspec.structs.replace(progress, opened=message), Verdict.STORED


def _apply_end(progress: Progress, message: End) -> tuple[Progress, Verdict]:
    if progress.end_epoch is not None and progress.end_epoch >= message.epoch:
        return msgspec.structs.replace(progress, repeats=progress.repeats + 1), Verdict.REPEAT
    after = msgspec.structs.replace(
        progress, end_epoch=message.epoch, end_last_frame=message.last_frame, end_reason=message.reason
    )
    return after, Verdict.STORED


def _apply_gap(progress: Progress, gap: Gap) -> Progress:
    if gap.reason is not GapReason.CORRUPT:
        return progress
    warnings = add_occurrences(
        progress.warnings, WarningCode.FRAMES_DAMAGED, gap.frames or 1, gap.after_frame + 1, gap.from_s
    )
    return progress if warnings is progress.warnings else msgspec.structs.replace(progress, warnings=warnings)


def _apply_frame(progress: Progress, frame: Frame) -> Progress:
    warnings = progress.warnings
    if frame.clock_jumps:
        warnings = add_occurrences(
            warnings, WarningCode.TIME_ADJUSTED, frame.clock_jumps, frame.frame_number, frame.time_s
        )
    if frame.clock_drifts:
        warnings = add_occurrences(
            warnings,
            WarningCode.CLOCK_DRIFT,
            frame.clock_drifts,
            frame.frame_number,
            frame.time_s,
            _clock_offset_s(frame),
        )
    if frame.corrupt:
        warnings = add_occurrences(warnings, WarningCode.FRAMES_DAMAGED, 1, frame.frame_number, frame.time_s)
    return msgspec.structs.replace(
        progress,
        next_frame=frame.frame_number + 1,
        origin_pts=frame.origin_pts,
        time_base=frame.time_base,
        last_pts=frame.pts,
        last_time_s=frame.time_s,
        warnings=warnings,
        lost=None,
    )


def _clock_offset_s(frame: Frame) -> float | None:
    """Return how far the camera's clock is ahead of the runner's, by which the pts of a live source are. None if it agrees."""
    if frame.captured_us is None or frame.captured_by is not CaptureClock.RTCP:
        return None
    offset_us = frame.captured_us - frame.pts
    return float(offset_us * CAPTURE_TIME_BASE) if abs(offset_us) > MAX_OFFSET_US else None


def _max_epoch(epoch: int | None, other: int) -> int:
    return other if epoch is None else max(epoch, other)


def is_complete(progress: Progress) -> bool:
    """Return whether the current epoch reached the end of the video and every frame up to it is stored."""
    return (
        progress.end_reason is EndReason.FINISHED
        and progress.end_epoch == progress.epoch
        and progress.end_last_frame is not None
        and progress.next_frame == progress.end_last_frame + 1
    )


def has_end_marker(progress: Progress) -> bool:
    """Return whether the end marker of the current epoch is stored, for any reason. No message of that epoch follows it."""
    return progress.end_epoch == progress.epoch


def has_hole(progress: Progress) -> bool:
    """Return whether a message of the current epoch arrived whose preceding frames are missing."""
    return progress.hole_epoch == progress.epoch
