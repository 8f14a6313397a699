"""Ties the life of this process to its parent's."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Lets the system kill this process when its parent is gone.

    Linux only, and a parent that is gone already is not noticed: the caller watches a pipe that ends with it, too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
