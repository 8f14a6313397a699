"""What an operator allows sources over the network."""

from __future__ import annotations

import msgspec


class SourceAccess(msgspec.Struct, frozen=True):
    """How sources over the network may be reached.

    `ca_file`: path of certificate authorities that are trusted besides the system's. `verify`: servers must prove their names.
    """

    ca_file: str | None = None
    verify: bool = True
