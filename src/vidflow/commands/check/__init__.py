"""`vidflow models check`: what a model is, what it finds in a picture, and how fast it is."""

from vidflow.commands.check.command import CheckOptions, check_model

__all__ = ["CheckOptions", "check_model"]
