"""From packets to decoded frames, each packet on its own, so that a damaged one costs only itself. Not which frames are kept."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidflow.domain.errors import Unavailable

DEMUX_ATTEMPTS: Final = 64
"""How often in a row reading on behind damaged data may fail before it is taken for the end of the file."""
MAX_PENDING_PACKETS: Final = 4096
"""Packets whose frames are waited for; no decoder holds back so many."""


@dataclass(frozen=True, slots=True)
class LostPacket:
    """A packet that could not be decoded, or read. `pts` is the packet's own; None where it has none."""

    pts: int | None


def decode_packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | LostPacket]:
    """The stream's frames from where the container stands, in the order of their display; between them what was lost.

    With frame threads the decoder tells of damage late or not at all, so there every packet is watched for its frame.
    Raises Unavailable where the file or the network fails, which a retry may mend.
    """
    wake = _LossTracker(watches_all=_has_frame_threads(stream))
    for packet in _packets(container, stream):
        for event in [packet] if isinstance(packet, LostPacket) else _decode(packet, wake):
            if isinstance(event, LostPacket):
                wake.note_loss(event)
                yield event
            else:
                yield from wake.take_missing_before(event)
                yield event
        yield from wake.take_overdue(MAX_PENDING_PACKETS)
    yield from wake.take_overdue()


class _LossTracker:
    """What a lost packet drags with it: decoders silently drop the frames that lean on it, up to the next keyframe.

    From a loss on it notes the packets that went in; those whose frames have not come out when later ones do are lost too.
    """

    def __init__(self, *, watches_all: bool) -> None:
        self._pending_pts: list[int] = []  # a heap of pts
        self._last_lost_pts: int | None = None
        self.watches_all = watches_all

    def note_loss(self, lost: LostPacket) -> None:
        """A packet was lost."""
        if lost.pts is not None and not self.watches_all:
            self._last_lost_pts = lost.pts if self._last_lost_pts is None else max(self._last_lost_pts, lost.pts)

    def note_input(self, packet: Packet[VideoStream]) -> None:
        """A packet was given to the decoder, which did not refuse it."""
        if (self.watches_all or self._last_lost_pts is not None) and packet.pts is not None and packet.size:
            heapq.heappush(self._pending_pts, packet.pts)

    def take_missing_before(self, frame: VideoFrame) -> Iterator[LostPacket]:
        """The packets whose frames should have come out before this one. A later keyframe ends the wake."""
        if frame.pts is None:
            return
        while self._pending_pts and self._pending_pts[0] <= frame.pts:
            awaited = heapq.heappop(self._pending_pts)
            if awaited < frame.pts:
                yield LostPacket(awaited)
        if (
            self._last_lost_pts is not None
            and not self._pending_pts
            and frame.key_frame
            and frame.pts > self._last_lost_pts
        ):
            self._last_lost_pts = None

    def take_overdue(self, kept: int = 0) -> Iterator[LostPacket]:
        """What went in and never came out, but for the newest `kept`."""
        while len(self._pending_pts) > kept:
            yield LostPacket(heapq.heappop(self._pending_pts))


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | LostPacket]:
    """The stream's packets; damaged data between them is passed over. The last, empty one flushes the decoder."""
    failures = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.InvalidDataError:
            # A generator that raised is over, but the container reads on behind what it could not parse.
            failures += 1
            if failures > DEMUX_ATTEMPTS:
                return
            yield LostPacket(None)
            packets = container.demux(stream)
        except av.error.FFmpegError as error:
            raise Unavailable(
                f"reading the source failed midway ({error.strerror}): see that its disk or server answers; a retry goes on from here",
                code="source_unreadable",
            ) from error
        else:
            if packet is None:
                return
            failures = 0
            yield packet


def _decode(packet: Packet[VideoStream], wake: _LossTracker) -> Iterator[VideoFrame | LostPacket]:
    if wake.watches_all:
        wake.note_input(packet)
    try:
        frames = packet.decode()
    except av.error.EOFError:
        return
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        if not wake.watches_all or packet.pts is None:
            yield LostPacket(packet.pts)
        return
    if not wake.watches_all:
        wake.note_input(packet)
    # A packet that gives two frames must not keep the first alive until the second is done with.
    frames.reverse()
    while frames:
        yield frames.pop()


def _has_frame_threads(stream: VideoStream) -> bool:
    return stream.codec_context.thread_count != 1 and ThreadType.FRAME in stream.codec_context.thread_type
