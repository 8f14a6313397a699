"""The inbox: stores what the workers send, once, in order and without a hole. `run` is all that others need."""

from vidflow.roles.inbox.role import run

__all__ = ["run"]
