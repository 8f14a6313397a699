"""How a worker's message changes the progress of its scenario. The inbox decides by it what to store.

The stored rows of a scenario are always 0 … next_frame - 1 and are never rewritten. The number of a message decides: if it is
next_frame, the message is new; if lower, a repeat; if higher, frames are missing. Nothing after such a hole is stored. Gaps are
part of the message that follows them, so they are stored with it, or missed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from vidflow.domain.live_clock import CaptureTime, compute_offset_s
from vidflow.domain.messages import (
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
    number = message.previous_frame + 1
    if number > progress.next_frame:
        return msgspec.structs.replace(
            progress, hole_epoch=_max_epoch(progress.hole_epoch, message.epoch)
        ), Verdict.HOLE
    if isinstance(message, End):
        return _apply_end(progress, message)
    if number < progress.next_frame:
        return msgspec.structs.replace(progress, repeats=progress.repeats + 1), Verdict.REPEAT
    return _apply_frame(progress, message), Verdict.STORED


def select_gaps(progress: Progress, message: Frame | End) -> tuple[Gap, ...]:
    """Return the gaps to store with a message that is stored. `progress` is that before it.

    An end marker may be stored although its epoch is not the only one that sent frames. Its gaps may overlap them then.
    """
    return message.gaps if message.previous_frame + 1 == progress.next_frame else ()


def _apply_opened(progress: Progress, message: SourceOpened) -> tuple[Progress, Verdict]:
    if progress.opened is not None and progress.opened.epoch >= message.epoch:
        return progress, Verdict.REPEAT
    return msgspec.structs.replace(progress, opened=message), Verdict.STORED


def _apply_end(progress: Progress, message: End) -> tuple[Progress, Verdict]:
    if progress.end_epoch is not None and progress.end_epoch >= message.epoch:
        return msgspec.structs.replace(progress, repeats=progress.repeats + 1), Verdict.REPEAT
    after = msgspec.structs.replace(
        progress,
        end_epoch=message.epoch,
        end_last_frame=message.last_frame,
        end_reason=message.reason,
        warnings=_count_until_end(progress, message),
    )
    return after, Verdict.STORED


def _count_until_end(progress: Progress, end: End) -> Warnings:
    """Return the warnings after what came between the last stored frame and the end."""
    number, clock = end.last_frame + 1, end.clock
    warnings = _count_damaged(progress.warnings, select_gaps(progress, end), number)
    if clock is None or number != progress.next_frame:
        return warnings
    if clock.jumps:
        warnings = add_occurrences(warnings, WarningCode.TIME_ADJUSTED, clock.jumps, number, clock.time_s)
    if clock.drifts:
        warnings = add_occurrences(
            warnings, WarningCode.CLOCK_DRIFT, clock.drifts, number, clock.time_s, clock.offset_s
        )
    return warnings


def _count_damaged(warnings: Warnings, gaps: Sequence[Gap], number: int) -> Warnings:
    for gap in gaps:
        if gap.reason is GapReason.CORRUPT:
            warnings = add_occurrences(warnings, WarningCode.FRAMES_DAMAGED, gap.frames or 1, number, gap.from_s)
    return warnings


def _apply_frame(progress: Progress, frame: Frame) -> Progress:
    warnings = _count_damaged(progress.warnings, frame.gaps, frame.frame_number)
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
    if frame.captured_us is None or frame.captured_by is None:
        return None
    return compute_offset_s(CaptureTime(frame.captured_us, frame.captured_by), frame.pts)


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
