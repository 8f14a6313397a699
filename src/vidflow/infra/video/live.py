"""Read a live source: connect, keep its socket drained, reconnect for ever, and hand on the newest frames that sampling keeps.

Each connection has a thread, which decodes and samples. A second thread watches it and opens the next one. The caller takes what has
become of this, in its own time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Final, Self

from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vidflow import VERSIONS
from vidflow.domain.errors import SourceError, Unavailable, VidflowError, build_internal_error
from vidflow.domain.frame_interval import FrameInterval
from vidflow.domain.live_clock import CAPTURE_TIME_BASE, CaptureTime, LiveClock
from vidflow.domain.live_end import MAX_LATENESS_S, LastKeptFrame, LiveLimits
from vidflow.domain.messages import CaptureClock, GapReason, ResumePoint
from vidflow.domain.newest_frames import LiveGap, NewestFrames
from vidflow.domain.sampling import Sampler, Timeline, compute_cells
from vidflow.infra.video.capture_times import read_capture_time
from vidflow.infra.video.frames import FrameGap, KeptFrame
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.pixels import Orientation, displayed_size, read_orientation
from vidflow.infra.video.source import SourceInfo
from vidflow.infra.video.source_connection import ReadingStopped

SILENCE_S: Final = 2.0
SILENT_FRAMES: Final = 3
"""A source that has sent nothing for this many frame durations, and SILENCE_S, is lost."""
OPENING_S: Final = 15.0
OPENING_FRAMES: Final = 5
"""A connection that has brought no frame after so many frame durations, and OPENING_S, is left to itself. FFmpeg opens a source at its
second frame, and the decoder may have to wait for a key frame."""
UNKNOWN_OPENING_S: Final = 45.0
"""The same for a source whose frame duration is not known yet."""
SHORTEST_ANSWER_S: Final = 1.0
LONGEST_ANSWER_S: Final = 3.0
UNKNOWN_ANSWER_S: Final = 5.0
"""How long to wait for a camera's answer before a connection is opened: as long as the last opening took, within these limits."""
FIRST_PAUSE_S: Final = 0.1
USUAL_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
LONG_OUTAGE_S: Final = 150.0
"""After an outage of this length, a source is tried each LONGEST_PAUSE_S; before, each USUAL_PAUSE_S."""
MAX_BURST_FRAMES: Final = 64
MAX_BURST_BYTES: Final = 128 * 1024 * 1024
"""Frames that may arrive at once when a connection begins, and their pictures. More are placed by the first of them."""
BURST_END_S: Final = 0.25
"""After so long without a frame, the burst is over, even if frames are rare."""
_WAITING: Final = " Waiting until it sends again."
_FOREVER_S: Final = Fraction(10**9)


def compute_pause_s(failures: int, outage_s: float) -> float:
    """Return the pause before the next attempt, after so many in a row that failed."""
    if outage_s > LONG_OUTAGE_S:
        return LONGEST_PAUSE_S
    return min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), USUAL_PAUSE_S)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A sampled frame that has no number yet."""

    decoded: VideoFrame
    captured_us: int
    time_s: float
    info: SourceInfo
    clock: LiveClock


@dataclass(slots=True)
class _Connection:
    """A connection: when it was last heard (None: no frame yet), and whether and why it ended. Guarded by the reader's lock."""

    began_s: float
    heard_s: float | None = None
    has_ended: bool = False
    error: VidflowError | None = None
    first: list[tuple[VideoFrame, int]] | None = field(default_factory=list)
    """The first frames and when they arrived. None once they are placed."""
    interval: FrameInterval = field(default_factory=lambda: FrameInterval(None))
    last_pts: int | None = None
    info: SourceInfo | None = None
    """The properties of the source, once a frame has arrived."""


class LiveReader:
    """The newest frames of a live source. Use it on one thread, as a context manager.

    `open_connection` opens the source and decodes its first frame; it is called on other threads. `require_answer` is called before it,
    to find out within so many seconds whether the source is there; it raises like `open_connection`. `is_fatal`: whether its error ends
    the reading. `rate`: kept frames a second (None: all). `capacity`: how many frames wait at most; older ones are dropped and
    reported as a gap. `limits`: when the reading ends by itself.
    """

    def __init__(
        self,
        open_connection: Callable[[], Video],
        display_name: str,
        is_fatal: Callable[[VidflowError], bool],
        rate: Fraction | None,
        resume: ResumePoint,
        capacity: int,
        limits: LiveLimits | None = None,
        require_answer: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._open_connection, self._display_name, self._is_fatal = open_connection, display_name, is_fatal
        self._rate, self._resume, self._capacity = rate, resume, capacity
        self._limits, self._require_answer = limits or LiveLimits(), require_answer
        self._opening_s: float | None = None  # how long the last connection took to bring its first frame
        self._lock = threading.Condition()
        self._frames: NewestFrames[_Picture] = NewestFrames(capacity)
        self._clock = LiveClock()
        self._sampler: Sampler | None = None
        self._number = resume.next_frame
        self._hole: GapReason | None = None if resume.last_pts is None else GapReason.REDEPLOYED
        self._lost_packets = 0
        self._reported = LiveClock()
        self._kept_us: int | None = None  # the capture time of the last frame that was kept or is in a stored gap
        self._connection: _Connection | None = None
        self._info: SourceInfo | None = None
        self._failure: VidflowError | None = None
        self._outage: VidflowError | None = None
        self._stopped = False
        self._passed_end = False  # a frame came after the end
        self._late_us = 0  # how long after its capture the last frame arrived
        self._missed_since_s = time.monotonic()  # since when no frame has come
        self._orientations: dict[int, Orientation] = {}
        self._scaler = VideoReformatter()
        self._watcher = threading.Thread(target=self._keep_connected, name="live source", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopped, self._connection = True, None
            self._lock.notify_all()

    @property
    def outage(self) -> VidflowError | None:
        """Why the source sends no frames, None if it does or was not tried for long enough."""
        with self._lock:
            connection = self._connection
            if self._outage is not None or connection is None or connection.heard_s is not None:
                return self._outage
            is_silent = time.monotonic() - connection.began_s > SILENCE_S
            return self._build_silence_error(connection) if is_silent else None

    @property
    def is_over(self) -> bool:
        """Whether the limits' end has come and all frames before it are taken."""
        with self._lock:
            return not len(self._frames) and self._is_past_end()

    def wait_for_source(self, timeout_s: float) -> SourceInfo | None:
        """Return the source's properties once it has sent a frame; None if it has not in this time. Raises its fatal error."""
        with self._lock:
            self._lock.wait_for(lambda: self._info is not None or self._failure is not None, timeout_s)
            if self._failure is not None:
                raise self._failure
            return self._info

    def take(self, timeout_s: float) -> list[KeptFrame | FrameGap]:
        """Return the newest frames and the gaps before them, in order. Wait up to `timeout_s` if there are none.

        Raises the source's fatal error once all frames before it are taken, and its last error once it is to be given up.
        """
        with self._lock:
            self._lock.wait_for(
                lambda: len(self._frames) or self._failure is not None or self._is_past_end(), timeout_s
            )
            self._failure = self._failure or self._find_reason_to_give_up()
            taken = self._frames.take()
            if not taken and self._failure is not None:
                raise self._failure
        while taken and self._number == 0 and isinstance(taken[0], LiveGap):
            del taken[0]  # before the scenario's first frame
        return [self._number_step(step) for step in taken]

    def end(self) -> list[FrameGap]:
        """Stop reading, and return what is missing from the last frame taken to the end, which is now or that of the limits."""
        with self._lock:
            is_past_end = self._is_past_end()
            connection, self._connection, self._stopped = self._connection, None, True
            self._lock.notify_all()
            last, origin = self._find_last_kept(), self._origin_us
            if last is None or origin is None or self._number == 0:
                return []
            end_us = self._limits.compute_end_us(origin) if is_past_end else None
            until_s = Fraction((end_us or self._capture_now_us()) - origin) * CAPTURE_TIME_BASE
            reason = self._find_final_reason(connection)
            is_quiet = until_s - last.time_s > (last.interval_s or 0) + Fraction(MAX_LATENESS_S)
            if self._is_receiving(connection) and not is_past_end and not is_quiet:
                until_s = last.time_s + (last.interval_s or 0)  # it would have gone on
            missing = last.find_missing(until_s, reason)
            gaps = self._frames.drop_all(missing.from_s if missing else float(until_s))
        return [
            FrameGap(self._number - 1, gap.from_s, gap.to_s, gap.frames, gap.reason)
            for gap in (*gaps, *([missing] if missing else ()))
        ]

    @property
    def _origin_us(self) -> int | None:
        return self._resume.origin_pts if self._sampler is None else self._sampler.timeline.origin

    def _find_last_kept(self) -> LastKeptFrame | None:
        kept_us, interval_s = self._kept_us, self._sampler.timeline.interval_s if self._sampler else None
        if self._sampler is None:
            kept_us = compute_covered_us(self._resume, self._kept_interval_s(Fraction(0)))
        if kept_us is None or self._origin_us is None:
            return None
        return LastKeptFrame(Fraction(kept_us - self._origin_us) * CAPTURE_TIME_BASE, self._rate, interval_s)

    def _find_final_reason(self, connection: _Connection | None) -> GapReason:
        if self._hole is not None:
            return self._hole
        return GapReason.RECONNECTING if connection is None or connection.has_ended else GapReason.STALLED

    def _is_receiving(self, connection: _Connection | None) -> bool:
        return connection is not None and connection.first is None and not connection.has_ended

    def _is_past_end(self) -> bool:
        """Return whether no frame before the end can come any more."""
        end_us = self._limits.compute_end_us(self._origin_us)
        if end_us is None or self._passed_end:
            return self._passed_end
        late_s = MAX_LATENESS_S if self._is_receiving(self._connection) else 0.0
        return (self._capture_now_us() - end_us) * CAPTURE_TIME_BASE >= late_s

    def _capture_now_us(self) -> int:
        """Return the capture time of a frame that would arrive now."""
        return time.time_ns() // 1000 - self._late_us

    def _find_reason_to_give_up(self) -> VidflowError | None:
        """Return the error to end with if no frame has come for as long as the limits allow."""
        limit_s = self._limits.give_up_after_s
        if limit_s is None or self._is_receiving(self._connection):
            return None
        if time.monotonic() - self._missed_since_s < limit_s:
            return None
        connection = self._connection or _Connection(self._missed_since_s)
        reason = self._outage or self._build_silence_error(connection)
        text = f"No frame has come for {limit_s:g} s, so the scenario ends (parameters.give_up_after_s)."
        return SourceError(f"{text} {reason.message.removesuffix(_WAITING)}", code=reason.code)

    def _number_step(self, step: _Picture | LiveGap) -> KeptFrame | FrameGap:
        if isinstance(step, LiveGap):
            return FrameGap(self._number - 1, step.from_s, step.to_s, step.frames, step.reason)
        number, self._number = self._number, self._number + 1
        orientation = self._orientation(step.decoded)
        width, height = displayed_size(step.decoded, orientation, step.info.pixel_aspect, step.info.crop)
        origin = self._sampler.timeline.origin if self._sampler else None
        reported, self._reported = self._reported, step.clock  # frames that were dropped may have jumped or drifted
        return KeptFrame(
            frame_number=number, pts=step.captured_us, time_base=CAPTURE_TIME_BASE, origin_pts=origin or 0, time_s=step.time_s,
            width=width, height=height, corrupt=step.decoded.is_corrupt, decoded=step.decoded, orientation=orientation,
            crop=step.info.crop, scaler=self._scaler, clock_jumps=step.clock.jumps - reported.jumps,
            captured=read_capture_time(step.decoded) or CaptureTime(step.captured_us, CaptureClock.ARRIVAL),
            clock_drifts=step.clock.drifts - reported.drifts,
        )  # fmt: skip

    def _orientation(self, frame: VideoFrame) -> Orientation:
        orientation = self._orientations.get(frame.rotation)
        if orientation is None:
            orientation = self._orientations[frame.rotation] = read_orientation(frame)
        return orientation

    # --- the watching thread

    def _keep_connected(self) -> None:
        """Open a connection whenever there is none, until the reader is closed or the source fails for good."""
        failures, lost_s = 0, time.monotonic()
        while True:
            connection = _Connection(time.monotonic())
            with self._lock:
                if self._stopped:
                    return
                self._connection = connection
            threading.Thread(target=self._read, args=(connection,), name="live connection", daemon=True).start()
            with self._lock:
                self._wait_until_lost(connection)
                self._connection = None  # what a connection that was left to itself reads has no effect any more
                if self._is_over():
                    return
                if self._note_lost(connection):
                    failures, lost_s = 0, time.monotonic()
                self._lock.wait_for(lambda: self._stopped, compute_pause_s(failures, time.monotonic() - lost_s))
            failures += 1

    def _wait_until_lost(self, connection: _Connection) -> None:
        """Wait until the connection has ended or is silent for too long, or the reader is closed."""
        while not self._stopped and not connection.has_ended:
            since_s, limit_s = connection.began_s, self._opening_limit_s()
            if connection.heard_s is not None:
                since_s, limit_s = connection.heard_s, self._silence_s()
            remaining_s = since_s + limit_s - time.monotonic()
            if remaining_s <= 0:
                return
            if connection.first:
                remaining_s = min(remaining_s, self._end_burst(connection, connection.first))
            self._lock.wait(remaining_s)

    def _end_burst(self, connection: _Connection, first: list[tuple[VideoFrame, int]]) -> float:
        """Place the first frames if no more have come at once. Return after how many seconds to look again."""
        assert connection.heard_s is not None
        assert connection.info is not None
        remaining_s = connection.heard_s + BURST_END_S - time.monotonic()
        if remaining_s <= 0:
            self._place_first_frames(connection, first, connection.info)
            return SILENCE_S
        return remaining_s

    def _is_over(self) -> bool:
        return self._stopped or self._failure is not None

    def _note_lost(self, connection: _Connection) -> bool:
        """Record why there is no connection. Return whether the lost one had sent frames."""
        self._outage = connection.error or self._build_silence_error(connection)
        if connection.heard_s is None:
            return False
        self._hole = GapReason.RECONNECTING if connection.has_ended else GapReason.STALLED
        return True

    def _build_silence_error(self, connection: _Connection) -> Unavailable:
        if connection.has_ended:
            return Unavailable(f"{self._display_name} ended its stream.{_WAITING}", code="source_unreachable")
        return Unavailable(f"{self._display_name} sends nothing.{_WAITING}", code="source_timeout")

    def _opening_limit_s(self) -> float:
        if self._sampler is None:
            return UNKNOWN_OPENING_S
        return max(OPENING_S, OPENING_FRAMES * float(self._sampler.timeline.interval_s))

    def _answer_limit_s(self) -> float:
        if self._opening_s is None:
            return UNKNOWN_ANSWER_S
        return min(max(SHORTEST_ANSWER_S, self._opening_s), LONGEST_ANSWER_S)

    def _silence_s(self) -> float:
        interval_s = float(self._sampler.timeline.interval_s) if self._sampler else 0.0
        return max(SILENCE_S, SILENT_FRAMES * interval_s)

    # --- the thread of a connection

    def _read(self, connection: _Connection) -> None:
        """Decode and sample until the connection ends, or is no longer the current one."""
        error: VidflowError | None = None
        try:
            self._require_answer(self._answer_limit_s())
            with self._open_connection() as video:
                for event in video.events():
                    if not self._note_event(connection, video.source, event):
                        return
        except VidflowError as failure:
            error = failure
        except ReadingStopped:
            return
        except BaseException as failure:  # noqa: BLE001 - raised by `take`
            error = build_internal_error(failure, VERSIONS, "the runner's log")
        with self._lock:
            connection.has_ended, connection.error = True, error
            if error is not None and connection is self._connection and self._is_fatal(error):
                self._failure = error
            self._lock.notify_all()

    def _note_event(self, connection: _Connection, info: SourceInfo, event: VideoFrame | LostPacket) -> bool:
        """Place and sample a frame. Return False if the connection is no longer the current one."""
        arrived_us = time.time_ns() // 1000
        with self._lock:
            if connection is not self._connection:
                return False
            if connection.heard_s is None:
                connection.info = info
                self._begin_connection(connection, info)
                self._opening_s = time.monotonic() - connection.began_s
            connection.heard_s = time.monotonic()
            if isinstance(event, LostPacket):
                self._lost_packets += 1
                return True
            self._missed_since_s = connection.heard_s
            self._measure_interval(connection, event.pts, info)
            if connection.first is None:
                self._place(event, arrived_us, info)
            else:
                self._note_first_frame(connection, connection.first, event, arrived_us, info)
            return True

    def _note_first_frame(
        self,
        connection: _Connection,
        first: list[tuple[VideoFrame, int]],
        frame: VideoFrame,
        arrived_us: int,
        info: SourceInfo,
    ) -> None:
        """Keep the frames that the server had stored, and that arrive at once, until it is known when they were captured."""
        is_burst = not first or arrived_us - first[-1][1] < connection.interval.interval_s / CAPTURE_TIME_BASE / 2
        first.append((frame, arrived_us))
        if is_burst and len(first) < compute_burst_limit(frame):
            self._lock.notify_all()  # the watcher ends the burst if no more frames come
            return
        self._place_first_frames(connection, first, info)

    def _place_first_frames(
        self, connection: _Connection, first: list[tuple[VideoFrame, int]], info: SourceInfo
    ) -> None:
        connection.first = None
        self._clock = self._clock.connect(info.time_base, [(frame.pts, arrived) for frame, arrived in first])
        # A scenario begins with its first frame that is handed on, not with those that had to be dropped before.
        for early, early_us in first if self._kept_us is not None else first[-self._capacity :]:
            if not self._clock.is_repeated(early.pts):
                self._place(early, early_us, info)

    def _place(self, frame: VideoFrame, arrived_us: int, info: SourceInfo) -> None:
        self._clock, is_placed = self._clock.place(frame.pts, arrived_us)
        if is_placed:
            assert self._clock.captured_us is not None
            self._late_us = arrived_us - self._clock.captured_us
            self._clock = self._clock.compare(read_capture_time(frame))
            self._sample(frame, info)

    def _measure_interval(self, connection: _Connection, pts: int | None, info: SourceInfo) -> None:
        """Correct the frames' duration, which counts those that are missing."""
        assert self._sampler is not None
        if pts is not None and connection.last_pts is not None and pts > connection.last_pts:
            connection.interval.note_step(round((pts - connection.last_pts) * info.time_base / CAPTURE_TIME_BASE))
            if connection.interval.interval_s != self._sampler.timeline.interval_s:
                self._sampler = self._sampler.change_interval(connection.interval.interval_s)
        connection.last_pts = pts

    def _begin_connection(self, connection: _Connection, info: SourceInfo) -> None:
        connection.interval = FrameInterval(info.average_rate)
        self._outage = None
        if self._sampler is None:
            self._sampler = self._build_sampler(connection.interval.interval_s)
        self._info = info
        self._lock.notify_all()

    def _build_sampler(self, interval_s: Fraction) -> Sampler:
        """Return the sampler that continues after the stored frames and gaps."""
        resume = self._resume
        self._kept_us = last = compute_covered_us(resume, self._kept_interval_s(interval_s))
        self._clock = LiveClock(last)
        timeline = Timeline(CAPTURE_TIME_BASE, interval_s, _FOREVER_S, resume.origin_pts, last)
        cells = None if last is None else compute_cells(last, timeline, self._rate)
        return Sampler(timeline, self._rate, resume.next_frame, cells)

    def _sample(self, frame: VideoFrame, info: SourceInfo) -> None:
        earlier, captured_us = self._sampler, self._clock.captured_us
        assert earlier is not None
        assert captured_us is not None
        end_us = self._limits.compute_end_us(captured_us if self._origin_us is None else self._origin_us)
        if self._passed_end or (end_us is not None and captured_us >= end_us):
            self._passed_end = True
            self._lock.notify_all()
            return
        self._sampler, is_kept = earlier.place_frame(captured_us).represent_tick()
        if not is_kept:
            return
        timeline = self._sampler.timeline
        time_s = float(timeline.seconds_since_start(captured_us))
        reason = self._hole or (GapReason.CORRUPT if self._lost_packets else None)
        if reason is not None and self._kept_us is not None:
            missing = count_missing(earlier, self._sampler)
            from_s = float(timeline.seconds_since_start(self._kept_us) + self._kept_interval_s(timeline.interval_s))
            if missing:
                self._frames.add_gap(min(from_s, time_s), missing, reason)
        self._hole, self._lost_packets, self._kept_us = None, 0, captured_us
        self._frames.add(_Picture(frame, captured_us, time_s, info, self._clock), time_s)
        self._lock.notify_all()

    def _kept_interval_s(self, interval_s: Fraction) -> Fraction:
        return interval_s if self._rate is None else max(interval_s, 1 / self._rate)


def compute_burst_limit(frame: VideoFrame) -> int:
    """Return how many frames of this size are kept before the first of them is placed."""
    frame_bytes = sum(plane.buffer_size for plane in frame.planes)
    return max(1, min(MAX_BURST_FRAMES, MAX_BURST_BYTES // max(1, frame_bytes)))


def compute_covered_us(resume: ResumePoint, kept_interval_s: Fraction) -> int | None:
    """Return the capture time of the last frame that is stored or in a stored gap. None: nothing is stored."""
    if resume.last_pts is None or resume.origin_pts is None or resume.gap_until_s is None:
        return resume.last_pts
    covered_s = Fraction(resume.gap_until_s) - kept_interval_s
    return max(resume.last_pts, resume.origin_pts + round(covered_s / CAPTURE_TIME_BASE))


def count_missing(earlier: Sampler, later: Sampler) -> int:
    """Return how many frames sampling would have kept between the last frame of each."""
    samples = earlier.rate is not None and earlier.rate * later.timeline.interval_s < 1
    if samples and earlier.cells is not None and later.cells is not None:
        return max(0, later.cells[0] - earlier.cells[0] - 1)
    before, after = earlier.timeline.tick, later.timeline.tick
    if before is None or after is None:
        return 0
    return max(0, round((after - before) * later.timeline.time_base / later.timeline.interval_s) - 1)
