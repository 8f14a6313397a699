"""Streams that are sent to the runner over UDP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import pytest
from tests.broadcast import Broadcast
from tests.http_server import LOOPBACK
from tests.rtsp.reading import frames, gaps, has_frames, has_gap, reader, take_until

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.domain.messages import GapReason
from vidflow.domain.source_access import SourceAccess
from vidflow.infra.video import open_video
from vidflow.infra.video.udp_stream import UdpStream, strip_rtp

FPS = 25
DATAGRAM_BYTES = 7 * 188


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sending(broadcast: Broadcast, port: int, *, rtp: bool = False) -> Iterator[None]:
    """Send the stream to a local port while the block runs."""
    stop = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            number = 0
            for data in broadcast.send_from_now_on(stop):
                for first in range(0, len(data), DATAGRAM_BYTES):
                    header = b"\x80\x21" + number.to_bytes(2) + bytes(8) if rtp else b""
                    sender.sendto(header + data[first : first + DATAGRAM_BYTES], ("127.0.0.1", port))
                    number = (number + 1) % 2**16

    thread = threading.Thread(target=send, name="sender")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
@pytest.mark.parametrize("rtp", [False, True], ids=["plain", "in RTP"])
def test_a_stream_in_datagrams_is_read_and_its_silence_is_a_gap(*, rtp: bool) -> None:
    broadcast, port = Broadcast("mpegts", "mpeg2video", FPS), free_udp_port()
    with sending(broadcast, port, rtp=rtp), reader(f"udp://127.0.0.1:{port}", Fraction(5), capacity=10) as live:
        taken = take_until(live, has_frames(5))
        broadcast.frozen.set()
        taken += take_until(live, lambda _: live.outage is not None)
        broadcast.frozen.clear()
        taken += take_until(live, lambda steps: has_gap(GapReason.STALLED)(steps) and has_frames(5)(steps))
    assert len(gaps(taken, GapReason.STALLED)) == 1
    times = [frame.time_s for frame in frames(taken)]
    missing = sum(gap.frames or 0 for gap in gaps(taken, GapReason.STALLED))
    assert times == sorted(times)
    assert len(times) + missing == pytest.approx((times[-1] - times[0]) * 5 + 1, abs=2)


@pytest.mark.parametrize(
    ("access", "url", "code"),
    [
        (SourceAccess(), "udp://127.0.0.1:5000", "source_refused"),
        (SourceAccess(), "udp://8.8.8.8:5000", "source_refused"),  # public addresses must be allowed by name
        (LOOPBACK, "udp://127.0.0.1", "source_invalid"),
    ],
)
def test_a_port_is_opened_only_where_the_operator_allows_it(access: SourceAccess, url: str, code: str) -> None:
    with pytest.raises(SourceError) as refused:
        open_video(url, access=access)
    assert refused.value.code == code


def test_an_address_of_another_machine_cannot_be_received() -> None:
    with pytest.raises(Unavailable, match="must be one of the runner's machine") as refused:
        open_video("udp://198.51.100.1:5000", access=SourceAccess(networks=("198.51.100.0/24",)))
    assert refused.value.code == "source_unreachable"


def test_a_port_that_another_program_reads_is_not_taken_from_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="another program reads it"):
            open_video(f"udp://127.0.0.1:{other.getsockname()[1]}", access=LOOPBACK)


def test_nothing_that_arrives_is_a_timeout_and_a_stop_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidflow.infra.video.udp_stream.SILENCE_S", 0.2)
    with pytest.raises(Unavailable) as silent:
        open_video(f"udp://127.0.0.1:{free_udp_port()}", access=LOOPBACK)
    assert silent.value.code == "source_timeout"


def test_each_reader_of_a_multicast_group_gets_all_datagrams() -> None:
    access, port = SourceAccess(networks=("239.255.0.0/16",)), free_udp_port()
    url = f"udp://239.255.71.3:{port}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            streams = [UdpStream(url, url, access, threading.Event()) for _ in range(2)]
            sender.sendto(b"datagram", ("239.255.71.3", port))
        except (Unavailable, OSError) as error:
            pytest.skip(f"no route for multicast here: {error}")
        assert [stream.read(100) for stream in streams] == [b"datagram"] * 2
        for stream in streams:
            stream.close()


@pytest.mark.parametrize(
    ("datagram", "payload"),
    [
        (b"\x47" + bytes(187), b"\x47" + bytes(187)),
        (b"\x80\x21" + bytes(10) + b"\x47abc", b"\x47abc"),
        (b"\x82\x21" + bytes(10 + 8) + b"\x47abc", b"\x47abc"),  # two contributing sources
        (b"\x90\x21" + bytes(10) + b"\x00\x01\x00\x01" + bytes(4) + b"\x47abc", b"\x47abc"),  # a header extension
        (b"\xa0\x21" + bytes(10) + b"\x47abc" + b"\x00\x02", b"\x47abc"),  # padding
        (b"\x9f\x21" + bytes(11), b""),  # shorter than it says
        (b"", b""),
    ],
)
def test_rtp_headers_are_left_out(datagram: bytes, payload: bytes) -> None:
    assert strip_rtp(datagram) == payload
