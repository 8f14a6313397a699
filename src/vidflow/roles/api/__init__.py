"""The HTTP API: a module a resource. Begin at app.py."""

from vidflow.roles.api.app import run

__all__ = ["run"]
