"""`vidflow run`: run one model over one video, on a running vidflow or on one started for the purpose."""

from vidflow.commands.run.command import run

__all__ = ["run"]
