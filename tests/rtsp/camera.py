"""Test support: a camera, which is a GStreamer RTSP server in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).parent / "server.py"
PACKAGES = "gir1.2-gst-rtsp-server-1.0, python3-gst-1.0 and gstreamer1.0-plugins-{base,good,bad}"
END_LIMIT_S = 10.0
ENCODERS = {
    "h264": "openh264enc gop-size={gop} complexity=low ! h264parse ! rtph264pay config-interval=1",
    "h265": "x265enc key-int-max={gop} speed-preset=ultrafast tune=zerolatency ! h265parse ! rtph265pay config-interval=1",
    "mjpeg": "jpegenc ! rtpjpegpay",
}


def is_installed() -> bool:
    """Return whether the system's Python has GStreamer's RTSP server and the elements that the tests use."""
    if not Path(PYTHON).exists():
        return False
    return subprocess.run([PYTHON, str(SERVER), "check"], capture_output=True, check=False).returncode == 0


def require_server() -> None:
    """Skip the test if there is no RTSP server, or fail it if VIDFLOW_REQUIRE_MEDIA_SERVERS is set, as in the gate."""
    if is_installed():
        return
    reason = f"no RTSP server: install {PACKAGES} (.ci/media-servers)"
    if os.environ.get("VIDFLOW_REQUIRE_MEDIA_SERVERS"):
        pytest.fail(f"{reason}, and VIDFLOW_REQUIRE_MEDIA_SERVERS is set", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Picture:
    """What a camera sends: moving balls in so many pixels. `codec`: a key of ENCODERS. `fps`: frames a second, "25" or "1/10"."""

    codec: str = "h264"
    width: int = 160
    height: int = 120
    fps: str = "25"
    gop: int = 25

    def describe_source(self) -> str:
        """Return the GStreamer elements that make the raw pictures."""
        return (
            "videotestsrc is-live=true pattern=ball !"
            f" video/x-raw,format=I420,width={self.width},height={self.height},framerate={_as_ratio(self.fps)}"
        )

    def describe_pipeline(self) -> str:
        """Return the GStreamer pipeline of the stream."""
        return f"{self.describe_source()} ! {ENCODERS[self.codec].format(gop=self.gop)} name=pay0 pt=96"


class Camera:
    """A camera at `url`. It is a context manager; `start`, and `kill` or `end`, may be called again. `launch`: a pipeline of its own.

    `transport`: `any`, or `udp` for a camera that refuses TCP.
    """

    def __init__(
        self,
        port: int,
        fps: int = 25,
        *,
        picture: Picture | None = None,
        launch: str | None = None,
        transport: str = "any",
    ) -> None:
        self.port, self.fps, self.transport = port, fps, transport
        self.url = f"rtsp://127.0.0.1:{port}/cam"
        self.launch = launch or (picture or Picture(fps=str(fps), gop=fps)).describe_pipeline()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, path: str = "cam", launch: str | None = None) -> None:
        """Start the server and wait until it listens. `path`: serve the stream elsewhere. `launch`: serve another one."""
        command = [PYTHON, str(SERVER), str(self.port), path, launch or self.launch, self.transport]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """End the server without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def end(self) -> None:
        """Ask the server to end, as a camera does that is switched off. It closes its clients' connections."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(END_LIMIT_S)
        self.kill()

    def freeze(self) -> None:
        """Stop the server: connections stay open and silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def _as_ratio(fps: str) -> str:
    return fps if "/" in fps else f"{fps}/1"
