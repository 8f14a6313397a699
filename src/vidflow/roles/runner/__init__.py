"""The runner role: it runs worker processes as the leader commands and reports their state. Start reading at role.py."""

from vidflow.roles.runner.role import run

__all__ = ["run"]
