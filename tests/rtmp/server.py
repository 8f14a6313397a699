"""Test support: a server that hands on streams by RTMP, which is nginx in a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

NGINX = Path("/usr/sbin/nginx")
MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
PACKAGES = "nginx and libnginx-mod-rtmp"
START_LIMIT_S = 10.0
CONFIGURATION = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
load_module {module};
events {{ worker_connections 64; }}
rtmp {{ access_log off; server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}
"""


def require_server() -> None:
    """Skip the test if there is no RTMP server, or fail it if VIDFLOW_REQUIRE_MEDIA_SERVERS is set, as in the gate."""
    if NGINX.exists() and MODULE.exists():
        return
    reason = f"no RTMP server: install {PACKAGES} (.ci/media-servers)"
    if os.environ.get("VIDFLOW_REQUIRE_MEDIA_SERVERS"):
        pytest.fail(f"{reason}, and VIDFLOW_REQUIRE_MEDIA_SERVERS is set", pytrace=False)
    pytest.skip(reason)


class RtmpServer:
    """A server at `url`, where one stream may be sent and read. It is a context manager; `start` and `kill` may be called again."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self._folder = port, folder
        self.url = f"rtmp://127.0.0.1:{port}/live/cam"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "nginx.conf").write_text(CONFIGURATION.format(module=MODULE, port=port))

    def start(self) -> None:
        """Start the server and wait until it listens."""
        command = [str(NGINX), "-p", str(self._folder), "-c", "nginx.conf", "-e", "stderr"]
        self._process = subprocess.Popen(command, start_new_session=True)
        deadline_s = time.monotonic() + START_LIMIT_S
        pause = threading.Event()
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, "nginx has ended"
            assert time.monotonic() < deadline_s, "nginx does not listen"
            pause.wait(0.02)

    def kill(self) -> None:
        """End the server without a word to its clients."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the server: connections stay open and silent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
