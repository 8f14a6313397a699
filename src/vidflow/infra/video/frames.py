"""Read the kept frames of an open video, numbered consecutively from the start or a resume point, and the gaps between them.

Nothing is queued: a frame is decoded when the caller asks for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from numpy.typing import NDArray

from vidflow.domain.live_clock import CaptureTime
from vidflow.domain.messages import ClockChanges, CorruptPolicy, GapReason, ResumePoint
from vidflow.domain.sampling import Sampler, SeekStatus, SeekToPts, plan_resume, track_seek
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import Event, LostPacket
from vidflow.infra.video.pixels import (
    ChannelOrder,
    Crop,
    Orientation,
    ResamplingFilter,
    displayed_size,
    read_orientation,
    to_array,
)
from vidflow.infra.video.skipping import SkippedFrame

SEEK_MARGINS_S: Final = (0, 15)
"""How far before the stored frame to seek, in order of attempts. Containers find keyframes by times other than pts, so the first
seek may land too late."""
MAX_LOST_PACKETS: Final = 4096
"""Lost packets, and missing frames, buffered until the next frame. At this many a gap is emitted, so that endless damage does not
fill the memory."""
SHORTFALL_S: Final = 1
SHORTFALL_SHARE: Final = Fraction(1, 50)
"""A file counts as truncated if it ends early by more than a second and more than a fiftieth of its length. Smaller differences
are common errors in headers."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """A kept frame. It holds the decoded picture: release it before reading many more.

    `pts` and `origin_pts` (the pts of the first frame) count ticks of `time_base` seconds. If the source has no usable pts,
    they count frames. `time_s` is in seconds since the first frame. `width` and `height` are in pixels as displayed. `corrupt`:
    a part of the picture is damaged, and the decoder concealed it. `clock_jumps`: how often the clock jumped after the previous
    kept frame. `captured`: when a frame of a live source was captured. `clock_drifts`: how often the clock began to differ from ours.
    """

    frame_number: int
    pts: int
    time_base: Fraction
    origin_pts: int
    time_s: float
    width: int
    height: int
    corrupt: bool
    clock_jumps: int
    decoded: VideoFrame
    orientation: Orientation
    crop: Crop
    captured: CaptureTime | None = None
    clock_drifts: int = 0

    @property
    def size_bytes(self) -> int:
        """The memory of the decoded picture."""
        return sum(plane.buffer_size for plane in self.decoded.planes)

    def image(
        self,
        width: int | None = None,
        height: int | None = None,
        order: ChannelOrder = "rgb",
        resample: ResamplingFilter = "bilinear",
    ) -> NDArray[np.uint8]:
        """Return the picture as displayed, scaled to `width` and `height` if given: see `to_array`."""
        size = (width or self.width, height or self.height)
        return to_array(self.decoded, self.orientation, size, order, self.crop, resample)


@dataclass(frozen=True, slots=True)
class FrameGap:
    """Frames that should have been kept but are missing. Every run that passes a gap reports it identically.

    `after_frame`: number of the kept frame before the gap, -1 before the first one. `from_s` and `to_s`: seconds since the
    first frame. `frames`: number of missing frames, None if unknown.
    """

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: GapReason


def read_kept_frames(
    video: Video,
    rate: Fraction | None = None,
    resume: ResumePoint | None = None,
    on_corrupt: CorruptPolicy = CorruptPolicy.KEEP,
) -> Iterator[KeptFrame | FrameGap | ClockChanges]:
    """Iterate over the video's kept frames, `rate` per second (None: all), and its gaps, in order. Call it once per opened video.

    If the clock jumped after the last kept frame, the last item says so.
    `on_corrupt`: whether frames whose damage the decoder concealed are kept with a mark, or are a gap.
    With `resume`, continue after the last stored frame with exactly the frames of an uninterrupted run. A gap directly after
    the stored frame is reported again. Live sources are read by LiveReader instead.
    The file must be that of `resume`, which `open_video` checks. Raises Unavailable if reading fails.
    """
    resume = resume or ResumePoint()
    start = Sampler(video.source.build_timeline(), rate)
    point = plan_resume(resume, start, seekable=video.source.seekable)
    if isinstance(point, SeekToPts):
        resumed = _seek_to(video, point, on_corrupt)
        if resumed is not None:
            return resumed
        video.restart()
    return _FrameReader(video, start, resume.next_frame, on_corrupt).read_events(video.events())


def _seek_to(
    video: Video, point: SeekToPts, on_corrupt: CorruptPolicy
) -> Iterator[KeptFrame | FrameGap | ClockChanges] | None:
    """Return an iterator over what follows the stored frame, reached by seeking; None if no seek finds that frame.

    Finding the frame is the only proof that the position is right.
    """
    for margin_s in SEEK_MARGINS_S:
        reader = _FrameReader(video, point.sampler, point.sampler.next_frame, on_corrupt)
        try:
            events = video.seek(point.last_pts - 1 - int(margin_s / video.source.time_base))
        except (av.error.FFmpegError, OverflowError):
            continue
        if reader.find_stored_frame(point, events):
            return reader.read_events(events)
    return None


class _FrameReader:
    """One pass over decoded frames. Frames with numbers below `first_number` are not emitted."""

    def __init__(self, video: Video, sampler: Sampler, first_number: int, on_corrupt: CorruptPolicy) -> None:
        self._video, self._source, self._sampler = video, video.source, sampler
        self._first_number, self._on_corrupt = first_number, on_corrupt
        self._lost: list[int] = []  # a heap of the ticks of lost packets
        self._lost_without_pts = 0  # packets since the last frame
        self._jumps = 0  # of the clock, up to the last kept frame
        self._missing: list[int] = []  # the ticks of frames that should have been kept, not yet reported
        self._displayed_until = 0
        self._orientations: dict[int, Orientation] = {}

    def find_stored_frame(self, point: SeekToPts, events: Iterator[Event]) -> bool:
        """Skip frames up to the stored one. Return whether it was reached from a keyframe and with nothing lost on the way.

        The first decoded frame must be a keyframe. If a container's keyframe is not a whole picture (intra refresh), the
        decoder withholds it, and the frames that it outputs a little later have been observed to be wrong.
        """
        timeline = self._sampler.timeline
        for event in events:
            if not isinstance(event, VideoFrame) or (timeline.tick is None and not is_independent(event)):
                return False
            timeline, status = track_seek(point, timeline, event.pts)
            if status is not SeekStatus.SEEKING:
                self._sampler, self._jumps = replace(self._sampler, timeline=timeline), timeline.jumps
                self._video.skip_frames(self._sampler.find_unwanted_pts())
                self._note_displayed(event)
                return status is SeekStatus.ARRIVED
        return False

    def read_events(self, events: Iterator[Event]) -> Iterator[KeptFrame | FrameGap | ClockChanges]:
        """Yield the kept frames and gaps of the remaining events, and the jumps of the clock after the last kept frame."""
        for event in events:
            if isinstance(event, LostPacket):
                self._note_lost(event)
                yield from self._take_full_gap()
                continue
            previous = self._sampler.timeline.tick
            self._sampler = self._sampler.place_frame(event.pts)
            tick = self._sampler.timeline.tick or 0
            self._note_displayed(event)
            self._place_lost(previous, tick)
            self._pass_lost(tick)
            if isinstance(event, SkippedFrame):
                yield from self._take_gap(tick)
                continue
            self._sampler, is_new = self._sampler.represent_tick()
            if is_new:
                self._video.skip_frames(self._sampler.find_unwanted_pts())
            if is_new and event.is_corrupt and self._on_corrupt is CorruptPolicy.SKIP:
                self._missing.append(tick)
                yield from self._take_full_gap()
                continue
            yield from self._take_gap(tick)
            if is_new:
                number = self._sampler.next_frame
                self._sampler = self._sampler.number_frame()
                jumps, self._jumps = self._sampler.timeline.jumps - self._jumps, self._sampler.timeline.jumps
                if number >= self._first_number:
                    yield self._build_kept_frame(event, number, tick, jumps)
        yield from self._take_final_gaps()
        timeline = self._sampler.timeline
        if timeline.tick is not None and timeline.jumps > self._jumps:
            yield ClockChanges(float(timeline.seconds_since_start(timeline.tick)), timeline.jumps - self._jumps)

    def _build_kept_frame(self, frame: VideoFrame, number: int, tick: int, clock_jumps: int) -> KeptFrame:
        timeline = self._sampler.timeline
        orientation = self._orientation(frame)
        width, height = displayed_size(frame, orientation, self._source.pixel_aspect, self._source.crop)
        return KeptFrame(
            frame_number=number,
            pts=tick if timeline.counted or frame.pts is None else frame.pts,
            time_base=timeline.time_base,
            origin_pts=timeline.origin or 0,
            time_s=float(timeline.seconds_since_start(tick)),
            width=width,
            height=height,
            corrupt=frame.is_corrupt,
            clock_jumps=clock_jumps,
            decoded=frame,
            orientation=orientation,
            crop=self._source.crop,
        )

    def _orientation(self, frame: VideoFrame) -> Orientation:
        """Return the frame's orientation, reading the display matrix once per rotation.

        Reading a frame's side data makes the frame refer to itself. Its picture then stays until the garbage collector runs.
        """
        orientation = self._orientations.get(frame.rotation)
        if orientation is None:
            orientation = self._orientations[frame.rotation] = read_orientation(frame)
        return orientation

    def _note_displayed(self, frame: VideoFrame | SkippedFrame) -> None:
        """Record until when the last frame is displayed. By the duration of its packet, that may be long."""
        timeline = self._sampler.timeline
        length = timeline.step if timeline.counted else max(timeline.step, frame.duration or 0)
        self._displayed_until = (timeline.tick or 0) + length

    def _note_lost(self, packet: LostPacket) -> None:
        """Record a lost packet at its place in time: its own pts, or between the previous frame and the next one."""
        timeline = self._sampler.timeline
        if timeline.counted:
            self._sampler = self._sampler.place_frame(None)
            self._pass(self._sampler.timeline.tick or 0)
        elif packet.pts is None:
            self._lost_without_pts += 1
        else:
            heapq.heappush(self._lost, packet.pts + timeline.shift)

    def _place_lost(self, previous: int | None, following: int | None) -> None:
        """Place the lost packets without pts between the ticks of two frames (None: there is no such frame)."""
        count, self._lost_without_pts = self._lost_without_pts, 0
        if not count:
            return
        if following is None:
            following = (previous or 0) + count + 1
        if previous is None:
            previous = following - count - 1
        for index in range(1, count + 1):
            heapq.heappush(self._lost, previous + index * (following - previous) // (count + 1))

    def _pass_lost(self, before: int) -> None:
        """Record which of the packets lost before this tick are missing. Those that would not have been kept are not."""
        while self._lost and self._lost[0] < before:
            self._pass(heapq.heappop(self._lost))

    def _pass(self, tick: int) -> None:
        self._sampler, is_missing = self._sampler.represent_tick(tick)
        if is_missing:
            self._missing.append(tick)

    def _take_gap(self, until: int) -> Iterator[FrameGap]:
        """Yield the gap of the missing frames up to a tick, if any. Gaps before the resume point are known."""
        if self._missing and self._sampler.next_frame >= self._first_number:
            timeline = self._sampler.timeline
            from_s, to_s = (max(0.0, float(timeline.seconds_since_start(t))) for t in (self._missing[0], until))
            yield FrameGap(self._sampler.next_frame - 1, from_s, to_s, len(self._missing), GapReason.CORRUPT)
        self._missing = []

    def _take_full_gap(self) -> Iterator[FrameGap]:
        """Yield a gap if so much is missing that nothing more is buffered."""
        tick = self._sampler.timeline.tick
        if tick is None:
            return
        if len(self._lost) + self._lost_without_pts >= MAX_LOST_PACKETS:
            self._place_lost(tick, None)
            self._pass_lost(max(self._lost) + 1)
        if len(self._missing) >= MAX_LOST_PACKETS:
            yield from self._take_gap(max(tick, self._missing[-1]) + 1)

    def _take_final_gaps(self) -> Iterator[FrameGap]:
        """Yield the gap after the last frame, and the gap of the missing end if the file is truncated."""
        timeline = self._sampler.timeline
        self._place_lost(timeline.tick, None)
        lost_until = max(self._lost, default=-timeline.step) + timeline.step
        end = max([timeline.tick or 0, *self._lost]) + 1
        self._pass_lost(end)
        yield from self._take_gap(end)
        end_s = timeline.seconds_since_start(max(lost_until, self._displayed_until))
        # After a jump of the clock, the header's end is not the time of the last frame.
        promised_s = Fraction(0 if timeline.jumps else self._source.duration_s or 0)
        is_known = self._sampler.next_frame < self._first_number
        if promised_s - end_s > max(Fraction(SHORTFALL_S), promised_s * SHORTFALL_SHARE) and not is_known:
            yield FrameGap(self._sampler.next_frame - 1, float(end_s), float(promised_s), None, GapReason.TRUNCATED)


def is_independent(frame: VideoFrame) -> bool:
    """Return whether the frame can be decoded without another one."""
    return bool(frame.key_frame) and frame.pict_type in {PictureType.NONE, PictureType.I}
