"""What a message from a worker makes of a scenario's progress: the inbox's decision. Not how it is stored.

The rows of a scenario are always 0 … next_frame - 1, and are never rewritten. So one number decides: the message's own is
next_frame (new), lower (a repeat) or higher (a hole below it: nothing behind a hole is stored).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from vidflow.domain.messages import End, EndReason, Frame, Gap, Result, SourceOpened


class Progress(msgspec.Struct, frozen=True):
    """How far a scenario's results are stored, under which epoch, and what the inbox noted on the way.

    `next_frame` is the lowest number not stored. `end_*` is the newest end marker, `hole_epoch` the newest epoch in which a
    hole was seen, `repeats` a count.
    """

    epoch: int = 0
    closed: bool = False
    next_frame: int = 0
    origin_pts: int | None = None
    time_base: str | None = None
    last_pts: int | None = None
    last_time_s: float | None = None
    last_at: str | None = None
    end_epoch: int | None = None
    end_last_frame: int | None = None
    end_reason: EndReason | None = None
    hole_epoch: int | None = None
    repeats: int = 0
    opened: SourceOpened | None = None


class Verdict(StrEnum):
    """What becomes of a message."""

    STORED = "stored"
    REPEAT = "repeat"
    HOLE = "hole"
    IGNORED = "ignored"


def advance(progress: Progress, message: Result) -> tuple[Progress, Verdict]:
    """The progress after `message`, and whether the message itself is to be stored.

    A closed scenario takes nothing, and neither does one whose counting epoch is newer than the message's.
    """
    if progress.closed or message.epoch < progress.epoch:
        return progress, Verdict.IGNORED
    if isinstance(message, SourceOpened):
        return _apply_opened(progress, message)
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
        return progress, Verdict.STORED
    return _apply_frame(progress, message), Verdict.STORED


def _number(message: Frame | Gap | End) -> int:
    """The number that must be the next one for the message to be stored: a gap or an end stands behind the frame it names."""
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


def _apply_frame(progress: Progress, frame: Frame) -> Progress:
    return msgspec.structs.replace(
        progress,
        next_frame=frame.frame_number + 1,
        origin_pts=frame.origin_pts,
        time_base=frame.time_base,
        last_pts=frame.pts,
        last_time_s=frame.time_s,
        last_at=frame.at,
    )


def _max_epoch(epoch: int | None, other: int) -> int:
    return other if epoch is None else max(epoch, other)


def is_complete(progress: Progress) -> bool:
    """Whether all frames are stored: the end of the video, told by the counting epoch, and no number missing below it."""
    return (
        progress.end_reason is EndReason.FINISHED
        and progress.end_epoch == progress.epoch
        and progress.end_last_frame is not None
        and progress.next_frame == progress.end_last_frame + 1
    )


def has_end_marker(progress: Progress) -> bool:
    """Whether an end marker of the counting epoch is stored, whatever its reason: nothing of that epoch comes behind it."""
    return progress.end_epoch == progress.epoch


def has_hole(progress: Progress) -> bool:
    """Whether the counting epoch sent something behind a number that is missing."""
    return progress.hole_epoch == progress.epoch
