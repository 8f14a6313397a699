"""vidflow: runs vision models over videos, frame by frame, and loses nothing."""

__version__ = "0.1.0"
