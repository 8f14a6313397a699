"""`vidflow dev`: all of vidflow on this machine, with embedded servers. Used for development, by tests and by `vidflow run`."""

from vidflow.commands.dev.command import run, running_stack
from vidflow.commands.dev.stack import Stack

__all__ = ["Stack", "run", "running_stack"]
