"""Warnings of a scenario: what was assumed about its source or is wrong with it. They do not stop the scenario.

The inbox counts them from the messages that it stores, so that a resumed or repeated run counts nothing twice.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

MAX_COUNT: Final = 2**53 - 1
"""Counts stop here, the largest integer that every JSON reader keeps exact."""


class WarningCode(StrEnum):
    """What a warning is about."""

    TIME_ADJUSTED = "time_adjusted"
    FRAMES_DAMAGED = "frames_damaged"
    CLOCK_DRIFT = "clock_drift"


class ScenarioWarning(msgspec.Struct, frozen=True):
    """How often something occurred, and where first and last: the number of a kept frame, and the seconds since the first frame.

    If the frame is missing, its number is that of the next kept frame, whether there is one or not. `offset_s`: of a CLOCK_DRIFT,
    how far the source's clock was ahead of the runner's at the last occurrence; None if only its speed is known.
    """

    code: WarningCode
    count: int
    first_frame: int
    first_s: float
    last_frame: int
    last_s: float
    offset_s: float | None = None


Warnings = tuple[ScenarioWarning, ...]
"""At most one per code."""


def add_occurrences(
    warnings: Warnings, code: WarningCode, count: int, frame: int, time_s: float, offset_s: float | None = None
) -> Warnings:
    """Return the warnings after `count` occurrences at a place. A place not after the last one is counted already.

    Messages arrive in the order of the video, and only the gaps after the last stored frame are reported again.
    """
    known = next((warning for warning in warnings if warning.code is code), None)
    if known is None:
        return (*warnings, ScenarioWarning(code, count, frame, time_s, frame, time_s, offset_s))
    if (frame, time_s) <= (known.last_frame, known.last_s):
        return warnings
    changed = msgspec.structs.replace(
        known, count=min(known.count + count, MAX_COUNT), last_frame=frame, last_s=time_s, offset_s=offset_s
    )
    return tuple(changed if warning is known else warning for warning in warnings)


def describe_warning(warning: ScenarioWarning) -> str:
    """Return the warning as a sentence with what to do."""
    place = f"first at {warning.first_s:.3f} s (frame {warning.first_frame})"
    if warning.code is WarningCode.TIME_ADJUSTED:
        return (
            f"The clock of the source jumped {_times(warning.count)}, {place}. Time went on by one frame duration each time (of a"
            " live source by when its frames arrived), so times after it may differ from those of the source. Check how the source was"
            " recorded or joined, or the camera's clock."
        )
    if warning.code is WarningCode.CLOCK_DRIFT:
        return (
            f"The clock of the source {_describe_drift(warning)}, {place}. `time_s` is by the runner's clock, and `captured_at` of"
            " frames with `captured_by: rtcp` by that of the source. Set both by NTP."
        )
    return (
        f"{_frames(warning.count)} damaged in the source, {place}. Stored ones have `corrupt: true`, missing ones are in"
        " the list of gaps. Check the source's disk or network, or copy it again."
    )


def _describe_drift(warning: ScenarioWarning) -> str:
    times = "" if warning.count == 1 else f" ({warning.count} times)"
    if warning.offset_s is None:
        return f"runs faster or slower than the runner's, so that they differed by 2 s{times}"
    order = "after" if warning.offset_s > 0 else "before"
    return f"shows a time {abs(warning.offset_s):.1f} s {order} that of the runner{times}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _frames(count: int) -> str:
    return "1 frame is" if count == 1 else f"{count} frames are"
