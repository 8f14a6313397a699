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
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vidflow.domain.messages import GapReason, ResumePoint
from vidflow.domain.sampling import Sampler, SeekStatus, SeekToPts, plan_resume, track_seek
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.pixels import ChannelOrder, Crop, Orientation, displayed_size, read_orientation, to_array
from vidflow.infra.video.source import SourceInfo

SEEK_MARGINS_S: Final = (0, 15)
"""How far before the stored frame to seek, in order of attempts. Containers find keyframes by times other than pts, so the first
seek may land too late."""
MAX_LOST_PACKETS: Final = 4096
"""Lost packets buffered until the next frame. At this many a gap is emitted, so that endless damage does not fill the memory."""
SHORTFALL_S: Final = 1
SHORTFALL_SHARE: Final = Fraction(1, 50)
"""A file counts as truncated if it ends early by more than a second and more than a fiftieth of its length. Smaller differences
are common errors in headers."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """A kept frame. It holds the decoded picture: release it before reading many more.

    `pts` and `origin_pts` (the pts of the first frame) count ticks of `time_base` seconds. If the source has no usable pts,
    they count frames. `time_s` is in seconds since the first frame. `width` and `height` are in pixels as displayed.
    """

    frame_number: int
    pts: int
    time_base: Fraction
    origin_pts: int
    time_s: float
    width: int
    height: int
    decoded: VideoFrame
    orientation: Orientation
    crop: Crop
    scaler: VideoReformatter

    def image(
        self, width: int | None = None, height: int | None = None, order: ChannelOrder = "rgb"
    ) -> NDArray[np.uint8]:
        """Return the picture as displayed: uint8, contiguous, shape (height, width, 3). `width` and `height` scale it."""
        size = (width or self.width, height or self.height)
        return to_array(self.decoded, self.orientation, size, order, self.scaler, self.crop)


@dataclass(frozen=True, slots=True)
class FrameGap:
    """Frames that should have been kept but are missing. Every run that passes a gap reports it identically.

    `after_frame`: number of the kept frame before the gap, -1 before the first one. `from_s` and `to_s`: seconds since the
    first frame. `frames`: number of decoded frames missing, None if unknown.
    """

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: GapReason


def read_kept_frames(
    video: Video, rate: Fraction | None = None, resume: ResumePoint | None = None
) -> Iterator[KeptFrame | FrameGap]:
    """Iterate over the video's kept frames, `rate` per second (None: all), and its gaps, in order. Call it once per opened video.

    With `resume`, continue after the last stored frame with exactly the frames of an uninterrupted run. A gap directly after
    the stored frame is reported again. A live source continues from now, with numbers from `resume.next_frame`.
    The file must be that of `resume`, which `open_video` checks. Raises Unavailable if reading fails.
    """
    resume = resume or ResumePoint()
    start = Sampler(video.source.build_timeline(), rate)
    if video.source.live:
        return _FrameReader(
            video.source, Sampler(start.timeline, rate, resume.next_frame), resume.next_frame
        ).read_events(video.events())
    point = plan_resume(resume, start, seekable=video.source.seekable)
    if isinstance(point, SeekToPts):
        resumed = _seek_to(video, point)
        if resumed is not None:
            return resumed
        video.restart()
    return _FrameReader(video.source, start, resume.next_frame).read_events(video.events())


def _seek_to(video: Video, point: SeekToPts) -> Iterator[KeptFrame | FrameGap] | None:
    """Return an iterator over what follows the stored frame, reached by seeking; None if no seek finds that frame.

    Finding the frame is the only proof that the position is right.
    """
    for margin_s in SEEK_MARGINS_S:
        reader = _FrameReader(video.source, point.sampler, point.sampler.next_frame)
        try:
            events = video.seek(point.last_pts - 1 - int(margin_s / video.source.time_base))
        except (av.error.FFmpegError, OverflowError):
            continue
        if reader.find_stored_frame(point, events):
            return reader.read_events(events)
    return None


class _FrameReader:
    """One pass over decoded frames. Frames with numbers below `first_number` are not emitted."""

    def __init__(self, source: SourceInfo, sampler: Sampler, first_number: int) -> None:
        self._source, self._sampler, self._first_number = source, sampler, first_number
        self._lost: list[int] = []  # a heap of ticks, not yet reported
        self._displayed_until = 0
        self._orientations: dict[int, Orientation] = {}
        self._scaler = VideoReformatter()

    def find_stored_frame(self, point: SeekToPts, events: Iterator[VideoFrame | LostPacket]) -> bool:
        """Skip frames up to the stored one. Return whether it was reached from a keyframe and with nothing lost on the way.

        The first decoded frame must be a keyframe. If a container's keyframe is not a whole picture (intra refresh), the
        decoder withholds it, and the frames that it outputs a little later have been observed to be wrong.
        """
        timeline = self._sampler.timeline
        for event in events:
            if isinstance(event, LostPacket) or (timeline.tick is None and not is_independent(event)):
                return False
            timeline, status = track_seek(point, timeline, event.pts)
            if status is not SeekStatus.SEEKING:
                self._sampler = replace(self._sampler, timeline=timeline)
                self._note_displayed(event)
                return status is SeekStatus.ARRIVED
        return False

    def read_events(self, events: Iterator[VideoFrame | LostPacket]) -> Iterator[KeptFrame | FrameGap]:
        """Yield the kept frames and gaps of the remaining events."""
        for event in events:
            if isinstance(event, LostPacket):
                self._note_lost(event)
                if len(self._lost) >= MAX_LOST_PACKETS and self._sampler.timeline.tick is not None:
                    yield from self._drop_known_gaps(self._take_gap_before(max(self._lost) + 1))
                continue
            previous = self._sampler
            self._sampler, kept = previous.sample_frame(event.pts)
            tick = self._sampler.timeline.tick or 0
            self._note_displayed(event)
            yield from self._drop_known_gaps(self._take_gap_before(tick, previous))
            if kept and previous.next_frame >= self._first_number:
                yield self._build_kept_frame(event, previous.next_frame, tick)
        yield from self._drop_known_gaps(self._take_final_gaps())

    def _drop_known_gaps(self, gaps: list[FrameGap]) -> Iterator[FrameGap]:
        return (gap for gap in gaps if gap.after_frame + 1 >= self._first_number)

    def _build_kept_frame(self, frame: VideoFrame, number: int, tick: int) -> KeptFrame:
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
            decoded=frame,
            orientation=orientation,
            crop=self._source.crop,
            scaler=self._scaler,
        )

    def _orientation(self, frame: VideoFrame) -> Orientation:
        """Return the frame's orientation, reading the display matrix once per rotation.

        Reading a frame's side data makes the frame refer to itself. Its picture then stays until the garbage collector runs.
        """
        orientation = self._orientations.get(frame.rotation)
        if orientation is None:
            orientation = self._orientations[frame.rotation] = read_orientation(frame)
        return orientation

    def _note_displayed(self, frame: VideoFrame) -> None:
        """Record until when the last frame is displayed. By the duration of its packet, that may be long."""
        timeline = self._sampler.timeline
        length = timeline.step if timeline.counted else max(timeline.step, frame.duration or 0)
        self._displayed_until = (timeline.tick or 0) + length

    def _note_lost(self, packet: LostPacket) -> None:
        """Record a lost packet at its place in time: its own pts, or directly after the previous frame."""
        timeline = self._sampler.timeline
        next_tick = 0 if timeline.tick is None else timeline.tick + 1
        tick = next_tick if packet.pts is None or timeline.counted else packet.pts + timeline.shift
        heapq.heappush(self._lost, tick)

    def _take_gap_before(self, tick: int, sampler: Sampler | None = None) -> list[FrameGap]:
        """Return the gap that packets lost before `tick` leave, if any. Frames that would not have been kept leave none."""
        sampler = sampler or self._sampler
        timeline = self._sampler.timeline
        missing = []
        while self._lost and self._lost[0] < tick:
            missing.append(heapq.heappop(self._lost))
        missing = [lost for lost in missing if sampler.would_keep(lost)]
        if not missing:
            return []
        from_s, to_s = (max(0.0, float(timeline.seconds_since_start(t))) for t in (missing[0], tick))
        return [FrameGap(sampler.next_frame - 1, from_s, to_s, len(missing), GapReason.CORRUPT)]

    def _take_final_gaps(self) -> list[FrameGap]:
        """Return the gap after the last frame, and the gap of the missing end if the file is truncated."""
        timeline = self._sampler.timeline
        lost_until = max(self._lost, default=-timeline.step) + timeline.step
        last = max([timeline.tick or 0, *self._lost])
        gaps = self._take_gap_before(last + 1)
        end_s = timeline.seconds_since_start(max(lost_until, self._displayed_until))
        # After a jump of the clock, the header's end is not the time of the last frame.
        promised_s = Fraction(0 if timeline.adjusted else self._source.duration_s or 0)
        if promised_s - end_s > max(Fraction(SHORTFALL_S), promised_s * SHORTFALL_SHARE):
            gaps.append(
                FrameGap(self._sampler.next_frame - 1, float(end_s), float(promised_s), None, GapReason.TRUNCATED)
            )
        return gaps


def is_independent(frame: VideoFrame) -> bool:
    """Return whether the frame can be decoded without another one."""
    return bool(frame.key_frame) and frame.pict_type in {PictureType.NONE, PictureType.I}
