"""The URL schemes of sources, and the names of cameras that are connected to a machine."""

from __future__ import annotations

import re
from typing import Final

LIVE_SCHEMES: Final = ("rtsp", "rtsps", "rtmp", "rtmps", "udp")
"""Schemes of sources that are always live."""
SCHEMES: Final = ("http", "https", *LIVE_SCHEMES)
"""All schemes that a source may have, besides paths."""

_CAMERA_DEVICE: Final = re.compile(r"/dev/(?:video[0-9]+|v4l/.+)")
"""The names that Linux gives to cameras."""


def find_scheme(source: str) -> str | None:
    """Return the scheme of a URL in lower case, None for a path."""
    scheme, separator, _ = source.partition("://")
    return scheme.lower() if separator and scheme.isascii() and scheme.replace("+", "").isalnum() else None


def lower_scheme(source: str) -> str:
    """Return a URL with its scheme in lower case, the only form that FFmpeg knows, and a path unchanged."""
    scheme = find_scheme(source)
    return source if scheme is None else scheme + source[len(scheme) :]


def is_always_live(source: str) -> bool:
    """Return whether the source has a scheme that only live sources have."""
    return find_scheme(source) in LIVE_SCHEMES


def is_camera_name(source: str) -> bool:
    """Return whether the source is a path that Linux gives to cameras. What is there shows only when it is opened."""
    return _CAMERA_DEVICE.fullmatch(source) is not None
