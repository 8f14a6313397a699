"""Decide whether a source is live, which has no beginning to return to and no end."""

from __future__ import annotations

import io
import time
from contextlib import closing
from typing import Final

import av

from vidflow.domain.errors import VidflowError
from vidflow.domain.source_access import SourceAccess
from vidflow.domain.source_schemes import is_always_live
from vidflow.infra.video.ffmpeg import CONTAINERS, open_with_ffmpeg
from vidflow.infra.video.hls_file import HlsSource
from vidflow.infra.video.hls_playlist import is_playlist
from vidflow.infra.video.http_file import HttpFile
from vidflow.infra.video.mjpeg import is_multipart
from vidflow.infra.video.source_connection import Interruption

LISTEN_S: Final = 2.0
"""How long a body without a length is read to see whether it ends."""
MAX_LISTENED_BYTES: Final = 16 * 1024 * 1024
"""A body that sends more than this in LISTEN_S is a file: no camera sends so much."""
_READ_BYTES: Final = 256 * 1024


class _Unseekable(io.BytesIO):
    """The beginning of a body. FFmpeg would look for the duration at its end if it could."""

    def seekable(self) -> bool:
        return False


def is_live(url: str, access: SourceAccess, interruption: Interruption) -> bool:
    """Return whether the source is live. An HTTP source is requested to find out.

    Live are multipart pictures, HLS playlists without an end, and a body that the server does not describe as a file, that states no
    duration, and that does not end while it is listened to. A source that cannot be read counts as a file, whose reader says why.
    A server that asks to wait is waited for. Raises ReadingStopped.
    """
    if not url.lower().startswith(("http://", "https://")):
        return is_always_live(url)
    try:
        with closing(HttpFile(url, access, interruption)) as body:
            if is_playlist(body.content_type, body.url):
                return not HlsSource(body, url, access, interruption).playlist.is_ended
            return is_multipart(body.content_type) or (not body.is_described and _is_endless(body))
    except VidflowError:
        return False


def _is_endless(body: HttpFile) -> bool:
    """Return whether the body seems to be sent as it is recorded."""
    began_s, received = time.monotonic(), bytearray()
    while time.monotonic() - began_s < LISTEN_S:
        data = body.read(_READ_BYTES)
        received += data
        if not data or len(received) > MAX_LISTENED_BYTES:
            return False
    return not _states_duration(bytes(received))


def _states_duration(beginning: bytes) -> bool:
    """Return whether the header of a file says how long it is, or cannot be read at all."""
    try:
        options = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS}
        with open_with_ffmpeg(_Unseekable(beginning), options) as container:
            return bool(container.duration)
    except av.error.FFmpegError:
        return True
