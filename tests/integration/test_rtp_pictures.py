"""A picture that comes in the packets of RTP is decoded as soon as its last packet is there."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from tests import clips
from tests.integration.api_server import free_port
from tests.rtsp.camera import Camera, Picture
from tests.rtsp.reading import LIMIT_S, frames, reader

from vidflow.domain.messages import CaptureClock
from vidflow.infra.video import rtp_pictures
from vidflow.infra.video.rtp_pictures import RtpPictures

PAYLOAD_BYTES = 700
TICKS = 3600
START = b"\0\0\0\1"
SIZE = (320, 240)
ENCODERS = {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "mjpeg": "mjpeg"}
X265 = "log-level=error:bframes=0:keyint={gop}:min-keyint={gop}:scenecut=0:repeat-headers=1:slices={slices}"


def encode(codec: str, count: int, slices: int = 1, gop: int = 4) -> list[bytes]:
    """Return so many pictures of noise. Key pictures need several RTP packets, the others of a still part one or two."""
    context = cast("Any", av.CodecContext.create(ENCODERS[codec], "w"))
    context.width, context.height = SIZE
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.framerate, context.time_base, context.gop_size, context.thread_count = 25, Fraction(1, 25), gop, 1
    options = {
        "h264": {"tune": "zerolatency", "preset": "ultrafast", "slices": str(slices), "x264-params": "repeat-headers=1"}
    }
    options["hevc"] = {"tune": "zerolatency", "preset": "ultrafast", "x265-params": X265.format(gop=gop, slices=slices)}
    context.options = options.get(codec, {})
    still = clips.noise(0, *SIZE)
    packets = []
    for index in range(count):
        image = still.copy()
        image[: 20 + 10 * (index % 3)] = clips.noise(index, *SIZE)[: 20 + 10 * (index % 3)]
        packets += context.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=context.pix_fmt))
    return [bytes(packet) for packet in packets + context.encode(None)]


def split_units(picture: bytes) -> list[bytes]:
    return [unit for unit in re.split(rb"\x00\x00\x00?\x01", picture) if unit]


def fragments(unit: bytes, first_bytes: int, bytes_each: int) -> Iterator[bytes]:
    """Yield what FFmpeg makes of the RTP packets of a NAL unit."""
    unit = START + unit
    yield unit[:first_bytes] if len(unit) > first_bytes + 1 else unit
    rest = unit[first_bytes:] if len(unit) > first_bytes + 1 else b""
    while rest:
        yield rest[:bytes_each]
        rest = rest[bytes_each:]


def by_size(picture: bytes, lead: int = 5) -> list[bytes]:
    """Divide the NAL units of a picture as most senders do."""
    units = split_units(picture)
    return [part for unit in units for part in fragments(unit, PAYLOAD_BYTES + lead, PAYLOAD_BYTES)]


def evenly(picture: bytes) -> list[bytes]:
    """Divide each NAL unit into fragments of the same size, which tell nothing about the unit's end."""
    parts = []
    for unit in split_units(picture):
        count = -(-len(unit) // PAYLOAD_BYTES)
        each = -(-len(unit) // count)
        parts += list(fragments(unit, each + 4, each))
    return parts


@dataclass
class Received:
    """The container of a connection. `taken`: the parts that were asked for so far."""

    pictures: Sequence[Sequence[bytes]]
    stream: VideoStream
    taken: int = 0

    def demux(self, _stream: VideoStream) -> Iterator[Packet[VideoStream]]:
        for number, parts in enumerate(self.pictures):
            for part in parts:
                self.taken += 1
                packet = cast("Packet[VideoStream]", Packet(part))
                packet.stream, packet.pts, packet.time_base = self.stream, number * TICKS, Fraction(1, 90_000)
                yield packet
        yield cast("Packet[VideoStream]", Packet())

    def read(self) -> Iterator[Packet[VideoStream]]:
        yield from cast("Any", RtpPictures().read(cast("InputContainer", self), self.stream, "cam"))


@pytest.fixture
def receive(request: pytest.FixtureRequest) -> Any:
    """Return a function that makes a Received of a codec's pictures."""

    def build(codec: str, pictures: Sequence[Sequence[bytes]]) -> Received:
        file = io.BytesIO()
        with av.open(file, "w", format="matroska") as container:
            stream = cast("Any", container.add_stream(ENCODERS[codec], rate=25))
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if codec == "hevc":
                stream.codec_context.options = {"x265-params": "log-level=error"}
            container.mux(stream.encode(av.VideoFrame(*SIZE, stream.pix_fmt)))
            container.mux(stream.encode(None))
        file.seek(0)
        opened = av.open(file)
        request.addfinalizer(opened.close)
        return Received(pictures, opened.streams.video[0])

    return build


def find_held(received: Received, pictures: Sequence[Sequence[bytes]]) -> list[int]:
    """Read to the end. Return the numbers of the pictures that came only with a part of the next one. All have the right bytes."""
    held, number = [], -1
    for number, packet in enumerate(p for p in received.read() if p.size):
        assert bytes(packet) == b"".join(pictures[number])
        assert packet.pts == number * TICKS
        if received.taken > sum(map(len, pictures[: number + 1])):
            held.append(number)
    assert number == len(pictures) - 1
    return held


@pytest.mark.parametrize(
    ("codec", "slices", "lead"), [("h264", 1, 5), ("h264", 1, 4), ("h264", 4, 5), ("hevc", 1, 6), ("hevc", 2, 6)]
)
def test_a_picture_is_handed_on_with_its_last_part_once_the_shape_of_the_stream_is_known(
    receive: Any, codec: str, slices: int, lead: int
) -> None:
    """Key pictures come at 0, 4, 8 and so on."""
    pictures = [by_size(picture, lead) for picture in encode(codec, 24, slices)]
    assert max(map(len, pictures)) > 5
    held = find_held(receive(codec, pictures), pictures)
    assert set(held) <= {0, 1, 2, 4, 3}


def test_a_picture_whose_last_part_is_as_long_as_a_fragment_waits_for_the_next_one(receive: Any) -> None:
    pictures = [by_size(picture) for picture in encode("h264", 16)]
    slice_header = split_units(b"".join(pictures[-2]))[-1][:1]
    pictures[-2] = list(fragments(slice_header + bytes(2 * PAYLOAD_BYTES), PAYLOAD_BYTES + 5, PAYLOAD_BYTES))
    assert list(map(len, pictures[-2])) == [PAYLOAD_BYTES + 5, PAYLOAD_BYTES]
    assert find_held(receive("h264", pictures), pictures)[-1] == 14


def test_fragments_of_different_sizes_tell_nothing(receive: Any) -> None:
    pictures = [evenly(picture) for picture in encode("h264", 24)]
    sizes = {len(part) for parts in pictures for part in parts[:-1] if len(part) > PAYLOAD_BYTES // 2}
    assert len(sizes) > 2
    held = find_held(receive("h264", pictures), pictures)
    assert held[-10:] == list(range(13, 23))


def test_a_picture_that_goes_on_after_its_end_ends_the_trust(receive: Any) -> None:
    """What comes late is dropped. The decoder has marked the frame by then."""
    one, four = encode("h264", 24), encode("h264", 24, slices=4)
    pictures = [by_size(picture) for picture in [*one[:16], *four[16:]]]
    received = receive("h264", pictures)
    read = [packet for packet in received.read() if packet.size]
    assert [packet.pts for packet in read] == [number * TICKS for number in range(24)]
    is_whole = [bytes(packet) == b"".join(parts) for packet, parts in zip(read, pictures, strict=True)]
    assert is_whole == [number != 16 for number in range(24)]
    assert b"".join(pictures[16]).startswith(bytes(read[16]))


def test_what_follows_the_slices_of_a_picture_comes_with_the_next_one(receive: Any) -> None:
    filler = [START + b"\x0c" + b"\xff" * PAYLOAD_BYTES, b"\xff" * 100, START + b"\x06\x05\x01\x00\x80"]
    pictures = [by_size(picture) + filler for picture in encode("h264", 16)]
    read = [packet for packet in receive("h264", pictures).read() if packet.size]
    assert [packet.pts for packet in read] == [number * TICKS for number in range(16)]
    assert b"".join(map(bytes, read)) + b"".join(filler) == b"".join(b"".join(parts) for parts in pictures)
    assert bytes(read[-1]).startswith(b"".join(filler))


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "mjpeg"])
def test_the_joined_pictures_are_decoded_as_those_of_the_encoder(receive: Any, codec: str) -> None:
    encoded = encode(codec, 12)
    divide: dict[str, Callable[[bytes], list[bytes]]] = {
        "h264": by_size,
        "hevc": by_size,
        "mpeg4": lambda picture: [picture[at : at + 500] for at in range(0, len(picture), 500)],
        "mjpeg": lambda picture: [picture],
    }
    received = receive(codec, [divide[codec](picture) for picture in encoded])
    decoder = cast("Any", av.CodecContext.create(codec, "r"))
    packets = [cast("Packet[VideoStream]", Packet(picture)) for picture in encoded]
    expected = [frame.to_ndarray() for packet in packets for frame in decoder.decode(packet)]
    expected += [frame.to_ndarray() for frame in decoder.decode(None)]
    context = cast("Any", av.CodecContext.create(codec, "r"))
    actual = [frame for packet in received.read() for frame in context.decode(packet if packet.size else None)]
    assert [frame.pts for frame in actual] == [number * TICKS for number in range(12)]
    assert all(np.array_equal(frame.to_ndarray(), image) for frame, image in zip(actual, expected, strict=True))


@pytest.mark.parametrize("limit", ["MAX_PICTURE_BYTES", "MAX_PICTURE_PARTS"])
def test_a_picture_without_end_is_bounded(receive: Any, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(rtp_pictures, limit, 10_000 if limit.endswith("BYTES") else 100)
    received = receive("h264", [[START + b"\x06" + bytes(95)] * 1000])
    for packet in received.read():
        assert packet.size <= 10_100
    assert received.taken == 1000


@pytest.mark.long
@pytest.mark.usefixtures("rtsp_server")
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_frame_of_a_slow_camera_does_not_wait_for_the_next_one(codec: str) -> None:
    """The camera sends a key picture each two seconds, and says by RTCP when it was captured."""
    lags_s: list[float] = []
    with Camera(free_port(), picture=Picture(codec, fps="1/2", gop=1)) as camera, reader(camera.url) as live:
        until_s = time.monotonic() + LIMIT_S
        while len(lags_s) < 4 and time.monotonic() < until_s:
            captured = [frame.captured for frame in frames(live.take(0.25))]
            lags_s += [time.time() - at.at_us / 1e6 for at in captured if at and at.clock is CaptureClock.RTCP]
    assert lags_s[-1] < 1.5
