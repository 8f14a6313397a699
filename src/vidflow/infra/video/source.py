"""Describe a source by its header and its first frame."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.messages import FileIdentity
from vidflow.domain.sampling import (
    LONGEST_BROADCAST_PAUSE_S,
    LONGEST_PAUSE_S,
    Timeline,
    build_timeline,
    estimate_frame_count,
)
from vidflow.infra.video.cropping import read_crop
from vidflow.infra.video.pixels import NO_CROP, SQUARE, Crop, displayed_size, read_orientation

_ZERO_BASED_DURATIONS: Final = frozenset({"matroska", "avi"})
"""Containers whose duration is the end time of the last frame: a video that starts at 5 s lasts 5 s less than that."""
_SEEKABLE_CONTAINERS: Final = frozenset({"mov", "matroska", "avi"})
"""Containers with an index, in which a seek by pts is reliable. In others a resumed run decodes from the start."""
_CROPPING_CONTAINERS: Final = frozenset({"mov", "matroska"})
"""Containers that may hide margins of the pictures."""
_TAGGED_TIME: Final = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)
_MAX_PIXEL_ASPECT: Final = Fraction(16)
MAX_PIXELS: Final = 8192 * 8192
"""Largest frame that is decoded: about 100 MB as yuv420p, twice that as RGB."""
MAX_SIDE: Final = 65535
"""Largest width and height: the limit of the fields in messages and tables."""
_BROADCAST_CONTAINERS: Final = frozenset({"mpegts", "mpeg"})
_UNTIMED_CONTAINERS: Final = frozenset(
    {"mpjpeg", "mjpeg", "h264", "hevc", "vvc", "m4v", "mpegvideo", "h263", "vc1", "obu"}
)
"""Pictures and nothing else. FFmpeg counts them at a rate that it assumes, which is all there is for a file."""
_MAX_BROADCAST_DURATION_S: Final = 86_400
"""A broadcast format states no duration. FFmpeg takes the difference of the last pts and the first, which is more than a day if the
clock restarted at a lower value."""
MIN_FRAME_BYTES: Final = 8
"""The smallest frame of a codec, with its header in the container."""
TRANSPORT_PACKET_BYTES: Final = 188
"""A frame in a transport stream takes at least one packet."""
_FRAGMENT_START_S: Final = 1
"""A fragmented file that starts later than this is a part of a longer presentation, and its duration may be that one's."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Properties of a source. A value is None if it is unknown.

    `width`, `height`: pixels of the first frame as displayed; the size may change midway. `rotation`: degrees clockwise by
    which the decoded picture is turned for display. `pixel_aspect`: width / height of a decoded pixel. `crop`: margins of the
    decoded picture that are not displayed. `average_rate`: frames per second. `time_base`: seconds per tick. `duration_s`:
    from the first frame to the end. `frames_expected`: number of frames according to the header. `seekable`: whether seeks by
    pts are reliable. `live`: whether the source has no beginning to return to. `identity`: None if it is a camera. `is_timed`: whether the
    frames have times of their own; if not, their pts mean nothing.
    """

    width: int
    height: int
    rotation: int
    pixel_aspect: Fraction
    crop: Crop
    average_rate: Fraction | None
    time_base: Fraction
    duration_s: float | None
    frames_expected: int | None
    codec: str
    container: str
    seekable: bool
    live: bool
    identity: FileIdentity | None
    is_timed: bool = True

    def estimate_kept_frames(self, rate: Fraction | None, duration_s: float | None = None) -> int | None:
        """Return how many frames will be kept at `rate` per second (None: all); None if the header does not tell.

        `duration_s`: read only so much of the source (None: all).
        """
        kept = self._estimate_all_kept_frames(rate)
        fastest = min((r for r in (rate, self.average_rate) if r is not None), default=None)
        if kept is None or duration_s is None or fastest is None:
            return kept
        return min(kept, math.ceil(Fraction(duration_s) * fastest))

    def _estimate_all_kept_frames(self, rate: Fraction | None) -> int | None:
        if self.duration_s is None or not self._can_last(Fraction(self.duration_s)):
            return self.frames_expected if rate is None else None
        decoded = self.frames_expected
        if decoded is None and rate is not None and self.average_rate is not None:
            decoded = max(1, round(Fraction(self.duration_s) * self.average_rate))
        return estimate_frame_count(self.duration_s, decoded, rate)

    def _can_last(self, duration_s: Fraction) -> bool:
        """Return whether a file of this size can contain so many frames. One wild pts makes the stated duration far too long."""
        if self.identity is None or self.identity.size_bytes is None:
            return True
        frames = duration_s * (self.average_rate or 0)
        return (
            frames * (TRANSPORT_PACKET_BYTES if self.container == "mpegts" else MIN_FRAME_BYTES)
            <= self.identity.size_bytes
        )

    def build_timeline(self) -> Timeline:
        """Return the timeline before the source's first frame."""
        broadcast = not self.live and self.container in _BROADCAST_CONTAINERS
        longest_pause_s = LONGEST_BROADCAST_PAUSE_S if broadcast else LONGEST_PAUSE_S
        return build_timeline(self.time_base, self.average_rate, longest_pause_s)


def describe_source(
    container: InputContainer,
    stream: VideoStream,
    first: VideoFrame,
    *,
    live: bool,
    identity: FileIdentity | None,
    seekable: bool,
    is_growing: bool = False,
) -> SourceInfo:
    """Return the properties of an open stream, given its first frame. `seekable`: any byte of the source can be read.

    `is_growing`: the file is read on while it grows, so its present length says nothing.
    """
    orientation = read_orientation(first)
    crop = read_crop(stream) if _family(container) in _CROPPING_CONTAINERS else NO_CROP
    pixel_aspect = _pixel_aspect(container, stream, first, crop)
    width, height = displayed_size(first, orientation, pixel_aspect, crop)
    duration_s = None if live or is_growing else _duration_s(container, stream, first)
    is_timed = not live or container.format.name not in _UNTIMED_CONTAINERS
    average_rate = read_average_rate(container, stream) if is_timed else None
    return SourceInfo(
        width=width,
        height=height,
        rotation=-first.rotation % 360,
        pixel_aspect=pixel_aspect,
        crop=crop,
        average_rate=average_rate,
        time_base=read_time_base(stream),
        duration_s=duration_s,
        frames_expected=None if live or is_growing else _frames_expected(stream, duration_s, average_rate),
        codec=stream.codec_context.name,
        container=container.format.name,
        seekable=seekable
        and identity is not None
        and _family(container) in _SEEKABLE_CONTAINERS
        and not lacks_pts(container, stream),
        live=live,
        identity=identity,
        is_timed=is_timed,
    )


def read_time_base(stream: VideoStream) -> Fraction:
    """Return the seconds per tick. Raw streams and broken headers may have no time base. FFmpeg then counts in microseconds."""
    return _rational_to_fraction(stream.time_base) or Fraction(1, 1_000_000)


def _rational_to_fraction(rational: Any) -> Fraction | None:  # noqa: ANN401  (a Fraction or None in PyAV 18, an AVRational in 19)
    return Fraction(rational.numerator, rational.denominator) if rational else None


def can_be_appended_to(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether a longer file of this kind may have the same header, so that only time shows whether it has ended."""
    if _family(container) == "matroska":
        return _tagged_end_s(stream) is None and not container.duration
    return _family(container) not in {"mov", "avi"} or not stream.frames


def lacks_pts(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether the container stores only the order of decoding, which differs from the order of display (AVI with B-frames)."""
    return _family(container) == "avi" and bool(stream.codec_context.has_b_frames)


def _pixel_aspect(container: InputContainer, stream: VideoStream, first: VideoFrame, crop: Crop) -> Fraction:
    """Return the width / height of a pixel by the container or the codec; 1 if it is unknown or leads to an absurd size."""
    aspect = _rational_to_fraction(stream.sample_aspect_ratio)
    if not aspect:
        return SQUARE
    if _family(container) == "matroska":
        aspect = _correct_for_crop(aspect, stream, first, crop)
    width, height = crop.crop_size(first.width, first.height)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        return SQUARE
    return aspect if width * aspect <= MAX_SIDE and width * aspect * height <= MAX_PIXELS else SQUARE


def _correct_for_crop(aspect: Fraction, stream: VideoStream, first: VideoFrame, crop: Crop) -> Fraction:
    """Return the pixels' shape if the display size of a Matroska file is that of the whole picture instead of the cropped one.

    mkvmerge writes such files. They are recognized by the codec, which then states the same shape (or none, for square pixels).
    """
    width, height = crop.crop_size(first.width, first.height)
    of_whole = aspect * Fraction(width * first.height, height * first.width)
    of_codec = _rational_to_fraction(stream.codec_context.sample_aspect_ratio) or SQUARE
    # A display size is in whole pixels.
    return of_codec if abs(of_whole - of_codec) * first.width < 1 else aspect


def read_average_rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Return the frames per second by the header. In AVI the average counts fields or empty packets as frames."""
    average, guessed = _rational_to_fraction(stream.average_rate), _rational_to_fraction(stream.guessed_rate)
    return guessed or average if _family(container) == "avi" else average or guessed


def _frames_expected(stream: VideoStream, duration_s: float | None, average_rate: Fraction | None) -> int | None:
    """Return the number of frames by the header. It may count those that an edit list hides, or empty packets."""
    if not stream.frames:
        return None
    if duration_s is None or average_rate is None:
        return stream.frames
    return min(stream.frames, max(1, round(Fraction(duration_s) * average_rate)))


def _duration_s(container: InputContainer, stream: VideoStream, first: VideoFrame) -> float | None:
    """Return the seconds from the first frame to the stream's end by the header; None if it states only other streams' ends."""
    time_base = _rational_to_fraction(stream.time_base)
    family = _family(container)
    first_s = Fraction(first.pts or 0) * (time_base or 0)
    if stream.duration and time_base:
        length_s = stream.duration * time_base
    elif family == "matroska" and (end_s := _tagged_end_s(stream)) is not None:
        length_s = end_s
    elif container.duration and len(container.streams) == 1:
        length_s = Fraction(container.duration, av.time_base)
    else:
        return None
    if family == "mov" and not stream.frames and abs(first_s) > _FRAGMENT_START_S:
        return None
    if family in _BROADCAST_CONTAINERS and length_s > _MAX_BROADCAST_DURATION_S:
        return None
    if family in _ZERO_BASED_DURATIONS:
        length_s -= first_s
    return max(0.0, float(length_s)) or None


def _tagged_end_s(stream: VideoStream) -> Fraction | None:
    """Return the end of a Matroska stream by its tag DURATION, such as 00:00:02.000000000. None without a valid one."""
    match = _TAGGED_TIME.fullmatch(stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)


def _family(container: InputContainer) -> str:
    return container.format.name.partition(",")[0]
