"""An HLS presentation of pictures at 25 a second, in segments of a second each, and a server's view of it while it is recorded."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import av
from av.video.frame import VideoFrame
from tests import clips

FPS: Final = 25
WINDOW: Final = 5
"""Segments that a live playlist lists."""


@cache
def record(segments: int, kind: str = "mpegts", first_pts: int = 0) -> dict[str, bytes]:
    """Return the files by their path: /index.m3u8 and the segments, of `kind` mpegts or fmp4."""
    with TemporaryDirectory() as folder:
        suffix = "ts" if kind == "mpegts" else "m4s"
        options = {
            "hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "vod", "hls_segment_type": kind,
            "hls_segment_filename": f"{folder}/segment%d.{suffix}",
        }  # fmt: skip
        with av.open(f"{folder}/index.m3u8", "w", format="hls", container_options=options) as muxer:
            stream = muxer.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = FPS, 0
            stream.codec_context.time_base = Fraction(1, FPS)
            stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
            for number in range(segments * FPS):
                frame = VideoFrame.from_ndarray(clips.plain(number, 64, 48), format="rgb24")
                frame.pts = first_pts + number
                muxer.mux(stream.encode(frame))
            muxer.mux(stream.encode())
        return {f"/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


def playlist(*lines: str, ended: bool = True) -> bytes:
    """Return a media playlist."""
    return "\n".join(
        ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1", *lines, *(["#EXT-X-ENDLIST"] if ended else [])]
    ).encode()


def list_segments(first: int, count: int, suffix: str = "ts") -> list[str]:
    """Return the lines of a playlist for so many segments."""
    return [line for number in range(first, first + count) for line in ("#EXTINF:1.0,", f"segment{number}.{suffix}")]


class LivePresentation:
    """A presentation that began when this was made: a new segment each second, of which the last WINDOW are listed.

    `began_at`: when its first frame was captured. `is_frozen`: no segments are added.
    """

    def __init__(self, segments: int = 30) -> None:
        self.began_at = datetime.now(UTC) - timedelta(seconds=WINDOW)
        self._files = record(segments)
        self._began_s = time.monotonic() - WINDOW
        self.is_frozen = False
        self._frozen_at = WINDOW

    def freeze(self) -> None:
        """Add no more segments."""
        self._frozen_at, self.is_frozen = self._count(), True

    def thaw(self) -> None:
        """Add segments again, as if there had been no pause."""
        self.is_frozen = False

    def find(self, path: str) -> bytes | None:
        """Return the file at a path, as it is now."""
        count = self._count()
        if path == "/index.m3u8":
            first = count - WINDOW
            date = f"#EXT-X-PROGRAM-DATE-TIME:{(self.began_at + timedelta(seconds=first)).isoformat()}"
            return playlist(f"#EXT-X-MEDIA-SEQUENCE:{first}", date, *list_segments(first, WINDOW), ended=False)
        return self._files.get(path)

    def _count(self) -> int:
        return self._frozen_at if self.is_frozen else int(time.monotonic() - self._began_s)
