"""Entry point of `vidflow` and `python -m vidflow`. Turns errors into one line and an exit code."""

from __future__ import annotations

import signal
import sys

from vidflow import VERSIONS
from vidflow.cli import PROGRAM
from vidflow.domain.errors import SetupError, Unavailable, UserError, VidflowError, build_internal_error, is_bug
from vidflow.infra.telemetry.logs import safe_line, show_uncaught_errors

EXIT_CODES: tuple[tuple[type[VidflowError], int], ...] = (
    (UserError, 2),
    (SetupError, 3),
    (Unavailable, 4),
    (VidflowError, 1),
)
"""2: the request is at fault; 3: the set-up is at fault; 4: a server is unavailable; 1: any other error."""


def main() -> None:
    """Run one command. Print a VidflowError as one line, any other error with its traceback and what to do about it."""
    # Ctrl-C ends the process silently with 130 until the command installs its own handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    show_uncaught_errors()
    from vidflow.cli.app import app  # noqa: PLC0415 - slow, so Ctrl-C and errors are handled before
    from vidflow.cli.errors import raise_usage_errors  # noqa: PLC0415

    try:
        with raise_usage_errors():
            sys.exit(app(prog_name=PROGRAM, standalone_mode=False))
    except VidflowError as error:
        print(f"{PROGRAM}: {safe_line(error.message)}", file=sys.stderr)  # noqa: T201
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    except Exception as error:  # noqa: BLE001 - top level
        sys.excepthook(type(error), error, error.__traceback__)
        print(f"{PROGRAM}: {safe_line(_describe_unexpected_error(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _describe_unexpected_error(error: Exception) -> str:
    if is_bug(error):
        return build_internal_error(error, VERSIONS, "the traceback above").message
    return f"{type(error).__name__}: {error} (see the traceback above)"


if __name__ == "__main__":
    main()
