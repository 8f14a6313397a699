"""The kept frames of an open video, numbered without a hole from the start or a resume point, and the gaps between them.

Not what a model sees in them, nor how they are sent. Nothing is queued: a frame is decoded when it is asked for.
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

from vidflow.domain.errors import SourceError
from vidflow.domain.messages import GapReason, ResumePoint
from vidflow.domain.sampling import Sampler, SeekStatus, SeekToPts, build_timeline, plan_resume, track_seek
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.pixels import ChannelOrder, Orientation, displayed_size, read_orientation, to_array
from vidflow.infra.video.source import SourceInfo

SEEK_MARGINS_S: Final = (0, 15)
"""How far before the stored frame a seek aims, in turn: containers find keyframes by other times than pts, and may miss one."""
MAX_LOST_PACKETS: Final = 4096
"""Lost packets that wait for the next frame; more are told at once, so that an endless run of damage needs no memory."""
SHORTFALL_S: Final = 1
SHORTFALL_SHARE: Final = Fraction(1, 50)
"""A file is called truncated when it ends both a second and a fiftieth of its length too early: headers are often a bit off."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """One kept frame. It holds the decoded picture: let go of it before many more are read.

    `pts` and `origin_pts` (the first frame's) count ticks of `time_base` seconds; without usable pts in the source they count
    frames. `time_s` is seconds from the first frame. `width` and `height` are pixels as displayed.
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
    scaler: VideoReformatter

    def image(
        self, width: int | None = None, height: int | None = None, order: ChannelOrder = "rgb"
    ) -> NDArray[np.uint8]:
        """The picture as displayed, scaled to `width` x `height` where given: uint8, height x width x 3, contiguous."""
        size = (width or self.width, height or self.height)
        return to_array(self.decoded, self.orientation, size, order, self.scaler)


@dataclass(frozen=True, slots=True)
class FrameGap:
    """Frames that should have been kept and are not: behind which kept frame (-1: before the first), from when to when.

    `frames`: how many decoded ones, None where nobody knows. Told in the same words by every run that passes it.
    """

    after_frame: int
    from_s: float
    to_s: float
    frames: int | None
    reason: GapReason


def read_kept_frames(
    video: Video, rate: Fraction | None = None, resume: ResumePoint | None = None
) -> Iterator[KeptFrame | FrameGap]:
    """The video's kept frames at `rate` a second (None: all), and the gaps, in order; once for each opened video.

    With `resume` it goes on behind the last stored frame with exactly the frames that an undisturbed run would give; the gap
    right behind that frame is told again. A live source just goes on, with numbers from `resume.next_frame`.
    Raises SourceError (source_changed) if a file is not the one that `resume` knows, and Unavailable where reading fails.
    """
    resume = resume or ResumePoint()
    _require_unchanged(video, resume)
    start = Sampler(build_timeline(video.source.time_base, video.source.average_rate), rate)
    if video.source.live:
        return _FrameReader(
            video.source, Sampler(start.timeline, rate, resume.next_frame), resume.next_frame
        ).read_events(video.events())
    point = plan_resume(resume, start, seekable=video.source.seekable)
    if isinstance(point, SeekToPts):
        landed = _seek_to(video, point)
        if landed is not None:
            return landed
        video.restart()
    return _FrameReader(video.source, start, resume.next_frame).read_events(video.events())


def _require_unchanged(video: Video, resume: ResumePoint) -> None:
    known = resume.identity
    if known is not None and known.size_bytes is not None and video.source.identity != known:
        raise SourceError(
            f"{video.display_name} is not the file that this scenario began with (its size or time has changed): its frame numbers"
            " would mean other frames; start a new scenario for the new file",
            code="source_changed",
        )


def _seek_to(video: Video, point: SeekToPts) -> Iterator[KeptFrame | FrameGap] | None:
    """What follows the stored frame, reached by seeking; None where no seek shows that frame again, which alone proves it."""
    for margin_s in SEEK_MARGINS_S:
        walk = _FrameReader(video.source, point.sampler, point.sampler.next_frame)
        try:
            events = video.seek(point.last_pts - 1 - int(margin_s / video.source.time_base))
        except (av.error.FFmpegError, OverflowError):
            continue
        if walk.find_stored_frame(point, events):
            return walk.read_events(events)
    return None


class _FrameReader:
    """One pass over decoded frames: the sampler, the packets lost and not yet told, and the number from which on it tells."""

    def __init__(self, source: SourceInfo, sampler: Sampler, first_told: int) -> None:
        self._source, self._sampler, self._first_number = source, sampler, first_told
        self._lost: list[int] = []  # a heap of ticks
        self._orientations: dict[int, Orientation] = {}
        self._scaler = VideoReformatter()

    def find_stored_frame(self, point: SeekToPts, events: Iterator[VideoFrame | LostPacket]) -> bool:
        """Passes over frames up to the stored one; whether it was seen, from a keyframe on and with nothing lost on the way.

        Where a container's keyframe is no whole picture (intra refresh), the decoder withholds it, and what it shows some
        frames later was seen to be wrong: so the first frame shown must be a keyframe.
        """
        placed = self._sampler.timeline
        for event in events:
            if isinstance(event, LostPacket) or (placed.tick is None and not _is_independent(event)):
                return False
            placed, state = track_seek(point, placed, event.pts)
            if state is not SeekStatus.SEEKING:
                self._sampler = replace(self._sampler, timeline=placed)
                return state is SeekStatus.ARRIVED
        return False

    def read_events(self, events: Iterator[VideoFrame | LostPacket]) -> Iterator[KeptFrame | FrameGap]:
        """The kept frames and the gaps of the remaining events."""
        for event in events:
            if isinstance(event, LostPacket):
                self._note_lost(event)
                if len(self._lost) >= MAX_LOST_PACKETS and self._sampler.timeline.tick is not None:
                    yield from self._drop_known_gaps(self._take_gap_before(max(self._lost) + 1))
                continue
            before = self._sampler
            self._sampler, kept = before.sample_frame(event.pts)
            tick = self._sampler.timeline.tick or 0
            yield from self._drop_known_gaps(self._take_gap_before(tick, before))
            if kept and before.next_frame >= self._first_number:
                yield self._build_kept_frame(event, before.next_frame, tick)
        yield from self._drop_known_gaps(self._take_final_gaps())

    def _drop_known_gaps(self, gaps: list[FrameGap]) -> Iterator[FrameGap]:
        return (gap for gap in gaps if gap.after_frame + 1 >= self._first_number)

    def _build_kept_frame(self, frame: VideoFrame, number: int, tick: int) -> KeptFrame:
        placed = self._sampler.timeline
        orientation = self._orientation(frame)
        width, height = displayed_size(frame, orientation)
        return KeptFrame(
            frame_number=number,
            pts=tick if placed.counted or frame.pts is None else frame.pts,
            time_base=placed.time_base,
            origin_pts=placed.origin or 0,
            time_s=float(placed.seconds_since_start(tick)),
            width=width,
            height=height,
            decoded=frame,
            orientation=orientation,
            scaler=self._scaler,
        )

    def _orientation(self, frame: VideoFrame) -> Orientation:
        """The frame's orientation; its matrix is read once for each rotation, since a frame whose side data were looked at
        refers to itself, and its picture then waits for the garbage collector."""
        known = self._orientations.get(frame.rotation)
        if known is None:
            known = self._orientations[frame.rotation] = read_orientation(frame)
        return known

    def _note_lost(self, packet: LostPacket) -> None:
        """Notes a lost packet at its place in time: its own pts, or else behind the frame before it."""
        placed = self._sampler.timeline
        behind = 0 if placed.tick is None else placed.tick + 1
        tick = behind if packet.pts is None or placed.counted else packet.pts + placed.shift
        heapq.heappush(self._lost, tick)

    def _take_gap_before(self, tick: int, before: Sampler | None = None) -> list[FrameGap]:
        """The gap, if any, made of what was lost before `tick`; frames that would not have been kept leave none."""
        before = before or self._sampler
        placed = self._sampler.timeline
        missing = []
        while self._lost and self._lost[0] < tick:
            missing.append(heapq.heappop(self._lost))
        missing = [lost for lost in missing if before.would_keep(lost)]
        if not missing:
            return []
        from_s, to_s = (max(0.0, float(placed.seconds_since_start(t))) for t in (missing[0], tick))
        return [FrameGap(before.next_frame - 1, from_s, to_s, len(missing), GapReason.CORRUPT)]

    def _take_final_gaps(self) -> list[FrameGap]:
        """What was lost behind the last frame, and, if the file clearly ends before its time, how much is missing."""
        placed = self._sampler.timeline
        last = max([placed.tick or 0, *self._lost])
        gaps = self._take_gap_before(last + 1)
        ends = placed.seconds_since_start(last + placed.step)
        promised = Fraction(self._source.duration_s or 0)
        if promised - ends > max(Fraction(SHORTFALL_S), promised * SHORTFALL_SHARE):
            gaps.append(FrameGap(self._sampler.next_frame - 1, float(ends), float(promised), None, GapReason.TRUNCATED))
        return gaps


def _is_independent(frame: VideoFrame) -> bool:
    """Whether the frame leans on no other."""
    return bool(frame.key_frame) and frame.pict_type in {PictureType.NONE, PictureType.I}
