"""Scopes of tests: what a request may reach."""

from __future__ import annotations

from typing import Final

from vidflow.domain.access import WriteScope

EVERYTHING: Final = WriteScope(owner="local", is_for_all=True)
"""That of a request that needs no token."""
