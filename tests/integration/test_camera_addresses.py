"""Cameras are connected to only at addresses that the operator allows."""

from __future__ import annotations

import pytest
from tests.http_server import LOOPBACK, recording_first_lines

from vidflow.domain.errors import SourceError, Unavailable
from vidflow.infra.video import open_video


@pytest.mark.parametrize("scheme", ["rtsp", "RTSP", "rtsps"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1"])
def test_a_camera_at_a_local_address_is_not_connected_to(scheme: str, host: str) -> None:
    with recording_first_lines() as (port, lines), pytest.raises(SourceError, match="--allow-source-network") as raised:
        open_video(f"{scheme}://admin:secret@{host}:{port}/live")
    assert (raised.value.code, lines) == ("source_refused", [])
    assert "secret" not in raised.value.message


def test_a_camera_is_connected_to_at_the_address_that_was_checked() -> None:
    with recording_first_lines() as (port, lines), pytest.raises((SourceError, Unavailable)):
        open_video(f"rtsp://admin:secret@localhost:{port}/live?channel=1", access=LOOPBACK)
    assert lines == [f"OPTIONS rtsp://127.0.0.1:{port}/live?channel=1 RTSP/1.0".encode()]


def test_a_camera_without_an_address_is_unreachable() -> None:
    with pytest.raises(Unavailable, match="does not answer") as raised:
        open_video("rtsp://no-such-host.invalid/live", access=LOOPBACK)
    assert raised.value.code == "source_unreachable"
