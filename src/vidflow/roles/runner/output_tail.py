"""The end of what a child process wrote to its standard output and standard error."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Final

from vidflow.domain.redaction import redact
from vidflow.domain.runner import DETAIL_CHARACTERS

TAIL_BYTES: Final = DETAIL_CHARACTERS
"""How much of the end is kept."""
_MAX_READS: Final = 16
"""Reads per call: more than a pipe holds, but bounded, so that an endless writer does not block the others."""


class OutputTail:
    """Reads a child's pipe without blocking and keeps the end. The owner closes the pipe."""

    def __init__(self, pipe: Connection) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._tail = b""
        self._is_cut = False
        self.is_open = True
        """Whether more may come."""

    def read(self) -> None:
        """Read what is there."""
        for _ in range(_MAX_READS):
            if not self.is_open:
                return
            try:
                chunk = os.read(self._pipe.fileno(), 16 * TAIL_BYTES)
            except BlockingIOError:
                return
            self.is_open = bool(chunk)
            self._tail += chunk
            self._is_cut = self._is_cut or len(self._tail) > TAIL_BYTES
            self._tail = self._tail[-TAIL_BYTES:]

    def text(self, secrets: tuple[str, ...] = ()) -> str | None:
        """Return the end without secrets, or None if it is empty."""
        text = self._tail.decode(errors="replace")
        if self._is_cut:
            text = _skip_partial_word(text)
        return redact(text, secrets).strip() or None


def _skip_partial_word(text: str) -> str:
    """Return the text from its first whole line or word on. A cut word may be the rest of a secret, which would not be masked."""
    for end in ("\n", " "):
        if end in text:
            return text.partition(end)[2]
    return ""
