"""The command line, one module per group of commands."""

from typing import Final

PROGRAM: Final = "vidflow"
"""The name in help and errors, and in the variable _VIDFLOW_COMPLETE of shell completion, also of `python -m vidflow`."""
