"""Test support: somebody who sends a stream to an RTMP server, and sends it again when the connection is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, Self

import av
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import VideoFrame
from tests import clips

FPS: Final = 25
FIRST_S: Final = 1_000_000
"""The timestamps of a stream may begin anywhere."""
_SAMPLE_RATE: Final = 8000
_RETRY_S: Final = 0.1
_TIMEOUT_S: Final = 5.0


class Publisher:
    """Sends 25 pictures a second, with a key frame a second, to `url`. It is a context manager; `start` and `end` may be called again.

    `has_sound`: it also sends sound, which a server hands on before the pictures, since it holds these back until a key frame.
    """

    def __init__(self, url: str, *, has_sound: bool = False) -> None:
        self._url, self._has_sound = url, has_sound
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began_s = time.monotonic()

    def start(self) -> None:
        """Begin to send."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep_sending, name="publisher", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop sending, and disconnect."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _keep_sending(self) -> None:
        while not self._stop.is_set():
            try:
                with av.open(self._url, "w", format="flv", timeout=_TIMEOUT_S) as container:
                    self._send(container)
            except av.error.FFmpegError:
                self._stop.wait(_RETRY_S)

    def _send(self, container: OutputContainer) -> None:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(FPS)}
        audio = container.add_stream("aac", rate=_SAMPLE_RATE, layout="mono") if self._has_sound else None
        for number in self._due():
            if audio is not None:
                for sound in _make_sound(number):
                    container.mux(audio.encode(sound))
            frame = VideoFrame.from_ndarray(clips.plain(number, 160, 120), format="rgb24")
            frame.pts, frame.time_base = FIRST_S * FPS + number, Fraction(1, FPS)
            container.mux(video.encode(frame))

    def _due(self) -> Iterator[int]:
        """Yield the number of each picture when it is due, from the present one on."""
        number = int((time.monotonic() - self._began_s) * FPS)
        while not self._stop.wait(max(0.0, self._began_s + number / FPS - time.monotonic())):
            yield number
            number += 1


def _make_sound(number: int) -> Iterator[AudioFrame]:
    """Yield the silence that begins during this picture, in frames of AAC."""
    samples, size = _SAMPLE_RATE // FPS, 1024
    for first in range(-(-number * samples // size) * size, (number + 1) * samples, size):
        sound = AudioFrame(format="fltp", layout="mono", samples=size)
        for plane in sound.planes:
            plane.update(bytes(plane.buffer_size))
        sound.sample_rate, sound.pts, sound.time_base = (
            _SAMPLE_RATE,
            FIRST_S * _SAMPLE_RATE + first,
            Fraction(1, _SAMPLE_RATE),
        )
        yield sound
