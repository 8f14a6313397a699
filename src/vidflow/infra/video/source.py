"""Describe a source by its header and its first frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.messages import FileIdentity
from vidflow.infra.video.pixels import displayed_size, read_orientation

_ZERO_BASED_DURATIONS: Final = frozenset({"matroska", "avi"})
"""Containers whose duration is the end time of the last frame: a video that starts at 5 s lasts 5 s less than that."""
_SEEKABLE_CONTAINERS: Final = frozenset({"mov", "matroska", "avi"})
"""Containers with an index, in which a seek by pts is reliable. In others a resumed run decodes from the start."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Properties of a source. A value is None if it is unknown.

    `width`, `height`: pixels of the first frame as displayed; the size may change midway. `rotation`: degrees clockwise by
    which the decoded picture is turned for display. `average_rate`: frames per second. `time_base`: seconds per tick.
    `duration_s`: from the first frame to the end. `frames_expected`: number of frames according to the header. `seekable`:
    whether seeks by pts are reliable. `live`: whether the source has no beginning to return to. `identity`: None if it is not
    a file.
    """

    width: int
    height: int
    rotation: int
    average_rate: Fraction | None
    time_base: Fraction
    duration_s: float | None
    frames_expected: int | None
    codec: str
    container: str
    seekable: bool
    live: bool
    identity: FileIdentity | None


def describe_source(
    container: InputContainer, stream: VideoStream, first: VideoFrame, *, live: bool, identity: FileIdentity | None
) -> SourceInfo:
    """Return the properties of an open stream, given its first frame."""
    orientation = read_orientation(first)
    width, height = displayed_size(first, orientation)
    return SourceInfo(
        width=width,
        height=height,
        rotation=-first.rotation % 360,
        average_rate=_rational_to_fraction(stream.average_rate) or _rational_to_fraction(stream.guessed_rate),
        # Raw streams and broken headers may have no time base. FFmpeg then counts in microseconds.
        time_base=_rational_to_fraction(stream.time_base) or Fraction(1, 1_000_000),
        duration_s=None if live else _duration_s(container, stream, first),
        frames_expected=None if live else stream.frames or None,
        codec=stream.codec_context.name,
        container=container.format.name,
        seekable=identity is not None and _family(container) in _SEEKABLE_CONTAINERS,
        live=live,
        identity=identity,
    )


def _rational_to_fraction(rational: Any) -> Fraction | None:  # noqa: ANN401  (a Fraction or None in PyAV 18, an AVRational in 19)
    return Fraction(rational.numerator, rational.denominator) if rational else None


def _duration_s(container: InputContainer, stream: VideoStream, first: VideoFrame) -> float | None:
    """Return the seconds from the first frame to the stream's end by the header; None if it states only other streams' ends."""
    time_base = _rational_to_fraction(stream.time_base)
    has_other_streams = any(s.index != stream.index and s.type in {"audio", "video"} for s in container.streams)
    if stream.duration and time_base:
        length_s = stream.duration * time_base
    elif container.duration and not has_other_streams:
        length_s = Fraction(container.duration, av.time_base)
    else:
        return None
    if time_base and _family(container) in _ZERO_BASED_DURATIONS:
        length_s -= (first.pts or 0) * time_base
    return max(0.0, float(length_s)) or None


def _family(container: InputContainer) -> str:
    return container.format.name.partition(",")[0]
