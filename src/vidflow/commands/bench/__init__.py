"""`vidflow bench`: measure how many streams this machine can carry with a model."""

from vidflow.commands.bench.command import run

__all__ = ["run"]
