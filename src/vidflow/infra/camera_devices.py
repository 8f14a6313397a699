"""Recognize cameras that are connected to this machine (video4linux)."""

from __future__ import annotations

import os
import stat
from typing import Final

MAJOR: Final = 81
"""The major number of all devices of video4linux."""


def is_camera(status: os.stat_result) -> bool:
    """Return whether this is the status of a camera, or of another device of video4linux."""
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == MAJOR
