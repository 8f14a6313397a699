"""Decode packets one at a time, so that a damaged packet costs only its own frame."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Final, TypeAlias

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.infra.video.holes import MAX_REORDERED_FRAMES, HoleFinder
from vidflow.infra.video.skipping import PacketSkipper, SkippedFrame

DEMUX_ATTEMPTS: Final = 64
"""Consecutive failures to read on after damaged data, after which the file counts as ended."""
_SILENT_DECODERS: Final = frozenset({"hevc", "mpeg1video", "mpeg2video"})
"""Decoders that may skip a damaged packet without an error. Each of their packets contains exactly one frame, or a field of MPEG-2."""
_PICTURE_START: Final = b"\0\0\1\0"
_EXTENSION_START: Final = b"\0\0\1\xb5"
_PICTURE_EXTENSION, _WHOLE_FRAME = 8, 3
_HEADER_BYTES: Final = 1024
"""The start of an MPEG-2 packet, with all headers of its picture but user data."""
MAX_PENDING_PACKETS: Final = 4096
"""Packets whose frames are awaited. No decoder holds back this many."""


@dataclass(frozen=True, slots=True)
class LostPacket:
    """A packet that could not be read or decoded. `pts` is the packet's own, None if it has none."""

    pts: int | None


Event: TypeAlias = "VideoFrame | SkippedFrame | LostPacket"
"""What becomes of a packet."""
Demux: TypeAlias = "Callable[[InputContainer, VideoStream], Iterator[Packet[VideoStream] | LostPacket]]"
"""Reads the packets of a stream."""


def decode_packets(
    container: InputContainer,
    stream: VideoStream,
    skipper: PacketSkipper,
    *,
    lacks_pts: bool = False,
    check: Callable[[], None] = lambda: None,
    check_end: Callable[[], None] | None = None,
    note_packet: Callable[[Packet[VideoStream]], None] | None = None,
    demux: Demux | None = None,
) -> Iterator[Event]:
    """Yield the frames from the container's position on, in display order, and the lost packets between them.

    `lacks_pts`: the packets have only times of decoding. Frames are displayed at the same times, in another order. `check`:
    raises the error of the container's file, after which no packet is taken: it may be cut off. `check_end`: raises an error if the
    file does not end where the packets do; the last packet, which may be cut off, is taken only after it. `note_packet`: called
    with each packet before it is decoded. `demux`: reads the packets in another way than PyAV. `skipper`: chooses the packets that
    are decoded. The frames of the others appear as SkippedFrame.

    With frame threads a decoder reports damage late or not at all, and some decoders always skip some damage silently. Each packet
    is then tracked until its frame appears. Frames without a packet are found where the container reports that data is missing.
    Raises Unavailable if the file or the network fails; a retry may succeed. Raises SourceError at the first encrypted packet.
    """
    codec = stream.codec_context.name
    losses = _LossTracker(
        errors_come_late=_has_frame_threads(stream), skips_silently=codec in _SILENT_DECODERS, may_have_fields=codec == "mpeg2video"
    )  # fmt: skip
    holes = HoleFinder(Fraction(stream.time_base or Fraction(1, av.time_base)))
    packets = _packets(partial(demux or InputContainer.demux, container, stream), check)
    if check_end is not None:
        packets = _hold_last(packets, check_end)
    if note_packet is not None:
        packets = _note_each(packets, note_packet)
    if lacks_pts:
        yield from _decode_by_order(packets)
        return
    context = stream.codec_context
    for packet in skipper.select(packets):
        if isinstance(packet, SkippedFrame):
            holes.note_packet(packet.pts, is_damaged=False)
            continue
        for event in _decode_selected(packet, context, losses, holes, skipper):
            if isinstance(event, LostPacket):
                losses.note_loss(event.pts)
                yield event
            else:
                for skipped in skipper.take_before(event):
                    yield from _complete(skipped, losses, holes)
                yield from _complete(event, losses, holes)
        skipper.is_suspended = losses.is_tracking
        yield from losses.take_overdue(MAX_PENDING_PACKETS)
    for skipped in skipper.take_all():
        yield from _complete(skipped, losses, holes)
    yield from losses.report(holes.find_at_end())
    yield from losses.take_overdue()


def _decode_selected(
    packet: Packet[VideoStream] | LostPacket,
    context: VideoCodecContext,
    losses: _LossTracker,
    holes: HoleFinder,
    skipper: PacketSkipper,
) -> Iterator[VideoFrame | LostPacket]:
    """Yield what becomes of a packet. If it is lost or damaged, what was left out before it is decoded first, as without skipping."""
    if isinstance(packet, LostPacket):
        yield from _decode_again(skipper.take_back(but_last=False), context, losses, skipper)
        yield packet
        return
    if packet.size:
        holes.note_packet(packet.pts, is_damaged=packet.is_corrupt)
    if packet.size and packet.is_corrupt:
        losses.note_loss(packet.pts)
        yield from _decode_again(skipper.take_back(but_last=True), context, losses, skipper)
    for event in _decode(packet, losses):
        if isinstance(event, LostPacket) and (left_out := skipper.take_back(but_last=True)):
            yield from _decode_again(left_out, context, losses, skipper)
            yield from _decode(packet, losses)
        elif isinstance(event, VideoFrame) and event.is_corrupt and (left_out := skipper.take_back(but_last=False)):
            yield from _decode_again(left_out, context, losses, skipper)
            return  # with this packet's frames
        else:
            yield event


def _decode_again(
    packets: list[Packet[VideoStream]], context: VideoCodecContext, losses: _LossTracker, skipper: PacketSkipper
) -> Iterator[VideoFrame | LostPacket]:
    """Decode packets from an IDR picture on, some of them for the first time. Yield the frames that were not displayed yet."""
    if packets:
        context.flush_buffers()
    for packet in packets:
        for event in _decode(packet, losses):
            if isinstance(event, VideoFrame) and skipper.is_new(event):
                yield event


def _complete(frame: VideoFrame | SkippedFrame, losses: _LossTracker, holes: HoleFinder) -> Iterator[Event]:
    """Yield the next frame in order of display, after the losses before it."""
    yield from losses.take_missing_before(frame)
    yield from losses.report(holes.find_before(frame.pts))
    yield frame


def _decode_by_order(packets: Iterator[Packet[VideoStream] | LostPacket]) -> Iterator[VideoFrame | LostPacket]:
    """Decode packets without pts. Each frame gets the lowest time of decoding that no earlier frame got."""
    losses = _LossTracker(errors_come_late=False, skips_silently=False)
    free_dts: list[int] = []  # a heap
    for packet in packets:
        if isinstance(packet, LostPacket):
            yield packet
            continue
        if packet.dts is not None and packet.size:
            heapq.heappush(free_dts, packet.dts)
        for event in _decode(packet, losses):
            if isinstance(event, VideoFrame):
                event.pts = heapq.heappop(free_dts) if free_dts else None
                yield event
            else:
                if packet.dts in free_dts:
                    free_dts.remove(packet.dts)
                    heapq.heapify(free_dts)
                yield LostPacket(packet.dts)
        while len(free_dts) > MAX_PENDING_PACKETS:
            heapq.heappop(free_dts)
    yield from (LostPacket(dts) for dts in sorted(free_dts))


class _LossTracker:
    """Finds the packets lost along with a damaged one: decoders silently drop dependent frames up to the next keyframe.

    After a loss it records the packets that the decoder accepts, and from the start if `errors_come_late` or `skips_silently`. A
    packet is also lost if a later frame appears before its own.
    """

    def __init__(self, *, errors_come_late: bool, skips_silently: bool, may_have_fields: bool = False) -> None:
        self._pending_pts: list[int] = []  # a heap of pts
        self._last_lost_pts: int | None = None
        self._first_pts: int | None = None  # of the first frame
        self._skips_silently, self._may_have_fields = skips_silently, may_have_fields
        self._reported: deque[int] = deque(maxlen=MAX_REORDERED_FRAMES)  # the pts of the last packets reported as lost
        self._confused = 0  # how many frames appeared after a report of their loss
        self.errors_come_late = errors_come_late

    @property
    def is_tracking(self) -> bool:
        """Whether it records every packet."""
        return self.errors_come_late or self._last_lost_pts is not None

    def note_loss(self, pts: int | None) -> None:
        """Record a lost packet, or one after which data is missing."""
        if pts is not None and not self.errors_come_late:
            self._last_lost_pts = pts if self._last_lost_pts is None else max(self._last_lost_pts, pts)

    def note_input(self, packet: Packet[VideoStream]) -> None:
        """Record a packet that the decoder accepted."""
        if packet.pts is None or not packet.size or packet.is_discard:
            return
        if self._skips_silently and self._may_have_fields and is_single_field(memoryview(packet)):
            self._skips_silently = False  # two packets make a frame
        # Frames before a keyframe at which decoding begins are skipped, because they refer to earlier ones.
        is_leading = self._first_pts is not None and packet.pts < self._first_pts
        if self.is_tracking or (self._skips_silently and not is_leading):
            heapq.heappush(self._pending_pts, packet.pts)

    def take_missing_before(self, frame: VideoFrame | SkippedFrame) -> Iterator[LostPacket]:
        """Yield the packets whose frames should have appeared before this one. A keyframe after the loss ends the tracking."""
        if frame.pts is None:
            return
        if self._first_pts is None:
            self._first_pts = frame.pts
            if not self.errors_come_late and self._last_lost_pts is None:
                self._drop_leading(frame.pts)
        if frame.pts in self._reported:  # the decoder confuses the order of frames after a loss
            self._reported.remove(frame.pts)
            self._confused += 1
        while self._pending_pts and self._pending_pts[0] <= frame.pts:
            pts = heapq.heappop(self._pending_pts)
            if pts < frame.pts:
                yield from self.report([pts])
        if (
            self._last_lost_pts is not None
            and not self._pending_pts
            and isinstance(frame, VideoFrame)
            and frame.key_frame
            and frame.pts > self._last_lost_pts
        ):
            self._last_lost_pts = None

    def report(self, missing: Iterable[int]) -> Iterator[LostPacket]:
        """Yield the packets of missing frames, given by their pts, but fewer by the frames that came after such a report."""
        for pts in missing:
            if self._confused:
                self._confused -= 1
            else:
                self._reported.append(pts)
                yield LostPacket(pts)

    def _drop_leading(self, first_pts: int) -> None:
        while self._pending_pts and self._pending_pts[0] < first_pts:
            heapq.heappop(self._pending_pts)

    def take_overdue(self, kept: int = 0) -> Iterator[LostPacket]:
        """Yield the recorded packets whose frames have not appeared, except the newest `kept`."""
        while len(self._pending_pts) > kept:
            yield LostPacket(heapq.heappop(self._pending_pts))


def is_single_field(picture: memoryview) -> bool:
    """Return whether a packet of MPEG-2 contains only one of the two fields of a frame."""
    header = picture[:_HEADER_BYTES].tobytes()
    start = header.find(_EXTENSION_START)
    while 0 <= start < len(header) - 6 and header[start + 4] >> 4 != _PICTURE_EXTENSION:
        start = header.find(_EXTENSION_START, start + 1)
    if not 0 <= start < len(header) - 6 or header[start + 6] & 3 == _WHOLE_FRAME:
        return False
    return picture.tobytes().count(_PICTURE_START) == 1


def _packets(
    demux: Callable[[], Iterator[Packet[VideoStream] | LostPacket]], check: Callable[[], None]
) -> Iterator[Packet[VideoStream] | LostPacket]:
    """Yield the stream's packets, skipping damaged data. The last packet is empty and flushes the decoder."""
    failures = 0
    packets = demux()
    while True:
        try:
            packet = next(packets, None)
        except av.error.InvalidDataError:
            # The generator ended with the error. A new one continues after the data that could not be parsed.
            check()
            failures += 1
            if failures > DEMUX_ATTEMPTS:
                return
            yield LostPacket(None)
            packets = demux()
        except av.error.FFmpegError as error:
            check()
            raise Unavailable(
                f"Reading the source failed midway ({error.strerror}). Check its disk or server; a retry continues from here.",
                code="source_unreadable",
            ) from error
        else:
            check()
            if packet is None:
                return
            if not isinstance(packet, LostPacket) and packet.has_sidedata("encryption_info"):
                raise SourceError(
                    "The video is encrypted (DRM), so its frames cannot be decoded. Give a file without encryption.",
                    code="source_encrypted",
                )
            failures = 0
            yield packet


def _note_each(
    packets: Iterator[Packet[VideoStream] | LostPacket], note_packet: Callable[[Packet[VideoStream]], None]
) -> Iterator[Packet[VideoStream] | LostPacket]:
    for packet in packets:
        if not isinstance(packet, LostPacket):
            note_packet(packet)
        yield packet


def _hold_last(
    packets: Iterator[Packet[VideoStream] | LostPacket], check_end: Callable[[], None]
) -> Iterator[Packet[VideoStream] | LostPacket]:
    """Yield the packets, each only after the next one has been read, or the end has been checked."""
    held: list[Packet[VideoStream] | LostPacket] = []
    is_checked = False
    for packet in packets:
        if not isinstance(packet, LostPacket) and not packet.size and packet.dts is None:
            check_end()  # the packet flushes the decoder
            is_checked = True
        yield from held
        held = [packet]
    if not is_checked:
        check_end()
    yield from held


def _decode(packet: Packet[VideoStream], losses: _LossTracker) -> Iterator[VideoFrame | LostPacket]:
    if losses.errors_come_late:
        losses.note_input(packet)
    try:
        frames = packet.decode()
    except av.error.EOFError:
        return
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        if not losses.errors_come_late or packet.pts is None:
            yield LostPacket(packet.pts)
        return
    if not losses.errors_come_late:
        losses.note_input(packet)
    # Popping releases each frame once the consumer is done with it, even if a packet yields two.
    frames.reverse()
    while frames:
        yield frames.pop()


def _has_frame_threads(stream: VideoStream) -> bool:
    return stream.codec_context.thread_count != 1 and ThreadType.FRAME in stream.codec_context.thread_type
