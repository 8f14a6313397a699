"""Choose the packets of an H.264 stream that must be decoded, when sampling keeps only some of the frames.

Two kinds of packets are left out if their frames are not kept: pictures that no other one refers to, and the end of a group of
pictures after the last frame that is kept, since nothing after an IDR picture refers to anything before it. All other frames are
decoded exactly as without skipping, but for parts that the decoder guesses. Damage in a packet that is left out is not noticed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Final, NamedTuple, TypeVar

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.infra.video.holes import MAX_REORDERED_FRAMES

MAX_KEPT_BYTES: Final = 8 * 1024 * 1024
"""Packets that are kept to decode them again: ten seconds of 6 Mbit/s. After more, no frame is skipped until the next IDR picture."""
MAX_SKIPPED_FRAMES: Final = 4096
"""Skipped frames that wait for a frame after them. At this many, packets are decoded until there is one."""
MAX_REORDERED_S: Final = Fraction(1)
"""A packet that is displayed later than this (or than MAX_REORDERED_FRAMES) after it is decoded has a wrong time."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SkippedFrame:
    """A frame that was not decoded, because it is not kept. Its time and duration are in ticks."""

    pts: int
    duration: int


class Picture(Enum):
    """What a packet means for later ones."""

    IDR = "no later picture refers to one before it"
    REFERENCE = "later pictures may refer to it"
    DISPOSABLE = "no other picture refers to it"
    OTHER = "must be decoded"


class PictureHeader(NamedTuple):
    """The kind of the picture in a packet, and the parameter sets before it."""

    picture: Picture
    parameter_sets: bytes


class _Past(NamedTuple):
    packet: Packet[VideoStream]
    picture: Picture
    is_left_out: bool


class _History:
    """The packets from an IDR picture on, so that they can be decoded again. The picture's frame is displayed, or was the first.

    `is_complete`: whether all of them are there. They are not after too many bytes, or after damage, until the next IDR picture.
    """

    def __init__(self) -> None:
        self.is_complete = True
        self._size_bytes = 0
        self._packets: deque[_Past] = deque()
        self._idr_pts: deque[int] = deque()  # of those that are not displayed

    def add(self, past: _Past) -> None:
        """Add the next packet in order of decoding."""
        if past.picture is Picture.IDR:
            self.is_complete = True
            self._idr_pts.append(past.packet.pts or 0)
        if self.is_complete:
            self._packets.append(past)
            self._size_bytes += past.packet.size
            if self._size_bytes > MAX_KEPT_BYTES:
                self.clear()

    def note_frame(self, pts: int) -> None:
        """Remove the packets before the last IDR picture that is displayed up to a frame."""
        while self._idr_pts and self._idr_pts[0] <= pts:
            idr_pts = self._idr_pts.popleft()
            while self._packets[0].packet.pts != idr_pts or self._packets[0].picture is not Picture.IDR:
                self._size_bytes -= self._packets.popleft().packet.size

    def clear(self) -> None:
        """Remove all packets, after which it is not complete."""
        self.is_complete, self._size_bytes = False, 0
        self._packets.clear()
        self._idr_pts.clear()

    def take(self) -> list[Packet[VideoStream]]:
        """Remove all packets. Return them if some were left out."""
        packets = [past.packet for past in self._packets] if any(past.is_left_out for past in self._packets) else []
        self.clear()
        return packets


class PacketSkipper:
    """Leaves out packets of a stream, from its position on. Of other codecs than H.264 it leaves out none.

    `is_suspended`: decode every packet for now.
    """

    def __init__(self, stream: VideoStream, *, is_enabled: bool) -> None:
        context = stream.codec_context
        self._is_enabled = is_enabled and context.name == "h264"
        self._unwanted: range | None = None if self._is_enabled else range(0)
        self.is_suspended = False
        self._context, self._is_regular = context, True
        self._length_bytes = find_length_bytes(context.extradata)
        delay_s = max(MAX_REORDERED_S, MAX_REORDERED_FRAMES / Fraction(stream.average_rate or 25))
        self._longest_delay = int(delay_s / (stream.time_base or Fraction(1, 90_000)))
        self._history = _History()
        self._held: deque[tuple[Packet[VideoStream], Picture]] = deque()  # unwanted, but later frames may need them
        self._held_bytes = 0
        self._skipped: list[tuple[int, int]] = []  # a heap of pts and durations
        self._parameter_sets: bytes | None = None  # the last ones that the decoder got
        self._last_dts: int | None = None
        self._last_pts: int | None = None  # of a frame that was decoded or skipped
        self._reorders = bool(context.has_b_frames)

    def skip(self, unwanted: range) -> None:
        """Leave out packets of frames at these pts from now on. Whoever takes the frames may call it at any time."""
        if self._is_enabled:
            self._unwanted = unwanted

    def select(self, packets: Iterator[Packet[VideoStream] | T]) -> Iterator[Packet[VideoStream] | T | SkippedFrame]:
        """Yield the packets to decode, and in place of the others their frames. Both are in order of decoding."""
        for packet in packets:
            if self._unwanted is not None and not self._unwanted and not self._held:
                self._history.clear()
                yield packet
            elif isinstance(packet, Packet):
                yield from self._select(packet)
            else:
                yield from self._release()
                yield packet
        yield from self._release()

    def take_before(self, frame: VideoFrame) -> Iterator[SkippedFrame]:
        """Yield the skipped frames that are displayed before a frame that was decoded."""
        pts = frame.pts
        if pts is None or frame.interlaced_frame or (self._last_pts is not None and pts <= self._last_pts):
            self._is_regular = False  # a packet may contain half a frame, or times contradict the order of display
            yield from self.take_all()
            return
        while self._skipped and self._skipped[0][0] < pts:
            yield SkippedFrame(*heapq.heappop(self._skipped))
        self._last_pts = pts
        self._history.note_frame(pts)

    def take_all(self) -> Iterator[SkippedFrame]:
        """Yield all skipped frames that were not taken."""
        while self._skipped:
            skipped = SkippedFrame(*heapq.heappop(self._skipped))
            self._last_pts = skipped.pts
            yield skipped

    def take_back(self, *, but_last: bool) -> list[Packet[VideoStream]]:
        """Return the packets to decode again from an IDR picture on, if some of them were left out. The decoder must be flushed first.

        What the decoder makes of damage depends on all packets before it. None is left out before the next IDR picture.
        `but_last`: without the last packet that was selected.
        """
        packets = self._history.take()
        if packets:
            self._skipped.clear()
        return packets[:-1] if but_last else packets

    def is_new(self, frame: VideoFrame) -> bool:
        """Return whether a frame that is decoded again was neither decoded nor skipped before."""
        return frame.pts is not None and (self._last_pts is None or frame.pts > self._last_pts)

    def _select(self, packet: Packet[VideoStream]) -> Iterator[Packet[VideoStream] | SkippedFrame]:
        picture = self._read_picture(packet)
        may_skip = not self.is_suspended and self._history.is_complete and len(self._skipped) < MAX_SKIPPED_FRAMES
        if picture is Picture.IDR and may_skip:
            yield from self._drop()
        if picture is Picture.OTHER or not may_skip or packet.pts not in (self._unwanted or ()):
            yield from self._release()
            self._history.add(_Past(packet, picture, is_left_out=False))
            yield packet
        elif picture is Picture.DISPOSABLE and not self._held:
            yield self._skip(packet, picture)
        else:
            self._held.append((packet, picture))
            self._held_bytes += packet.size
            if len(self._held) >= MAX_SKIPPED_FRAMES or self._held_bytes > MAX_KEPT_BYTES:
                yield from self._release()

    def _read_picture(self, packet: Packet[VideoStream]) -> Picture:
        """Return what the packet contains, OTHER if it must not be left out. Wrong times of one packet end all skipping."""
        pts, dts = packet.pts, packet.dts
        if not packet.size or pts is None or dts is None:
            self._is_regular &= not packet.size or pts is not None
            return Picture.OTHER
        is_early = self._last_dts is not None and dts <= self._last_dts
        self._last_dts = dts
        # Frames are displayed in another order if the decoder only now finds that it must hold some back.
        self._is_regular &= (
            not is_early
            and dts <= pts <= dts + self._longest_delay
            and bool(self._context.has_b_frames) == self._reorders
        )
        if not self._is_regular or packet.is_corrupt or packet.is_discard or packet.has_sidedata("new_extradata"):
            return Picture.OTHER
        picture, parameter_sets = read_header(memoryview(packet), self._length_bytes)
        if parameter_sets and parameter_sets != self._parameter_sets:
            self._parameter_sets = parameter_sets
            if self._unwanted is not None:
                self._history.clear()
                return Picture.OTHER
        return picture

    def _release(self) -> Iterator[Packet[VideoStream] | SkippedFrame]:
        """Yield the held packets, which later frames need."""
        self._held_bytes = 0
        while self._held:
            packet, picture = self._held.popleft()
            if picture is Picture.DISPOSABLE:
                yield self._skip(packet, picture)
            else:
                self._history.add(_Past(packet, picture, is_left_out=False))
                yield packet

    def _drop(self) -> Iterator[SkippedFrame]:
        """Skip the held packets."""
        self._held_bytes = 0
        while self._held:
            yield self._skip(*self._held.popleft())

    def _skip(self, packet: Packet[VideoStream], picture: Picture) -> SkippedFrame:
        self._history.add(_Past(packet, picture, is_left_out=True))
        skipped = SkippedFrame(packet.pts or 0, packet.duration or 0)
        heapq.heappush(self._skipped, (skipped.pts, skipped.duration))
        return skipped


_SLICE, _IDR_SLICE, _SEI, _SEQUENCE, _PICTURE, _DELIMITER, _FILLER = 1, 5, 6, 7, 8, 9, 12
_PLAIN_MESSAGES: Final = frozenset({0, 1, 4, 5})
"""SEI messages that change no picture: buffering period, picture timing, user data."""
_RECOVERY_POINT: Final = 6
_START: Final = b"\0\0\1"


def find_length_bytes(extradata: bytes | None) -> int | None:
    """Return how many bytes the length before each NAL unit has. None: units begin with a start code."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 6 and extradata[0] == 1 else None


def read_header(packet: memoryview, length_bytes: int | None) -> PictureHeader:
    """Return what a packet of H.264 contains, by the types of its NAL units. `length_bytes`: see find_length_bytes."""
    kinds, parameter_sets = set(), b""
    for unit in _split_lengths(packet, length_bytes) if length_bytes else _split_starts(packet):
        kind, is_reference = (unit[0] & 31, bool(unit[0] & 0x60)) if len(unit) > 1 else (0, False)
        if kind == _SLICE:
            kinds.add(Picture.REFERENCE if is_reference else Picture.DISPOSABLE)
        elif kind == _IDR_SLICE:
            kinds.add(Picture.IDR)
        elif kind in (_SEQUENCE, _PICTURE):
            parameter_sets += unit.tobytes().rstrip(b"\0")
        elif kind == _SEI:
            messages = _read_message_types(unit.tobytes())
            kinds.update({Picture.REFERENCE} if _RECOVERY_POINT in messages else ())
            kinds.update(() if messages <= _PLAIN_MESSAGES | {_RECOVERY_POINT} else {Picture.OTHER})
        elif kind not in (_DELIMITER, _FILLER):
            kinds.add(Picture.OTHER)
    if kinds == {Picture.IDR, Picture.REFERENCE}:  # an IDR picture with a recovery point, or with a second field
        return PictureHeader(Picture.IDR, parameter_sets)
    if kinds == {Picture.DISPOSABLE, Picture.REFERENCE}:
        return PictureHeader(Picture.REFERENCE, parameter_sets)
    return PictureHeader(kinds.pop() if len(kinds) == 1 else Picture.OTHER, parameter_sets)


def _split_lengths(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    position = 0
    while position < len(packet):
        start = position + length_bytes
        position = start + int.from_bytes(packet[position:start])
        yield packet[start:position] if position <= len(packet) else packet[:0]


def _split_starts(packet: memoryview) -> Iterator[memoryview]:
    data = packet.tobytes()
    start = data.find(_START)
    while start >= 0:
        following = data.find(_START, start + 3)
        yield packet[start + 3 : following if following >= 0 else len(packet)]
        start = following


def _read_message_types(unit: bytes) -> set[int]:
    """Return the types of the messages in an SEI unit, up to the first that is not one of the usual."""
    types, position, end = set(), 1, len(unit.rstrip(b"\0")) - 1  # the last byte is only a mark
    while position < end:
        values = []
        for _ in range(2):
            value = 0
            while position < end and unit[position] == 0xFF:
                value, position = value + 255, position + 1
            values.append(value + unit[position] if position < end else -1)
            position += 1
        kind, size = values
        types.add(kind)
        position += max(0, size)
    return types
