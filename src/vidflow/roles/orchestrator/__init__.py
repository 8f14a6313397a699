"""The orchestrator: stands by until it leads, and while it leads, reconciles the tables with what the runners report."""

from vidflow.roles.orchestrator.role import run

__all__ = ["run"]
