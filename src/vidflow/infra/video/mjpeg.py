"""Pictures that a camera sends over HTTP one after the other (multipart/x-mixed-replace). They have no times but those of arrival."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vidflow.infra.video.source import SourceInfo

FORMAT: Final = "mpjpeg"
"""FFmpeg's name of the container."""


def is_multipart(content_type: str) -> bool:
    """Return whether a response with this content type consists of pictures."""
    return content_type == "multipart/x-mixed-replace"


def describe_pictures(source: SourceInfo) -> SourceInfo:
    """Return the source's properties without the times and the rate that FFmpeg assumes."""
    return replace(source, is_timed=False, average_rate=None)
