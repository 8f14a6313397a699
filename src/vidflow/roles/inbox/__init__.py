"""The inbox: store the workers' results exactly once, in order and without gaps. Other packages use only `run`."""

from vidflow.roles.inbox.role import run

__all__ = ["run"]
