"""The name of this process in `ps` and `top`."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

MAX_BYTES: Final = 15
"""The kernel keeps no more."""
_PR_SET_NAME: Final = 15


def name_process(name: str) -> None:
    """Name this process. Linux only. A child that is forked from another process has that one's name until then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:MAX_BYTES], 0, 0, 0)
