"""vidflow runs vision models over videos, frame by frame, and loses no results."""

import sys

__version__ = "0.1.0"
VERSIONS = f"{__version__} on Python {sys.version.split()[0]}"
"""The versions to name in a bug report."""
