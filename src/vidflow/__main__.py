"""`vidflow` and `python -m vidflow`: runs the command line, turns errors into one line and an exit code."""

from __future__ import annotations

import signal
import sys

from vidflow import VERSIONS
from vidflow.domain.errors import SetupError, Unavailable, UserError, VidflowError, build_internal_error, is_bug
from vidflow.infra.telemetry.logs import safe_line, show_uncaught_errors

EXIT_CODES: tuple[tuple[type[VidflowError], int], ...] = (
    (UserError, 2),
    (SetupError, 3),
    (Unavailable, 4),
    (VidflowError, 1),
)
"""2: what was asked for is at fault; 3: the set-up is; 4: a server is away; 1: anything else."""


def main() -> None:
    """Run one command. An error of vidflow's own is one line; any other is a bug and shows its traceback and what to do."""
    # Until a command has its own way to end, Ctrl-C ends it silently: a shell sees 130.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    show_uncaught_errors()
    from vidflow.cli.app import app  # noqa: PLC0415 - most of a start's time, and behind the line above

    try:
        app()
    except VidflowError as error:
        print(f"vidflow: {safe_line(error.message)}", file=sys.stderr)  # noqa: T201
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    except Exception as error:  # noqa: BLE001 - the last place that can say whose fault it is
        sys.excepthook(type(error), error, error.__traceback__)
        print(f"vidflow: {safe_line(_describe_unexpected_error(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _describe_unexpected_error(error: Exception) -> str:
    if is_bug(error):
        return build_internal_error(error, VERSIONS, "the traceback above").message
    return f"{type(error).__name__}: {error} (see the traceback above)"


if __name__ == "__main__":
    main()
