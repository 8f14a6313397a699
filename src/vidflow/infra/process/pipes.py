"""Handle a closed output pipe, as in `vidflow dlq list | head`."""

from __future__ import annotations

import os
from typing import TextIO


def discard_output(out: TextIO) -> None:
    """Redirect `out` to /dev/null, so that the interpreter reports no error when it flushes the rest at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, out.fileno())
    os.close(devnull)
