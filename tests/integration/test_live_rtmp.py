"""Streams of a real RTMP server: their times, and what becomes of them when the sender or the server is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from tests.http_server import LOOPBACK
from tests.integration.api_server import free_port
from tests.rtmp.publisher import FIRST_S, Publisher
from tests.rtmp.server import RtmpServer
from tests.rtsp.reading import (
    Steps,
    assert_accounted_for,
    frames,
    gaps,
    has_frames,
    has_gap,
    reader,
    take_until,
)

from vidflow.domain.messages import CaptureClock, GapReason
from vidflow.infra.video import open_video
from vidflow.infra.video.live import LiveReader

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("rtmp_server")]
LOST = (GapReason.RECONNECTING, GapReason.STALLED)


def is_out(live: LiveReader, code: str) -> Callable[[Steps], bool]:
    """Return whether the source is away, for this reason."""
    return lambda _: live.outage is not None and live.outage.code == code


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RtmpServer]:
    server = RtmpServer(free_port(), tmp_path)
    yield server
    server.kill()


@pytest.mark.parametrize("has_sound", [False, True], ids=["pictures alone", "sound before pictures"])
def test_frames_arrive_with_their_times(server: RtmpServer, *, has_sound: bool) -> None:
    server.start()
    with Publisher(server.url, has_sound=has_sound), reader(server.url, capacity=50) as live:
        taken = take_until(live, has_frames(30))
        info = live.wait_for_source(0.0)
    assert info is not None
    assert (info.live, info.container, info.codec, info.width, info.height) == (True, "flv", "h264", 160, 120)
    last = frames(taken)[-1]
    assert last.captured is not None
    assert last.captured.clock is CaptureClock.ARRIVAL
    assert abs(last.pts / 1e6 - time.time()) < 2
    assert_accounted_for(taken)


def test_whatever_is_lost_comes_back_and_the_holes_are_gaps(server: RtmpServer) -> None:
    server.start()
    publisher = Publisher(server.url)
    with publisher, reader(server.url, capacity=50) as live:
        taken = take_until(live, has_frames(20))

        publisher.end()
        taken += take_until(live, lambda _: live.outage is not None)
        publisher.start()
        taken += take_until(live, has_gap(GapReason.STALLED))  # the server keeps its clients

        server.kill()
        taken += take_until(live, lambda _: live.outage is not None)
        server.start()
        taken += take_until(live, has_gap(*LOST))

        server.freeze()
        taken += take_until(live, is_out(live, "source_timeout"))
        server.thaw()
        taken += take_until(live, has_gap(GapReason.STALLED))
    assert len([gap for reason in LOST for gap in gaps(taken, reason)]) == 3
    assert_accounted_for(taken)


def test_a_server_or_a_sender_that_is_not_there_yet_is_waited_for(server: RtmpServer) -> None:
    with reader(server.url, Fraction(5)) as before_server:
        take_until(before_server, is_out(before_server, "source_unreachable"))
        server.start()
        with reader(server.url, Fraction(5)) as before_sender:
            take_until(before_sender, is_out(before_sender, "source_timeout"))
            with Publisher(server.url):
                for live in (before_server, before_sender):
                    take_until(live, has_frames(2))


def test_an_application_that_does_not_exist_is_unreachable(server: RtmpServer) -> None:
    server.start()
    with reader(server.url.replace("/live/", "/other/")) as live:
        take_until(live, is_out(live, "source_unreachable"))
        assert live.outage is not None
        assert "ended the connection" in live.outage.message


def test_timestamps_may_begin_anywhere(server: RtmpServer) -> None:
    server.start()
    with Publisher(server.url), open_video(server.url, access=LOOPBACK) as video:
        first = next(event for event in video.events())
        assert first.pts is not None
        assert first.pts >= FIRST_S * 1000
