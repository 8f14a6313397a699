"""What a command does whose reader has gone, as in `vidflow dlq list | head`. Not what it prints."""

from __future__ import annotations

import os
from typing import TextIO


def discard_output(out: TextIO) -> None:
    """Lets what is still to be written go nowhere: the interpreter would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)
