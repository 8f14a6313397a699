"""Join the packets of an RTP stream to pictures, and hand on each picture once it is complete.

RTP marks the last packet of a picture, but FFmpeg does not pass the mark on. Its parser hands on a picture of H.264 or H.265 when the next
one begins, which is an interval of the camera later. Here the end of a picture is recognised by the shape of the stream: a NAL unit that
is too long for one packet is sent as fragments of equal size and a shorter rest (RFC 6184, RFC 7798), and a camera divides each
picture into equally many slices. Both are learned for each connection, and used once they have held for some pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vidflow.infra.video.cameras import build_camera_error
from vidflow.infra.video.packets import LostPacket

START_CODE: Final = b"\0\0\0\1"
"""FFmpeg writes it before each NAL unit."""
CONFIRMATIONS: Final = 2
"""Pictures of a kind that must have had the same number of slices before the end of one is recognised by it."""
UNDIVIDED_BYTES: Final = 500
"""Shorter NAL units are not divided by any sender. Longer ones may be a fragment, as long as the size of fragments is not known."""
HEADER_BYTES: Final = 16
"""More than the headers of a first fragment, which later ones lack."""
MAX_PICTURE_BYTES: Final = 64 * 1024 * 1024
MAX_PICTURE_PARTS: Final = 65_536
"""A picture that is larger is handed on as it is. No decoder makes a picture of it."""
_JOINED: Final = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "h263"})
"""Codecs whose pictures FFmpeg hands on in the parts in which RTP brings them, if its parser is off."""


@dataclass(frozen=True, slots=True)
class Part:
    """What an RTP packet brings of a picture. `begins_unit`: a NAL unit begins in it; otherwise it continues one.

    `slices`: the NAL units of the picture itself that begin in it. `is_key`: one of them begins a picture that needs no other one.
    """

    size: int
    begins_unit: bool
    slices: int = 0
    is_key: bool = False


def describe_part(content: bytes, codec: str) -> Part:
    """Return what an RTP packet brings, in the form in which FFmpeg hands it on. `codec`: h264 or hevc."""
    if not content.startswith(START_CODE):
        return Part(len(content), begins_unit=False)
    headers = [unit[0] for unit in content.split(START_CODE) if unit]
    if codec == "hevc":
        kinds = [header >> 1 & 0x3F for header in headers]
        slices, is_key = sum(kind < 32 for kind in kinds), any(16 <= kind <= 23 for kind in kinds)
    else:
        kinds = [header & 0x1F for header in headers]
        slices, is_key = sum(1 <= kind <= 5 for kind in kinds), 5 in kinds
    return Part(len(content), begins_unit=True, slices=slices, is_key=is_key)


@dataclass(slots=True)
class _Kind:
    """The number of slices of key pictures, or of the others, and how many of them in a row had it."""

    slices: int = 0
    pictures: int = 0


@dataclass(slots=True)
class PictureEnds:
    """Recognises the last part of a picture.

    Trusted no more once fragments had different sizes, or a picture went on after its end.
    """

    is_trusted: bool = True
    _first_fragment: int | None = None
    """Bytes of the first fragment of a unit, with its headers. Some senders put a byte less into it than into the others."""
    _fragment: int | None = None
    """Bytes of each later fragment but the last."""
    _kinds: dict[bool, _Kind] = field(default_factory=lambda: {False: _Kind(), True: _Kind()})
    _slices: int = 0
    _is_key: bool = False
    _previous: Part | None = None

    def is_last(self, part: Part) -> bool:
        """Add the next part of the picture. Return whether it is certainly the last one."""
        if self._previous is not None and not part.begins_unit:
            self._learn_fragment(self._previous)
        self._previous = part
        self._slices += part.slices
        self._is_key |= part.is_key
        known = self._kinds[self._is_key]
        is_complete = known.pictures >= CONFIRMATIONS and self._slices == known.slices
        return self.is_trusted and is_complete and self._ends_unit(part)

    def begin_picture(self) -> None:
        """Learn from the picture that is complete."""
        known = self._kinds[self._is_key]
        if self._slices and self._slices == known.slices:
            known.pictures += 1
        elif self._slices:
            known.slices, known.pictures = self._slices, 1
        self._slices, self._is_key, self._previous = 0, False, None

    def distrust(self) -> None:
        """Record that a picture went on after the part that seemed to be its last."""
        self.is_trusted = False

    def _learn_fragment(self, fragment: Part) -> None:
        """Learn from a part after which its unit goes on."""
        known = self._first_fragment if fragment.begins_unit else self._fragment
        if known not in {None, fragment.size}:
            self.is_trusted = False
        elif fragment.begins_unit:
            self._first_fragment = fragment.size
        else:
            self._fragment = fragment.size

    def _ends_unit(self, part: Part) -> bool:
        if part.begins_unit:
            return part.size < UNDIVIDED_BYTES if self._first_fragment is None else part.size != self._first_fragment
        if self._fragment is not None:
            return part.size < self._fragment
        return self._first_fragment is not None and part.size < self._first_fragment - HEADER_BYTES


class RtpPictures:
    """Reads the packets of a stream whose container was opened without FFmpeg's parsers, each a whole picture."""

    def __init__(self) -> None:
        self._parts: list[Packet[VideoStream]] = []
        self._size = 0
        self._has_slices = False
        self._ended_pts: int | None = None  # of a picture that was handed on before the next one began
        self._is_late = False  # what continues a unit now belongs to that picture
        self._ends: PictureEnds | None = None

    def read(
        self, container: InputContainer, stream: VideoStream, display_name: str
    ) -> Iterator[Packet[VideoStream] | LostPacket]:
        """Yield the stream's pictures. The last packet is empty, as it is with PyAV. Raises Unavailable if the connection fails."""
        codec = stream.codec_context.name
        if self._ends is None and codec in {"h264", "hevc"}:
            self._ends = PictureEnds()
        try:
            for packet in container.demux(stream):
                if packet.size and codec in _JOINED:
                    yield from self._join(packet) if self._ends is None else self._join_units(packet, codec, self._ends)
                    continue
                yield from self._take_last()
                yield packet
        except av.error.InvalidDataError:
            raise
        except av.error.FFmpegError as error:
            yield from self._take_last()
            raise build_camera_error(error.strerror, display_name) from error

    def _join(self, packet: Packet[VideoStream]) -> Iterator[Packet[VideoStream]]:
        """Add a part. A picture is complete when the next one begins, which has another pts."""
        if self._parts and (packet.pts != self._parts[-1].pts or self._is_full):
            yield from self._take()
        self._parts.append(packet)
        self._size += packet.size

    def _join_units(self, packet: Packet[VideoStream], codec: str, ends: PictureEnds) -> Iterator[Packet[VideoStream]]:
        part = describe_part(bytes(packet), codec)
        if packet.pts != self._ended_pts:
            self._ended_pts = None
        elif self._ended_pts is not None and (part.slices or (self._is_late and not part.begins_unit)):
            # The decoder has concealed that the picture was incomplete, and marked its frame.
            ends.distrust()
            self._is_late = True
            return
        self._is_late = False
        if self._has_slices and packet.pts != self._parts[-1].pts:
            ends.begin_picture()
            yield from self._take()
        self._parts.append(packet)
        self._size += packet.size
        self._has_slices = self._has_slices or part.slices > 0
        if ends.is_last(part) or self._is_full:
            ends.begin_picture()
            self._ended_pts, self._is_late = packet.pts, True
            yield from self._take()

    @property
    def _is_full(self) -> bool:
        return self._size > MAX_PICTURE_BYTES or len(self._parts) >= MAX_PICTURE_PARTS

    def _take_last(self) -> Iterator[Packet[VideoStream]]:
        """Yield the picture under way, but no other units: they would count as a picture that was lost."""
        if self._ends is None or self._has_slices:
            yield from self._take()

    def _take(self) -> Iterator[Packet[VideoStream]]:
        parts, self._parts, self._size, self._has_slices = self._parts, [], 0, False
        if parts:
            yield parts[0] if len(parts) == 1 else _join_parts(parts)


def _join_parts(parts: list[Packet[VideoStream]]) -> Packet[VideoStream]:
    """Return one packet of the parts of a picture, with its times. The last part is certainly the picture's own."""
    last = parts[-1]
    joined = cast("Packet[VideoStream]", Packet(b"".join(map(bytes, parts))))
    joined.stream, joined.time_base, joined.pts = last.stream, last.time_base, last.pts
    joined.is_corrupt = any(part.is_corrupt for part in parts)
    for part in parts:
        for data in part.iter_sidedata():
            joined.set_sidedata(data)
    return joined
