"""`vidflow run`: one video through one model, on a vidflow that runs already or on one that is started for it."""

from vidflow.commands.run.command import run

__all__ = ["run"]
