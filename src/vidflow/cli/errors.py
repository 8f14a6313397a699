"""Usage errors of the command line (an unknown option, an invalid value), made safe for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from vidflow.domain.escaping import escape_unprintable_lines
from vidflow.domain.redaction import redact


class SafeGroup(TyperGroup):
    """A command group whose usage errors mask the secrets and escape the control characters of values that they repeat."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 - Typer's signature
        """Parse the options of the group."""
        with _safe_messages():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Parse the options of a command and run it."""
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
