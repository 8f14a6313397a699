"""`vidflow` and `python -m vidflow`: runs the command line, turns errors into one line and an exit code."""

from __future__ import annotations

import sys

from vidflow.cli import app
from vidflow.domain.errors import SetupError, Unavailable, UserError, VidflowError
from vidflow.infra.telemetry import redacted

EXIT_CODES: tuple[tuple[type[VidflowError], int], ...] = (
    (UserError, 2),
    (SetupError, 3),
    (Unavailable, 4),
    (VidflowError, 1),
)
"""2: what was asked for is at fault; 3: the set-up is; 4: a server is away; 1: anything else."""


def main() -> None:
    """Runs one command. An error of vidflow's own is one line; any other is a bug and shows its traceback."""
    try:
        app()
    except VidflowError as error:
        print(f"vidflow: {redacted(error.message)}", file=sys.stderr)  # noqa: T201
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))


if __name__ == "__main__":
    main()
