"""Test support: a camera, which is a GStreamer RTSP server in a process of its own."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Self

PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).parent / "server.py"
NEEDED = "import gi; gi.require_version('GstRtspServer', '1.0')"


def is_installed() -> bool:
    """Return whether the system's Python has GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0, python3-gst-1.0)."""
    if not Path(PYTHON).exists():
        return False
    return subprocess.run([PYTHON, "-c", NEEDED], capture_output=True, check=False).returncode == 0


class Camera:
    """A camera at `url`. It is a context manager; `start` and `kill` may be called again."""

    def __init__(self, port: int, fps: int = 25) -> None:
        self.fps = fps
        self.url = f"rtsp://127.0.0.1:{port}/cam"
        self._arguments = [PYTHON, str(SERVER), str(port), str(fps)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._process = subprocess.Popen(self._arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """End the server without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

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
