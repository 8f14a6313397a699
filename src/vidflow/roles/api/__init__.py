"""The HTTP API, one module per resource. The entry point is app.py."""

from vidflow.roles.api.app import run

__all__ = ["run"]
