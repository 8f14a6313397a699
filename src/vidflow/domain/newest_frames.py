"""The newest frames of a live source, which a model that is slower than the camera takes instead of all of them.

What it passes over is reported: frames and gaps together are what sampling would have kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from vidflow.domain.messages import GapReason

T = TypeVar("T")

MAX_GAPS: Final = 100
"""Gaps that wait for the next frame. At this many, two are reported as one, so that a stuck model does not fill the memory."""


@dataclass(frozen=True, slots=True)
class LiveGap:
    """Frames that are missing from `from_s`, the time of the first of them, up to the next frame's time `to_s`.

    `frames` counts them; None if their number is unknown.
    """

    from_s: float
    to_s: float
    frames: int | None
    reason: GapReason


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    """A frame with its time, and the gaps before it."""

    item: T
    time_s: float
    gaps: tuple[LiveGap, ...]


class NewestFrames(Generic[T]):
    """A queue of the `capacity` newest frames, in order. A frame that would be one too many replaces the oldest."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[_Waiting[T]] = deque()
        self._gaps: list[LiveGap] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: T, time_s: float) -> None:
        """Add a frame, and drop the oldest if there are too many. The gaps added since the last frame end at this one."""
        self._waiting.append(_Waiting(item, time_s, _end_at(tuple(self._gaps), time_s)))
        self._gaps = []
        if len(self._waiting) > self._capacity:
            oldest = self._waiting.popleft()
            following = self._waiting[0]
            until_s = following.gaps[0].from_s if following.gaps else following.time_s
            dropped = LiveGap(oldest.time_s, until_s, 1, GapReason.DROPPED)
            gaps = _merge((*oldest.gaps, dropped, *following.gaps))
            self._waiting[0] = replace(following, gaps=gaps)

    def add_gap(self, from_s: float, frames: int | None, reason: GapReason) -> None:
        """Add a gap that lasts until the next frame, or until the next gap."""
        gaps = _end_at(tuple(self._gaps), from_s)
        self._gaps = list(_merge((*gaps, LiveGap(from_s, from_s, frames, reason))))

    def take(self) -> list[T | LiveGap]:
        """Remove and return the frames and the gaps before them, in order."""
        taken: list[T | LiveGap] = []
        while self._waiting:
            waiting = self._waiting.popleft()
            taken += [*waiting.gaps, waiting.item]
        return taken

    def drop_all(self, until_s: float) -> tuple[LiveGap, ...]:
        """Remove all frames and return what is missing then, up to `until_s`: the frames, as dropped, and the gaps before them."""
        gaps: tuple[LiveGap, ...] = ()
        while self._waiting:
            waiting = self._waiting.popleft()
            dropped = LiveGap(waiting.time_s, waiting.time_s, 1, GapReason.DROPPED)
            gaps = (*_end_at(gaps, waiting.gaps[0].from_s if waiting.gaps else waiting.time_s), *waiting.gaps, dropped)
        gaps, self._gaps = _end_at((*gaps, *self._gaps), until_s), []
        return _merge(gaps)


def _end_at(gaps: tuple[LiveGap, ...], time_s: float) -> tuple[LiveGap, ...]:
    """Return the gaps with the last one lasting until this time."""
    return (*gaps[:-1], replace(gaps[-1], to_s=max(time_s, gaps[-1].to_s))) if gaps else ()


def _merge(gaps: tuple[LiveGap, ...]) -> tuple[LiveGap, ...]:
    """Return the gaps with neighbours of one reason as one. If there are too many, the last two become one, whatever their reasons."""
    merged: list[LiveGap] = []
    for gap in gaps:
        if merged and (merged[-1].reason is gap.reason or len(merged) >= MAX_GAPS):
            last = merged[-1]
            frames = None if last.frames is None or gap.frames is None else last.frames + gap.frames
            merged[-1] = replace(last, to_s=max(last.to_s, gap.to_s), frames=frames)
        else:
            merged.append(gap)
    return tuple(merged)
