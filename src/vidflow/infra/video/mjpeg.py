"""Pictures that a camera sends over HTTP one after the other (multipart/x-mixed-replace). They have no times but those of arrival."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from av.video.frame import VideoFrame

from vidflow.domain.live_clock import CAPTURE_TIME_BASE
from vidflow.infra.video.packets import LostPacket
from vidflow.infra.video.source import SourceInfo

FORMAT: Final = "mpjpeg"
"""FFmpeg's name of the container."""


def is_multipart(content_type: str) -> bool:
    """Return whether a response with this content type consists of pictures."""
    return content_type == "multipart/x-mixed-replace"


def stamp_arrivals(events: Iterator[VideoFrame | LostPacket]) -> Iterator[VideoFrame | LostPacket]:
    """Yield the events with the times of arrival as pts, in microseconds since 1970."""
    for event in events:
        if isinstance(event, VideoFrame):
            event.pts = time.time_ns() // 1000
        yield event


def describe_pictures(source: SourceInfo) -> SourceInfo:
    """Return the source's properties with times of arrival, and without the rate that FFmpeg assumes."""
    return replace(source, time_base=CAPTURE_TIME_BASE, average_rate=None)
