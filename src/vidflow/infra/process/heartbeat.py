"""The health file of a role, touched each second while its main loop runs. `python -m vidflow.healthcheck` reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from vidflow.domain.errors import SetupError
from vidflow.infra.telemetry.logs import log

BEAT_S: Final = 1.0
_log = log("heartbeat")


class Heartbeat:
    """Touches `path` at most once a second. The file's content is the role's health URL, empty for a role without one."""

    def __init__(self, path: Path, url: str) -> None:
        """Write the file. Raises SetupError if that fails."""
        self._path = path
        self._touched_s = time.monotonic()
        try:
            path.write_text(url)
        except OSError as error:
            raise SetupError(
                f"The health file {path} cannot be written ({error.strerror}). Set VIDFLOW_HEALTH_FILE to a file in a"
                " folder that this user may write to."
            ) from error

    def beat(self) -> None:
        """Touch the file. A failure is logged; the role goes on, and the health check reports it."""
        now_s = time.monotonic()
        if now_s - self._touched_s < BEAT_S:
            return
        self._touched_s = now_s
        try:
            os.utime(self._path)
        except OSError as error:
            _log.warning("health_file_not_touched", path=str(self._path), error=str(error))
