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
from typing import Final, Protocol, Self

from av.video.frame import VideoFrame

from vidflow import VERSIONS
from vidflow.domain.errors import SourceError, Unavailable, VidflowError, build_internal_error
from vidflow.domain.live_clock import CAPTURE_TIME_BASE, CaptureTime, LiveClock
from vidflow.domain.live_end import LiveLimits
from vidflow.domain.live_stream import Arrival, LiveFrame, LiveStream
from vidflow.domain.messages import CaptureClock, ClockChanges, GapReason, ResumePoint
from vidflow.domain.newest_frames import LiveGap
from vidflow.infra.video.capture_times import read_capture_time
from vidflow.infra.video.frames import FrameGap, KeptFrame
from vidflow.infra.video.open import Video
from vidflow.infra.video.packets import Event, LostPacket
from vidflow.infra.video.pixels import Orientation, displayed_size, read_orientation
from vidflow.infra.video.source import SourceInfo
from vidflow.infra.video.source_connection import Interruption, ReadingStopped

SILENCE_S: Final = 2.0
SILENT_FRAMES: Final = 3
"""A source that has sent nothing for this many frame durations, and SILENCE_S, is lost."""
OPENING_S: Final = 15.0
OPENING_FRAMES: Final = 5
"""A connection that has brought no frame after so many frame durations, and OPENING_S, is left to itself. The decoder may have to wait for
a key frame, and the end of the first frames is only known when the next ones begin."""
UNKNOWN_OPENING_S: Final = 45.0
"""The same for a source whose frame duration is not known yet."""
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


def compute_pause_s(failures: int, outage_s: float) -> float:
    """Return how long after the loss, or after the beginning of the last attempt that failed, to begin the next one.

    `failures`: attempts in a row that failed. `outage_s`: the time since the loss.
    """
    if outage_s > LONG_OUTAGE_S:
        return LONGEST_PAUSE_S
    return min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), USUAL_PAUSE_S)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded frame and the properties of the source at that time."""

    decoded: VideoFrame
    info: SourceInfo


class OpenConnection(Protocol):
    """A function that opens a source."""

    def __call__(self, *, interruption: Interruption) -> Video:
        """Return the source with its first frame decoded. `interruption` is set once nobody wants its frames any more."""
        ...


@dataclass(slots=True)
class _Connection:
    """A connection: when it was last heard (None: no frame yet), and whether and why it ended. Guarded by the reader's lock.

    `abandoned` is set once it is no longer the current one.
    """

    began_s: float
    heard_s: float | None = None
    has_ended: bool = False
    error: VidflowError | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)


class LiveReader:
    """The newest frames of a live source. Use it on one thread, as a context manager.

    `open_connection` is called on other threads. `require_answer` is called before it, to find out within seconds whether the
    source is there; it raises like `open_connection`. `is_fatal`: whether its error ends the reading. `rate`: kept frames a second
    (None: all). `capacity`: how many frames wait at most; older ones are dropped and reported as a gap. `limits`: when the reading
    ends by itself.
    """

    def __init__(
        self,
        open_connection: OpenConnection,
        display_name: str,
        is_fatal: Callable[[VidflowError], bool],
        rate: Fraction | None,
        resume: ResumePoint,
        capacity: int,
        limits: LiveLimits | None = None,
        require_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_connection, self._display_name, self._is_fatal = open_connection, display_name, is_fatal
        self._limits, self._require_answer = limits or LiveLimits(), require_answer
        self._lock = threading.Condition()
        self._stream: LiveStream[_Picture] = LiveStream(rate, resume, capacity, self._limits)
        self._number = resume.next_frame
        self._reported = LiveClock()  # the clock at the last frame that was handed on
        self._connection: _Connection | None = None
        self._missed_since_s = time.monotonic()  # since when no frame has come
        self._info: SourceInfo | None = None
        self._failure: VidflowError | None = None
        self._outage: VidflowError | None = None
        self._stopped = False
        self._orientations: dict[int, Orientation] = {}
        self._watcher = threading.Thread(target=self._keep_connected, name="live source", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopped = True
            self._abandon_connection()
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
            return not len(self._stream) and self._is_past_end()

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
                lambda: len(self._stream) or self._failure is not None or self._is_past_end(), timeout_s
            )
            self._failure = self._failure or self._find_reason_to_give_up()
            taken = self._stream.take()
            if not taken and self._failure is not None:
                raise self._failure
        while taken and self._number == 0 and isinstance(taken[0], LiveGap):
            del taken[0]  # before the scenario's first frame
        return [self._number_step(step) for step in taken]

    def end(self) -> list[FrameGap]:
        """Stop reading, and return what is missing from the last frame taken to the end, which is now or that of the limits."""
        with self._lock:
            connection, is_receiving = self._connection, self._is_receiving
            self._stopped = True
            self._abandon_connection()
            self._lock.notify_all()
            has_lost = connection is None or connection.has_ended
            reason = GapReason.RECONNECTING if has_lost else GapReason.STALLED
            gaps = self._stream.end(_now_us(), is_receiving=is_receiving, reason=reason) if self._number else []
        return [FrameGap(self._number - 1, gap.from_s, gap.to_s, gap.frames, gap.reason) for gap in gaps]

    def read_clock_changes(self) -> ClockChanges | None:
        """Return what the source's clock did since the last frame taken, None if nothing."""
        with self._lock:
            return self._stream.describe_clock_changes(self._reported) if self._number else None

    def _abandon_connection(self) -> None:
        """Leave the connection to itself. It ends as soon as it notices; what it reads has no effect any more."""
        if self._connection is not None:
            self._connection.abandoned.set()
            self._connection = None

    @property
    def _is_receiving(self) -> bool:
        connection = self._connection
        return connection is not None and not connection.has_ended and self._stream.is_flowing

    def _is_past_end(self) -> bool:
        return self._stream.is_past_end(_now_us(), is_receiving=self._is_receiving)

    def _find_reason_to_give_up(self) -> VidflowError | None:
        """Return the error to end with if no frame has come for as long as the limits allow."""
        limit_s = self._limits.give_up_after_s
        if limit_s is None or self._is_receiving:
            return None
        if time.monotonic() - self._missed_since_s < limit_s:
            return None
        connection = self._connection or _Connection(self._missed_since_s)
        reason = self._outage or self._build_silence_error(connection)
        text = f"No frame has come for {limit_s:g} s, so the scenario ends (parameters.give_up_after_s)."
        return SourceError(f"{text} {reason.message.removesuffix(_WAITING)}", code=reason.code)

    def _number_step(self, step: LiveFrame[_Picture] | LiveGap) -> KeptFrame | FrameGap:
        if isinstance(step, LiveGap):
            return FrameGap(self._number - 1, step.from_s, step.to_s, step.frames, step.reason)
        number, self._number = self._number, self._number + 1
        decoded, info = step.item.decoded, step.item.info
        orientation = self._orientation(decoded)
        width, height = displayed_size(decoded, orientation, info.pixel_aspect, info.crop)
        reported, self._reported = self._reported, step.clock  # frames that were dropped may have jumped or drifted
        return KeptFrame(
            frame_number=number, pts=step.captured_us, time_base=CAPTURE_TIME_BASE, origin_pts=self._stream.origin_us or 0,
            time_s=step.time_s, width=width, height=height, corrupt=decoded.is_corrupt, decoded=decoded, orientation=orientation,
            crop=info.crop, clock_jumps=step.clock.jumps - reported.jumps,
            captured=read_capture_time(decoded) or CaptureTime(step.captured_us, CaptureClock.ARRIVAL),
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
                self._abandon_connection()
                if self._is_over():
                    return
                now_s = time.monotonic()
                since_s = connection.began_s
                if self._note_lost(connection):
                    failures, lost_s, since_s = 0, now_s, now_s
                pause_s = compute_pause_s(failures, now_s - lost_s) - (now_s - since_s)
                self._lock.wait_for(lambda: self._stopped, pause_s)
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
            if connection.heard_s is not None and self._stream.has_burst:
                burst_s = connection.heard_s + BURST_END_S - time.monotonic()
                if burst_s <= 0:
                    self._stream.end_burst()
                    self._lock.notify_all()
                    continue
                remaining_s = min(remaining_s, burst_s)
            self._lock.wait(remaining_s)

    def _is_over(self) -> bool:
        return self._stopped or self._failure is not None

    def _note_lost(self, connection: _Connection) -> bool:
        """Record why there is no connection. Return whether the lost one had sent frames."""
        self._outage = connection.error or self._build_silence_error(connection)
        if connection.heard_s is None:
            return False
        self._stream.disconnect(GapReason.RECONNECTING if connection.has_ended else GapReason.STALLED)
        self._lock.notify_all()
        return True

    def _build_silence_error(self, connection: _Connection) -> Unavailable:
        if connection.has_ended:
            return Unavailable(f"{self._display_name} ended its stream.{_WAITING}", code="source_unreachable")
        return Unavailable(f"{self._display_name} sends nothing.{_WAITING}", code="source_timeout")

    def _opening_limit_s(self) -> float:
        interval_s = self._stream.interval_s
        return UNKNOWN_OPENING_S if interval_s is None else max(OPENING_S, OPENING_FRAMES * float(interval_s))

    def _silence_s(self) -> float:
        return max(SILENCE_S, SILENT_FRAMES * float(self._stream.interval_s or 0))

    # --- the thread of a connection

    def _read(self, connection: _Connection) -> None:
        """Decode and sample until the connection ends, or is no longer the current one."""
        error: VidflowError | None = None
        try:
            self._require_answer()
            with self._open_connection(interruption=connection.abandoned) as video:
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

    def _note_event(self, connection: _Connection, info: SourceInfo, event: Event) -> bool:
        """Place and sample a frame. Return False if the connection is no longer the current one."""
        arrived_us = _now_us()
        with self._lock:
            if connection is not self._connection:
                return False
            if connection.heard_s is None:
                self._stream.connect(info.time_base if info.is_timed else None, info.average_rate)
                self._outage, self._info = None, info
            connection.heard_s = time.monotonic()
            if isinstance(event, LostPacket):
                self._stream.lose_packet()
            elif isinstance(event, VideoFrame):
                self._missed_since_s = connection.heard_s
                arrival = Arrival(_Picture(event, info), event.pts, arrived_us, read_capture_time(event))
                self._stream.add(arrival, compute_burst_limit(event))
            if len(self._stream) or self._stream.has_burst or self._is_past_end():
                self._lock.notify_all()
            return True


def _now_us() -> int:
    return time.time_ns() // 1000


def compute_burst_limit(frame: VideoFrame) -> int:
    """Return how many frames of this size are kept before the first of them is placed."""
    frame_bytes = sum(plane.buffer_size for plane in frame.planes)
    return max(1, min(MAX_BURST_FRAMES, MAX_BURST_BYTES // max(1, frame_bytes)))
