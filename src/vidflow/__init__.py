"""vidflow: runs vision models over videos, frame by frame, and loses nothing."""

import sys

__version__ = "0.1.0"
VERSIONS = f"{__version__} on Python {sys.version.split()[0]}"
"""What a bug report needs to name."""
