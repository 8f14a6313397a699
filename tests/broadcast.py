"""A live stream in a container: pictures of a fixed rate, sent to each client as time goes on."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Final

import av
from av.video.frame import VideoFrame
from tests import clips

LENGTH_S: Final = 40
"""The stream ends after this. No test takes so long."""
_PAUSE_S: Final = 0.005


class Broadcast:
    """A stream that began when this was made, with a keyframe a second.

    `frozen`: send nothing. `absent`: end all connections, by a reset with
    `resets`.
    """

    def __init__(self, container: str, codec: str, fps: int = 25, length_s: int = LENGTH_S) -> None:
        self.fps = fps
        self._gop = 1 if codec == "mjpeg" else fps
        self.frozen, self.absent = threading.Event(), threading.Event()
        self.resets = False
        self._header, *self._packets = _encode(container, codec, fps, length_s * fps)
        self._began_s = time.monotonic()

    @property
    def whole(self) -> bytes:
        """The stream from its beginning to its end."""
        return b"".join([self._header, *self._packets])

    def send_from_now_on(self, stop: threading.Event) -> Iterator[bytes]:
        """Yield the header, and packets from the last keyframe on, each when it is due."""
        sent = self._due() - self._due() % self._gop
        yield self._header
        while sent < len(self._packets) and not self.absent.is_set() and not stop.wait(_PAUSE_S):
            due = min(self._due(), len(self._packets))
            if not self.frozen.is_set() and due > sent:
                yield b"".join(self._packets[sent:due])
                sent = due

    def _due(self) -> int:
        return int((time.monotonic() - self._began_s) * self.fps)


class _Unseekable(io.BytesIO):
    """What a muxer writes to a stream, in which it cannot go back."""

    def seekable(self) -> bool:
        return False


@cache
def _encode(container: str, codec: str, fps: int, frames: int) -> tuple[bytes, ...]:
    """Return the header, then the bytes of each frame."""
    parts: list[bytes] = []
    buffer = _Unseekable()
    with av.open(buffer, "w", format=container, container_options={"flush_packets": "1"}) as muxer:
        stream = muxer.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = fps, 0
        stream.codec_context.time_base = Fraction(1, fps)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
        muxer.start_encoding()
        parts.append(_take(buffer))
        for number in range(frames):
            frame = VideoFrame.from_ndarray(clips.plain(number, 64, 48), format="rgb24")
            frame.pts = number
            for packet in stream.encode(frame):
                muxer.mux(packet)
            parts.append(_take(buffer))
    return tuple(parts)


def _take(buffer: io.BytesIO) -> bytes:
    data = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return data
