"""The orchestrator role: while it holds the leader lease, it reconciles the tables with the runners' reports."""

from vidflow.roles.orchestrator.role import run

__all__ = ["run"]
