"""The command line's own refusals (an unknown option, a bad value), made safe for a terminal. Not vidflow's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from vidflow.domain.escaping import escape_unprintable_lines
from vidflow.domain.redaction import redact


class SafeGroup(TyperGroup):
    """A group of commands whose usage errors repeat a value only with its secrets masked and its control characters escaped."""

    def make_context(self, *args: Any, **more: Any) -> Any:  # noqa: ANN401 - as Typer calls it
        """Parse the group's own options."""
        with _safe_messages():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Parse the command's options and run it."""
        with _safe_messages():
            return super().invoke(ctx)


@contextmanager
def _safe_messages() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if hasattr(error, "format_message") and isinstance(message, str):
            vars(error)["message"] = escape_unprintable_lines(redact(message))
        raise
