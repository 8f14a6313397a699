"""`vidflow dev`: all of vidflow on this machine, as child processes with servers of its own. For development, tests and `vidflow run`."""

from vidflow.commands.dev.command import run, running_stack
from vidflow.commands.dev.stack import Stack

__all__ = ["Stack", "run", "running_stack"]
