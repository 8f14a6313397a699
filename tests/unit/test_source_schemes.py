"""Which sources are URLs, and which of them are always live."""

from __future__ import annotations

import pytest

from vidflow.domain.source_schemes import find_scheme, is_always_live, lower_scheme


@pytest.mark.parametrize(
    ("source", "scheme"),
    [
        ("RTSP://camera/1", "rtsp"), ("udp://239.1.1.1:5000", "udp"), ("http://host/a?b=rtsp://c", "http"),
        ("/videos/a.mp4", None), ("a.mp4", None), ("/folder/rtsp://a", None), ("://a", None), ("", None),
    ],
)  # fmt: skip
def test_a_url_has_a_scheme_and_a_path_has_none(source: str, scheme: str | None) -> None:
    assert find_scheme(source) == scheme


@pytest.mark.parametrize(
    ("source", "live"),
    [("RTSPS://camera/1", True), ("udp://a:1", True), ("rtmp://host/live/cam", True), ("http://host/clip.mp4", False)],
)
def test_cameras_and_datagrams_are_always_live(source: str, *, live: bool) -> None:
    assert is_always_live(source) is live


@pytest.mark.parametrize(
    ("source", "lower"),
    [
        ("HTTP://Host/A.MP4?B=C", "http://Host/A.MP4?B=C"), ("Rtsp://U:P@Cam/1", "rtsp://U:P@Cam/1"), ("http://h/x", "http://h/x"),
        ("/Videos/A.mp4", "/Videos/A.mp4"), ("HTTP:/x", "HTTP:/x"), ("Folder/HTTP://x", "Folder/HTTP://x"),
    ],
)  # fmt: skip
def test_only_the_scheme_becomes_lower_case(source: str, lower: str) -> None:
    assert lower_scheme(source) == lower
