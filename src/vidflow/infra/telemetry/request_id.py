"""The id of the HTTP request that this thread or task works on. Each log line has it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""None outside of a request."""
