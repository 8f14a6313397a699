"""The runner: keeps worker processes, obeys the leader's commands, reports all that it has in its charge. Start at role.py."""

from vidflow.roles.runner.role import run

__all__ = ["run"]
